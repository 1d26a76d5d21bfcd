//! One `wayleave` process that a test started, and how it is treated.

use crate::process_tree::{command_line, descendants, is_alive};
use crate::program::Program;
use crate::wait::{PATIENCE, wait_at_most, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How long a process may take to end after it was asked to; configurations here drain for a second or two.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A daemon with its log. It is ended when this is dropped: asked first, then made to.
pub struct Daemon {
    name: String,
    program: Program,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon that is not started yet.
    pub(crate) fn new(name: &str, program: Program, log: PathBuf) -> Self {
        Self { name: name.to_owned(), program, log, child: None }
    }

    /// Starts it, and again after it ended; the log goes on.
    ///
    /// # Panics
    /// When it runs already.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().append(true).create(true).open(&self.log).unwrap();
        let mut command = self.program.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.program = self.program.clone().env(name, value);
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        i32::try_from(child.id()).unwrap()
    }

    /// Whether it was started and nobody here knows of its end.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Asks it to end (SIGTERM) and gives its exit code.
    ///
    /// # Panics
    /// When it does not end in time, or leaves processes behind.
    pub fn stop(&mut self) -> Option<i32> {
        let below = descendants(self.pid());
        self.signal(Signal::SIGTERM);
        let code = self.wait_exit(STOP_LIMIT);
        assert!(code.is_some(), "{} has not ended {STOP_LIMIT:?} after SIGTERM: {}", self.name, self.tail());
        wait_for(&format!("the processes below {} to end", self.name), || {
            below.iter().all(|pid| !is_alive(*pid)).then_some(())
        });
        code.flatten()
    }

    /// Ends it without a word (SIGKILL).
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit(PATIENCE);
    }

    /// Stops it in the middle of whatever it does (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("a process to be stopped", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended just now.
        let _gone = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Waits for its end; the inner `None` says that a signal ended it.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<Option<i32>> {
        let child = self.child.as_mut()?;
        let status = wait_at_most(limit, || child.try_wait().unwrap())?;
        self.child = None;
        Some(status.code())
    }

    /// Waits for its end and expects that it gave up by itself.
    ///
    /// # Panics
    /// When it runs on, succeeds, or is ended by a signal.
    #[track_caller]
    pub fn wait_failure(&mut self) -> i32 {
        match self.wait_exit(PATIENCE) {
            Some(Some(code)) if code != 0 => code,
            other => panic!("{} should have failed: {other:?}: {}", self.name, self.tail()),
        }
    }

    /// Everything it logged.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How long the log is: what follows is news.
    pub fn log_mark(&self) -> usize {
        self.log_text().len()
    }

    /// What it logged after a mark.
    pub fn log_since(&self, mark: usize) -> String {
        self.log_text().get(mark..).unwrap_or_default().to_owned()
    }

    /// Waits until it logs something that contains `part`, whatever its case.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_log(&self, mark: usize, part: &str) {
        let part = part.to_lowercase();
        let seen =
            wait_at_most(PATIENCE, || self.log_since(mark).to_lowercase().contains(&part).then_some(()));
        assert!(seen.is_some(), "{} did not log {part:?}: {}", self.name, self.tail());
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        format!("the log of {} ends\n{}", self.name, lines[lines.len().saturating_sub(25)..].join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let pid = self.pid();
        let below = descendants(pid);
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let ended = self.wait_exit(STOP_LIMIT).is_some();
        if !ended {
            self.kill();
        }
        let left =
            wait_at_most(Duration::from_secs(5), || below.iter().all(|pid| !is_alive(*pid)).then_some(()));
        let left: Vec<i32> = if left.is_some() { Vec::new() } else { below };
        let mut named = Vec::new();
        for pid in left.into_iter().filter(|pid| is_alive(*pid)) {
            named.push(command_line(pid));
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if !std::thread::panicking() {
            assert!(
                ended,
                "{} (pid {pid}) did not end {STOP_LIMIT:?} after SIGTERM: {}",
                self.name,
                self.tail()
            );
            assert!(named.is_empty(), "{} left processes behind: {named:?}", self.name);
        }
    }
}
