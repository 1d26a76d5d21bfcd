//! Programs that a test drives: with a clean environment, with a deadline, with all they print.

use crate::process_tree::descendants;
use crate::wait::{PATIENCE, wait_at_most};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most of an output that a failure shows.
const SHOWN_CHARS_MAX: usize = 4000;

/// A command to be run.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Vec<u8>,
    limit: Duration,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command as a person would type it.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A command that runs beside the test. It is ended, with what it started, when this is dropped.
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Program {
    /// A program by its path, or by a name to be found in the usual directories.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let environment = vec![
            ("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("LANG".into(), "C.UTF-8".into()),
            ("TERM".into(), "xterm".into()),
        ];
        Self {
            path: path.as_ref().to_owned(),
            arguments: Vec::new(),
            environment,
            directory: None,
            input: Vec::new(),
            limit: PATIENCE,
        }
    }

    /// The same surroundings for another program.
    #[must_use]
    pub fn renamed(&self, path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), ..self.clone() }
    }

    /// Started by another program, whose last arguments are this one and its arguments.
    #[must_use]
    pub fn within(mut self, path: &str, arguments: &[&str]) -> Self {
        let inner = std::iter::once(self.path.into_os_string()).chain(self.arguments);
        self.arguments = arguments.iter().map(OsString::from).chain(inner).collect();
        self.path = path.into();
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment, which holds little else.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs it there.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// What it reads from its standard input, which then ends.
    #[must_use]
    pub fn input(mut self, input: impl AsRef<[u8]>) -> Self {
        input.as_ref().clone_into(&mut self.input);
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or takes longer than it may.
    #[track_caller]
    pub fn output(self) -> Output {
        let (input, limit) = (self.input.clone(), self.limit);
        let mut running = self.start();
        running.write_and_close(input);
        match running.wait_end(limit) {
            Some(output) => output,
            None => panic!("not done after {limit:?}: {}", running.so_far()),
        }
    }

    /// Runs it and expects success; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn stdout(self) -> String {
        self.output().succeeded().stdout_text()
    }

    /// Runs it and expects JSON.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let output = self.output().succeeded();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
    }

    /// Starts it beside the test; its input stays open.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(self) -> Running {
        let command = self.shown();
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stdout.take().unwrap(), Arc::clone(&stdout)),
            collect(child.stderr.take().unwrap(), Arc::clone(&stderr)),
        ];
        let stdin = child.stdin.take();
        Running { command, child, stdin, stdout, stderr, readers, status: None }
    }

    /// The command for the standard library, in a process group of its own.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear().process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Words for a shell, quoted where that is needed: for terminals and configurations that start programs.
    pub fn shell_words(&self) -> String {
        let quote = |word: &OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        std::iter::once(self.path.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str))
            .map(quote)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn shown(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        std::iter::once(name)
            .chain(self.arguments.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
    })
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Types something.
    ///
    /// # Panics
    /// When it reads no more.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes.as_ref()).and_then(|()| stdin.flush()).unwrap();
    }

    /// Ends its input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Writes beside the reading, so that neither waits for the other.
    fn write_and_close(&mut self, input: Vec<u8>) {
        let Some(mut stdin) = self.stdin.take() else { return };
        self.readers.push(std::thread::spawn(move || {
            // A program need not read what it is given.
            let _unread = stdin.write_all(&input);
        }));
    }

    /// What it printed so far.
    pub fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    /// What it complained so far.
    pub fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Waits until it has printed something that contains `mark`.
    ///
    /// # Panics
    /// When it ends before, or takes too long.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, mark: &str) {
        let seen = wait_at_most(PATIENCE, || {
            let ended = self.is_ended();
            (self.stdout_so_far().contains(mark) || ended).then_some(())
        });
        let text = self.stdout_so_far();
        assert!(seen.is_some() && text.contains(mark), "no {mark:?} in: {}", self.so_far());
    }

    /// Whether it has ended.
    pub fn is_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    /// Waits for its end; `None` when it takes longer.
    pub fn wait_end(&mut self, limit: Duration) -> Option<Output> {
        wait_at_most(limit, || self.is_ended().then_some(()))?;
        // What it left running may hold the outputs open: those are not waited for for ever.
        wait_at_most(Duration::from_secs(5), || {
            self.readers.iter().all(JoinHandle::is_finished).then_some(())
        });
        Some(Output {
            command: self.command.clone(),
            code: self.status.and_then(|status| status.code()),
            stdout: self.stdout.lock().unwrap().clone(),
            stderr: self.stderr.lock().unwrap().clone(),
        })
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes too long.
    #[track_caller]
    pub fn wait(&mut self) -> Output {
        match self.wait_end(PATIENCE) {
            Some(output) => output,
            None => panic!("has not ended: {}", self.so_far()),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended just now.
        let _gone = kill(Pid::from_raw(self.pid()), signal);
    }

    fn so_far(&self) -> Output {
        Output {
            command: self.command.clone(),
            code: self.status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal))),
            stdout: self.stdout.lock().unwrap().clone(),
            stderr: self.stderr.lock().unwrap().clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_ended() {
            return;
        }
        for pid in descendants(self.pid()).into_iter().chain([self.pid()]) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ended = self.child.wait();
    }
}

impl Output {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Expects exit code 0.
    ///
    /// # Panics
    /// With everything the command printed.
    #[track_caller]
    #[must_use]
    pub fn succeeded(self) -> Self {
        self.ended_with(0)
    }

    /// Expects an exit code.
    ///
    /// # Panics
    /// With everything the command printed.
    #[track_caller]
    #[must_use]
    pub fn ended_with(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit code {code}: {self}");
        self
    }

    /// Expects that it failed.
    ///
    /// # Panics
    /// With everything the command printed.
    #[track_caller]
    #[must_use]
    pub fn failed(self) -> Self {
        assert!(self.code != Some(0), "expected a failure: {self}");
        self
    }

    /// Expects that its complaint contains something, whatever its case.
    ///
    /// # Panics
    /// With everything the command printed.
    #[track_caller]
    #[must_use]
    pub fn complaining(self, part: &str) -> Self {
        let found = self.stderr_text().to_lowercase().contains(&part.to_lowercase());
        assert!(found, "expected {part:?} in the complaint: {self}");
        self
    }

    /// Expects what it printed, but for white space around it.
    ///
    /// # Panics
    /// With everything the command printed.
    #[track_caller]
    pub fn printed(self, text: &str) {
        assert!(self.stdout_text().trim() == text, "expected {text:?}: {self}");
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |text: String| -> String { text.chars().take(SHOWN_CHARS_MAX).collect() };
        write!(
            f,
            "\n$ {}\nexit code {:?}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command,
            self.code,
            cut(self.stdout_text()),
            cut(self.stderr_text())
        )
    }
}
