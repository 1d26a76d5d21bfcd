//! `wayleave backend`: copies of what the Auth Service keeps, and whether its audit log is whole.

mod verdict;

use crate::cli::{EXIT_USAGE, print_error, write_out};
use crate::storage::Storage;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::fs::Permissions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use verdict::VerdictFormat;
use wayleave_auth::{BackupFile, Copied, Existing, backup, clone_backend, restore, verify_audit_log};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_store::{Backend, SqliteBackend};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
#[command(after_help = "A BACKEND is a configuration file (*.yaml), sqlite:DIRECTORY, postgresql://…, or \
    etcd+https://host:2379/prefix.\nThe files and backends hold every secret of the cluster.")]
pub(crate) enum BackendCommand {
    /// Write what the backend holds to a file, while Auth runs
    Backup(BackupArgs),
    /// Put what a file holds into the backend, while Auth does not run
    Restore(RestoreArgs),
    /// Copy one backend into another, to move a cluster
    Clone(CloneArgs),
    /// Verify the chain of audit events and its signed checkpoints, while Auth runs or not
    VerifyEvents(VerifyArgs),
}

#[derive(Args)]
pub(crate) struct BackupArgs {
    /// The file to write, which must not be there yet
    file: PathBuf,
    /// The configuration of the Auth Service
    #[arg(short, long, env = "WAYLEAVE_CONFIG", default_value = crate::cli::CONFIG_FILE)]
    config: PathBuf,
}

#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// The file of a backup
    file: PathBuf,
    /// The configuration of the Auth Service
    #[arg(short, long, env = "WAYLEAVE_CONFIG", default_value = crate::cli::CONFIG_FILE)]
    config: PathBuf,
    /// Delete first what the backend holds
    #[arg(long)]
    replace: bool,
}

#[derive(Args)]
pub(crate) struct CloneArgs {
    /// The backend to copy
    #[arg(long, value_name = "BACKEND")]
    from: String,
    /// The backend to fill
    #[arg(long, value_name = "BACKEND")]
    to: String,
    /// Delete first what the target holds
    #[arg(long)]
    replace: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The backend whose events are verified, instead of that of the configuration
    #[arg(long, value_name = "BACKEND")]
    of: Option<String>,
    /// The configuration of the Auth Service
    #[arg(short, long, env = "WAYLEAVE_CONFIG", default_value = crate::cli::CONFIG_FILE)]
    config: PathBuf,
    /// text for people, json for one object on standard output
    #[arg(long, value_enum, default_value_t = VerdictFormat::Text)]
    format: VerdictFormat,
}

pub(crate) fn run(command: BackendCommand) -> ExitCode {
    let prepared = match prepare(command) {
        Ok(prepared) => prepared,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let done = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot start")
        .and_then(|runtime| runtime.block_on(carry_out(prepared)));
    match done.and_then(|said| write_out(&said)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// A command whose backends are known.
enum Prepared {
    Backup { file: PathBuf, source: Storage },
    Restore { file: PathBuf, target: Storage, existing: Existing },
    Clone { source: Storage, target: Storage, existing: Existing },
    VerifyEvents { source: Storage, format: VerdictFormat },
}

fn prepare(command: BackendCommand) -> anyhow::Result<Prepared> {
    let configured = |path: &Path| match Storage::of_file(path)? {
        Storage::Memory => bail!("{}: the backend is memory, which ends with its process", path.display()),
        storage => Ok(storage),
    };
    let existing = |replace| if replace { Existing::Replace } else { Existing::Refuse };
    Ok(match command {
        BackendCommand::Backup(BackupArgs { file, config }) => {
            Prepared::Backup { file, source: configured(&config)? }
        }
        BackendCommand::Restore(RestoreArgs { file, config, replace }) => {
            Prepared::Restore { file, target: configured(&config)?, existing: existing(replace) }
        }
        BackendCommand::Clone(CloneArgs { from, to, replace }) => {
            let (source, target) = (Storage::named(&from)?, Storage::named(&to)?);
            if matches!(source, Storage::Memory) || matches!(target, Storage::Memory) {
                bail!("a backend in memory ends with its process");
            }
            if source.shown() == target.shown() {
                bail!("--from and --to are the same backend");
            }
            Prepared::Clone { source, target, existing: existing(replace) }
        }
        BackendCommand::VerifyEvents(VerifyArgs { of, config, format }) => {
            let source = match of {
                Some(named) => Storage::named(&named)?,
                None => configured(&config)?,
            };
            Prepared::VerifyEvents { source, format }
        }
    })
}

async fn carry_out(prepared: Prepared) -> anyhow::Result<String> {
    let clock = Arc::new(SystemClock::new());
    let mut told = Told::new();
    match prepared {
        Prepared::Backup { file, source } => {
            let opened = Opened::to_read(&source, &file, clock.clone()).await?;
            let done =
                backup(opened.backend.clone(), &file, clock.wall(), &mut |count| told.tell(count)).await;
            opened.close().await;
            let Copied { cluster, records, .. } = done.context("the backup failed")?;
            told.end();
            Ok(format!("{}: {records} records of the cluster {cluster}\n", file.display()))
        }
        Prepared::Restore { file, target, existing } => {
            let file = BackupFile::open(&file)?;
            let header = file.header();
            let (made, count) = (header.created_text(), file.len());
            let backend = target.open(clock.clone()).await?;
            let done = restore(file, &*backend, existing, clock.wall(), &mut |count| told.tell(count)).await;
            backend.close().await;
            let copied = done.context("the restore failed")?;
            told.end();
            Ok(format!("{count} records of a backup of {made}\n{}", restored(&copied, &target)))
        }
        Prepared::Clone { source, target, existing } => {
            let opened = Opened::to_read(&source, &beside(&target), clock.clone()).await?;
            let backend = target.open(clock.clone()).await?;
            let from = opened.backend.clone();
            let done =
                clone_backend(from, &*backend, existing, clock.wall(), &mut |count| told.tell(count)).await;
            backend.close().await;
            opened.close().await;
            let copied = done.context("the copy failed")?;
            told.end();
            Ok(restored(&copied, &target))
        }
        Prepared::VerifyEvents { source, format } => {
            let opened = Opened::to_read(&source, &beside(&source), clock.clone()).await?;
            let done = verify_audit_log(opened.backend.clone()).await;
            opened.close().await;
            verdict::say(&done.context("the audit log cannot be verified")?, format)
        }
    }
}

/// Where a copy of a file is put while it is read.
fn beside(storage: &Storage) -> PathBuf {
    match storage {
        Storage::Sqlite(directory) => directory.clone(),
        _ => std::env::temp_dir().join("copy"),
    }
}

fn restored(copied: &Copied, target: &Storage) -> String {
    let Copied { cluster, generation, records } = copied;
    format!(
        "{}: {records} records of the cluster {cluster}, generation {generation}\n\
         Start Auth on it, and on nothing that the cluster was kept in before.\n",
        target.shown()
    )
}

/// A backend that is read while Auth may have it open.
struct Opened {
    backend: Arc<dyn Backend>,
    /// A file that Auth has open is read through a copy.
    _copy: Option<tempfile::TempDir>,
}

impl Opened {
    async fn to_read(source: &Storage, beside: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let Storage::Sqlite(directory) = source else {
            return Ok(Self { backend: source.open(clock).await?, _copy: None });
        };
        let beside = beside.parent().filter(|parent| parent.is_dir()).unwrap_or(Path::new("."));
        let copy = tempfile::Builder::new()
            .prefix(".wayleave-copy-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(beside)
            .with_context(|| format!("cannot write beside {}", beside.display()))?;
        SqliteBackend::copy(directory, copy.path()).context("the backend cannot be read")?;
        let backend = Storage::Sqlite(copy.path().to_owned()).open(clock).await?;
        Ok(Self { backend, _copy: Some(copy) })
    }

    async fn close(self) {
        self.backend.close().await;
    }
}

/// Progress on a terminal.
struct Told {
    last: Option<Instant>,
    is_terminal: bool,
}

impl Told {
    fn new() -> Self {
        Self { last: None, is_terminal: std::io::stderr().is_terminal() }
    }

    fn tell(&mut self, count: u64) {
        if !self.is_terminal || self.last.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        self.last = Some(Instant::now());
        let _ = write!(std::io::stderr(), "\r{count} records");
    }

    fn end(&self) {
        if self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}
