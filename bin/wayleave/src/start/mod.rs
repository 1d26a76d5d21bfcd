//! `wayleave start`: parse, build, bind, run, drain.

mod addresses;
mod audit_sink;
mod auth;
mod diagnostics;
mod ends;
mod instance;
mod node;
mod policy;
mod proxy;
mod publication;
mod running;

use crate::cli::{EXIT_USAGE, StartArgs, print_error};
use crate::edge;
use anyhow::Context;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use wayleave_config::{Config, LogOutput as ConfiguredOutput, LogSeverity as ConfiguredSeverity};
use wayleave_net::Outbound;
use wayleave_os::{GivenBack, IdleMemory};
use wayleave_runtime::{ServiceManager, Shutdown, SystemClock};
use wayleave_telemetry::{Diagnostics, LogConfig, LogFormat, LogOutput, Severity};

/// How often is looked whether the process has become idle.
const IDLE_LOOK: Duration = Duration::from_secs(20);

/// What the parts of one process are built with.
pub(crate) struct Process {
    pub(crate) config: Config,
    pub(crate) clock: Arc<SystemClock>,
    /// Is told when the process is up.
    pub(crate) manager: Arc<ServiceManager>,
    /// Draining begins.
    pub(crate) shutdown: Shutdown,
    /// What the parts show of themselves.
    pub(crate) diagnostics: Diagnostics,
}

pub(crate) fn run(args: &StartArgs) -> ExitCode {
    let mut config = match edge::read_config(&args.config) {
        Ok(config) => config,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    config.instance.diag_addr = args.diag_addr.or(config.instance.diag_addr);
    let guard = match wayleave_telemetry::init(&log_config(&config, args.debug)) {
        Ok(guard) => guard,
        Err(error) => {
            print_error(&anyhow::Error::new(error).context("wayleave.log"));
            return ExitCode::FAILURE;
        }
    };
    wayleave_os::keep_buffer_pages();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")
        .and_then(|runtime| runtime.block_on(serve(config)));
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    };
    drop(guard);
    code
}

async fn serve(config: Config) -> anyhow::Result<()> {
    check_way_out()?;
    let shutdown = Shutdown::new();
    let now = Shutdown::new();
    let manager = Arc::new(ServiceManager::from_environment());
    let process = Process {
        config,
        clock: Arc::new(SystemClock::new()),
        manager: manager.clone(),
        shutdown: shutdown.clone(),
        diagnostics: Diagnostics::default(),
    };
    let _pid_file = process.config.instance.pid_file.as_deref().map(PidFile::write).transpose()?;
    let signals = wayleave_runtime::TaskGroup::new();
    let delay = process.config.instance.shutdown_delay;
    signals.spawn("signals", watch_signals(delay, manager.clone(), shutdown, now.clone())?);
    if let Some(interval) = manager.alive_interval() {
        signals.spawn("watchdog", keep_alive(manager.clone(), interval, now.clone()));
    }
    let running = running::start(process).await?;
    signals.spawn("idle memory", give_back_when_idle());
    if !running.is_ending() {
        manager.ready("serving");
    }
    tokio::select! {
        done = running.finish() => done,
        () = now.requested() => {
            tracing::warn!("ending at once, without a drain");
            Ok(())
        }
    }
}

/// Says whether connections go through an HTTP proxy, before one is needed.
fn check_way_out() -> anyhow::Result<()> {
    let outbound = Outbound::of_process().map_err(|error| anyhow::Error::new(error.clone()))?;
    if let Some(proxy) = outbound.proxy_address() {
        tracing::info!("connections to the cluster go through the HTTP proxy of the environment");
        tracing::debug!(%proxy, "the HTTP proxy");
    }
    Ok(())
}

/// A process that idles for weeks keeps little memory.
async fn give_back_when_idle() {
    let mut idle = IdleMemory::new();
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        match idle.look() {
            Ok(None) => {}
            Ok(Some(GivenBack { program_bytes })) => {
                tracing::debug!(program_bytes, "idle: free memory and pages of the program are given back");
            }
            Err(error) => {
                tracing::debug!(%error, "memory is not given back while idle");
                return;
            }
        }
    }
}

/// The first signal begins the drain, the second ends the process at once.
fn watch_signals(
    delay: Duration,
    manager: Arc<ServiceManager>,
    shutdown: Shutdown,
    now: Shutdown,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    Ok(async move {
        let first = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = first, "draining; a second signal ends at once");
        manager.stopping("draining");
        tokio::time::sleep(delay).await;
        shutdown.request();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        now.request();
    })
}

/// Tells the watchdog that tasks still run, until the process ends.
async fn keep_alive(manager: Arc<ServiceManager>, interval: Duration, now: Shutdown) {
    let mut timer = tokio::time::interval(interval);
    while now.until(timer.tick()).await.is_some() {
        manager.alive();
    }
}

fn log_config(config: &Config, debug: bool) -> LogConfig {
    let log = &config.instance.log;
    let severity = match log.severity {
        ConfiguredSeverity::Trace => Severity::Trace,
        _ if debug => Severity::Debug,
        ConfiguredSeverity::Debug => Severity::Debug,
        ConfiguredSeverity::Info => Severity::Info,
        ConfiguredSeverity::Warn => Severity::Warn,
        ConfiguredSeverity::Error => Severity::Error,
    };
    let output = match &log.output {
        ConfiguredOutput::Stderr => LogOutput::Stderr,
        ConfiguredOutput::Stdout => LogOutput::Stdout,
        ConfiguredOutput::File(path) => LogOutput::File(path.clone()),
    };
    let format = match log.format {
        wayleave_config::LogFormat::Text => LogFormat::Text,
        wayleave_config::LogFormat::Json => LogFormat::Json,
    };
    LogConfig { output, severity, format }
}

/// A file with the process id, removed at the end.
struct PidFile(std::path::PathBuf);

impl PidFile {
    fn write(path: &std::path::Path) -> anyhow::Result<Self> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write wayleave.pid_file {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
