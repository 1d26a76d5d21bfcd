//! One test's own directory, logs and rules.

use crate::binary::{way, wayleave};
use crate::canary::is_canary_in;
use crate::daemon::Daemon;
use crate::program::Program;
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Scenes of one test program follow one another: two cores are shared by all.
static STAGE: Mutex<()> = Mutex::new(());

/// A directory that goes away, logs that stay, and the errors that may stand in them. Drop it last.
pub struct Scene {
    name: String,
    directory: TempDir,
    logs: PathBuf,
    expected_errors: Mutex<Vec<String>>,
    _stage: MutexGuard<'static, ()>,
}

impl Scene {
    /// Waits for the stage and sets it.
    ///
    /// # Panics
    /// When the directories cannot be made.
    pub fn new(name: &str) -> Self {
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new().prefix("wayleave-").tempdir().unwrap();
        let logs = logs_directory().join(name);
        create_dir_all(&logs).unwrap();
        create_dir_all(directory.path().join("home")).unwrap();
        Self { name: name.to_owned(), directory, logs, expected_errors: Mutex::default(), _stage: stage }
    }

    /// A path in the scene's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of mode 0600; gives its path.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        create_dir_all(path.parent().unwrap()).unwrap();
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_ref()).unwrap();
        path
    }

    /// A program at home in this scene.
    pub fn program(&self, path: impl AsRef<Path>) -> Program {
        Program::new(path).env("HOME", self.path("home")).directory(self.directory.path())
    }

    /// The client, at home in this scene: what one person does is seen by the next command.
    pub fn way(&self) -> Program {
        self.program(way()).env("WAY_HOME", self.path("home/.way"))
    }

    /// The daemon's binary with arguments of your own.
    pub fn wayleave(&self) -> Program {
        self.program(wayleave())
    }

    /// A daemon by its configuration file, not started.
    ///
    /// # Panics
    /// When its log cannot be made.
    pub fn daemon(&self, name: &str, config: &Path) -> Daemon {
        self.daemon_by(name, self.start_program(config))
    }

    /// What starts a daemon by its configuration file.
    pub fn start_program(&self, config: &Path) -> Program {
        self.wayleave().env("RUST_BACKTRACE", "1").arg("start").arg("-c").arg(config).arg("--debug")
    }

    /// A daemon that another program becomes in the end, not started.
    ///
    /// # Panics
    /// When its log cannot be made.
    pub fn daemon_by(&self, name: &str, program: Program) -> Daemon {
        let log = self.logs.join(format!("{}.{name}.log", self.name));
        File::create(&log).unwrap();
        Daemon::new(name, program, log)
    }

    /// Lets lines with `part` in them stand at ERROR in the logs of this scene.
    ///
    /// # Panics
    /// When the test run cannot be told.
    pub fn expect_error(&self, part: &str) {
        self.expected_errors.lock().unwrap().push(part.to_owned());
        let Some(file) = std::env::var_os("WAYLEAVE_EXPECTED_ERRORS") else { return };
        let mut file = OpenOptions::new().append(true).create(true).open(file).unwrap();
        // For the logs that are still to come, too.
        file.write_all(format!("{}.\t{part}\n", self.name).as_bytes()).unwrap();
    }

    /// What is wrong with the logs.
    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let expected = self.expected_errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for log in self.log_files() {
            let bytes = std::fs::read(&log).unwrap_or_default();
            let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(canary) = is_canary_in(&bytes) {
                complaints.push(format!("{name} holds the secret {canary}"));
            }
            let text = String::from_utf8_lossy(&bytes);
            let errors = text.lines().filter(|line| is_error(line));
            let unexpected = errors.filter(|line| !expected.iter().any(|part| line.contains(part.as_str())));
            complaints.extend(unexpected.map(|line| format!("{name}: {line}")));
        }
        complaints
    }

    fn log_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.logs) else { return Vec::new() };
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let complaints = self.complaints();
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        }
    }
}

/// As `cargo xtask test` says, else `target/test-logs`.
fn logs_directory() -> PathBuf {
    match std::env::var_os("WAYLEAVE_TEST_LOGS") {
        Some(directory) => PathBuf::from(directory),
        None => way().parent().and_then(Path::parent).unwrap().join("test-logs"),
    }
}

/// The same question that the test run asks afterwards.
fn is_error(line: &str) -> bool {
    line.split_whitespace().take(2).any(|word| word == "ERROR")
        || line.contains("\"level\":\"ERROR\"")
        || line.starts_with("thread '") && line.contains(" panicked at ")
}
