//! The parent's side: has a child made, and tells it what to become.

use crate::account::Account;
use crate::environment::{AcceptedEnvironment, ConnectionAddresses};
use crate::nursery::{ForkError, Nursery};
use crate::order::{
    self, COMMAND_BYTES_MAX, ChildFailure, HEADER_BYTES, MessageError, Order, Reply, ShellTask, Task,
    TerminalTask,
};
use crate::process::{Child, Process};
use crate::sftp::Tally;
use crate::terminal::{self, Terminal, TerminalReader, TerminalSpec, TerminalWriter};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

/// A child that has not begun its work by then is killed: a home on a dead file server must not hold a
/// session for ever.
const START_SECONDS_MAX: u64 = 30;

/// Room in each pipe, so that a bulk transfer does not switch processes every 64 KiB.
const PIPE_BYTES: usize = 256 * 1024;

/// Starts children. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: PathBuf,
    /// Started when it is first needed, and again when it has gone.
    nursery: Arc<Mutex<Option<Nursery>>>,
}

/// A process to start as a user.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// Whom it runs as.
    pub account: Account,
    /// What it is.
    pub work: Work,
    /// What the client may add to its environment.
    pub environment: AcceptedEnvironment,
    /// For `SSH_CONNECTION` and `SSH_CLIENT`.
    pub connection: Option<ConnectionAddresses>,
    /// For `SSH_AUTH_SOCK`: the path of a [`crate::UserListener`].
    pub agent_socket: Option<PathBuf>,
}

/// What a user's process is.
#[derive(Debug, Clone)]
pub enum Work {
    /// A login shell.
    Shell {
        /// Its terminal, or pipes.
        terminal: Option<TerminalSpec>,
    },
    /// The account's shell with `-c command`.
    Exec {
        /// What the shell reads, as the client sent it.
        command: Vec<u8>,
        /// Its terminal, or pipes.
        terminal: Option<TerminalSpec>,
    },
    /// Our SFTP server on its standard input and output.
    Sftp,
}

/// A child's input and output.
#[derive(Debug)]
pub enum ChildStreams {
    /// Without a terminal. Dropping `stdin` is the end of its input.
    Pipes {
        /// What it reads.
        stdin: pipe::Sender,
        /// What it writes.
        stdout: pipe::Receiver,
        /// Where it complains.
        stderr: pipe::Receiver,
    },
    /// With a terminal.
    Terminal {
        /// What it prints, output and error together.
        reader: TerminalReader,
        /// What is typed.
        writer: TerminalWriter,
    },
}

/// Why a child was not started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The command is longer than [`COMMAND_BYTES_MAX`] or contains a zero byte.
    #[error("the command is longer than {COMMAND_BYTES_MAX} bytes or contains a zero byte")]
    Command,
    /// The agent's own binary could not be started, or the system allows no more processes.
    #[error("could not start a process")]
    Start(#[source] io::Error),
    /// No terminal or pipe could be made.
    #[error("could not make a terminal or pipe")]
    Streams(#[source] io::Error),
    /// The child says why it could not do its work.
    #[error(transparent)]
    Child(#[from] ChildFailure),
    /// The child ended before it said anything, or said something else than it should.
    #[error("the child failed before its work began: {reason}")]
    Broken {
        /// What was seen of it.
        reason: String,
    },
    /// The child did not begin within half a minute.
    #[error("the child did not begin its work within {START_SECONDS_MAX} s")]
    TooSlow,
}

impl Launcher {
    /// Starts this very binary again, also when its file has been replaced meanwhile. Its `main` must begin
    /// by calling [`crate::run_child`] when the first argument is [`crate::CHILD_ARGUMENT`].
    pub fn own_binary() -> Self {
        Self::with_program(PathBuf::from("/proc/self/exe"))
    }

    /// Starts `program`, which must do the same.
    pub fn with_program(program: PathBuf) -> Self {
        Self { program, nursery: Arc::default() }
    }

    /// Starts a process and returns when its work has begun (the shell was executed, the SFTP server is
    /// ready). Dropped before that, the process is killed.
    pub async fn spawn(&self, spec: ChildSpec) -> Result<(Child, ChildStreams), SpawnError> {
        let ChildSpec { account, work, environment, connection, agent_socket } = spec;
        let shell = |command, terminal| {
            Task::Shell(ShellTask { command, terminal, accepted: environment, connection, agent_socket })
        };
        let mut tally = None;
        let (task, near, far) = match work {
            Work::Shell { terminal } => {
                let (near, far, task) = open_streams(terminal.as_ref())?;
                (shell(None, task), near, far)
            }
            Work::Exec { command, terminal } => {
                if command.len() > COMMAND_BYTES_MAX || command.contains(&0) {
                    return Err(SpawnError::Command);
                }
                let (near, far, task) = open_streams(terminal.as_ref())?;
                (shell(Some(command), task), near, far)
            }
            Work::Sftp => {
                let (near, mut far, _no_terminal) = open_streams(None)?;
                let (ours, theirs) = Tally::new().map_err(SpawnError::Streams)?;
                far.push(theirs);
                tally = Some(ours);
                (Task::Sftp, near, far)
            }
        };
        let mut starting = self.start(Order { account, task }, far).await?;
        within_start(starting.begun()).await?;
        let (terminal, streams) = near.into_streams();
        Ok((Child::new(starting.into_parts()?.0, terminal, tally), streams))
    }

    /// Makes a child and gives it its order.
    pub(crate) async fn start(
        &self,
        order: Order,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Starting, SpawnError> {
        let (near, far) = std::os::unix::net::UnixStream::pair().map_err(SpawnError::Start)?;
        near.set_nonblocking(true).map_err(SpawnError::Start)?;
        let control = UnixStream::from_std(near).map_err(SpawnError::Start)?;
        let process = within_start(self.fork(far.into())).await?;
        let mut starting = Starting { process: KilledOnDrop(Some(process)), control };
        within_start(starting.give(order, descriptors)).await?;
        Ok(starting)
    }

    async fn fork(&self, socket: OwnedFd) -> Result<Process, SpawnError> {
        let no_child = |(ForkError::Refused(error) | ForkError::Gone(error))| SpawnError::Start(error);
        let mut nursery = self.nursery.lock().await;
        if let Some(present) = &mut *nursery {
            match present.fork(&socket).await {
                // Somebody has ended it.
                Err(ForkError::Gone(_)) => {}
                forked @ (Ok(_) | Err(ForkError::Refused(_))) => return forked.map_err(no_child),
            }
        }
        let fresh = nursery.insert(Nursery::start(&self.program).map_err(SpawnError::Start)?);
        fresh.fork(&socket).await.map_err(no_child)
    }
}

/// A child that has not begun its work; killed when dropped.
pub(crate) struct Starting {
    process: KilledOnDrop,
    control: UnixStream,
}

/// A process that nobody has taken responsibility for yet.
struct KilledOnDrop(Option<Process>);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}

impl Starting {
    async fn give(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Result<(), SpawnError> {
        let (header, body) = order::encode(&order).map_err(broken)?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.control
            .async_io(Interest::WRITABLE, || order::send_header(&self.control, header, &borrowed))
            .await
            .map_err(broken)?;
        self.control.write_all(&body).await.map_err(broken)
    }

    /// Waits until the child says that it is ready and then lets go of the control socket.
    async fn begun(&mut self) -> Result<(), SpawnError> {
        match self.reply().await? {
            Some((Reply::Ready, _)) => {}
            other => return Err(unexpected(other)),
        }
        match self.reply().await? {
            None => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// The child's next word and its descriptors; none when it has closed the socket.
    pub(crate) async fn reply(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>, SpawnError> {
        let received = self
            .control
            .async_io(Interest::READABLE, || order::receive_header(&self.control))
            .await
            .map_err(broken)?;
        let Some((header, descriptors)) = received else { return Ok(None) };
        let body = self.body(header).await.map_err(broken)?;
        match order::decode(&body).map_err(broken)? {
            Reply::Failed(failure) => Err(SpawnError::Child(failure)),
            reply => Ok(Some((reply, descriptors))),
        }
    }

    async fn body(&mut self, header: [u8; HEADER_BYTES]) -> Result<Vec<u8>, MessageError> {
        let mut body = vec![0; order::body_bytes(header)?];
        self.control.read_exact(&mut body).await?;
        Ok(body)
    }

    /// The process and its control socket, no longer killed when dropped.
    pub(crate) fn into_parts(self) -> Result<(Process, ControlSocket), SpawnError> {
        let Self { mut process, control } = self;
        let process = process.0.take().ok_or_else(|| broken("its process was taken before"))?;
        Ok((process, ControlSocket(control)))
    }
}

/// Ends a helper by being dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket(#[expect(dead_code, reason = "held for its end only")] UnixStream);

/// Waits for a step of the start, with its deadline.
pub(crate) async fn within_start<T>(
    step: impl Future<Output = Result<T, SpawnError>>,
) -> Result<T, SpawnError> {
    tokio::time::timeout(Duration::from_secs(START_SECONDS_MAX), step)
        .await
        .unwrap_or(Err(SpawnError::TooSlow))
}

pub(crate) fn unexpected(reply: Option<(Reply, Vec<OwnedFd>)>) -> SpawnError {
    let said = reply.map_or("nothing, and ended".to_owned(), |(reply, _)| format!("{reply:?}"));
    SpawnError::Broken { reason: format!("it said {said}") }
}

fn broken(reason: impl ToString) -> SpawnError {
    SpawnError::Broken { reason: reason.to_string() }
}

/// The parent's ends of a child's streams.
enum NearStreams {
    Pipes { stdin: pipe::Sender, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal(Terminal),
}

impl NearStreams {
    fn into_streams(self) -> (Option<Terminal>, ChildStreams) {
        match self {
            Self::Pipes { stdin, stdout, stderr } => (None, ChildStreams::Pipes { stdin, stdout, stderr }),
            Self::Terminal(terminal) => {
                let (reader, writer) = terminal.split();
                (Some(terminal), ChildStreams::Terminal { reader, writer })
            }
        }
    }
}

/// Makes the streams: the parent's ends, the child's ends, and what to tell the child.
fn open_streams(
    spec: Option<&TerminalSpec>,
) -> Result<(NearStreams, Vec<OwnedFd>, Option<TerminalTask>), SpawnError> {
    match spec {
        Some(spec) => {
            let opened = terminal::open(spec).map_err(SpawnError::Streams)?;
            let task = TerminalTask { path: opened.slave_path, term: spec.term().to_owned() };
            Ok((NearStreams::Terminal(opened.master), vec![opened.slave], Some(task)))
        }
        None => {
            let (near, far) = open_pipes().map_err(SpawnError::Streams)?;
            Ok((near, far, None))
        }
    }
}

fn open_pipes() -> io::Result<(NearStreams, Vec<OwnedFd>)> {
    let (child_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for bulk in [&stdin, &stdout] {
        // Refused when the user has much in pipes already: they work with the default size too.
        let _default_size = rustix::pipe::fcntl_setpipe_size(bulk, PIPE_BYTES);
    }
    let near = NearStreams::Pipes {
        stdin: pipe::Sender::from_owned_fd(stdin)?,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
    };
    Ok((near, vec![child_stdin, child_stdout, child_stderr]))
}
