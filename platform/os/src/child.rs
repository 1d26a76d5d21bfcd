//! The children's side: a process with one thread that forks, and what it forks, which becomes a user and then what was
//! ordered.

use crate::account::Account;
use crate::environment::{self, EnvironmentSources};
use crate::memory::release_program_pages;
use crate::order::{self, ChildFailure, MessageError, Order, Reply, ShellTask, Task, TerminalTask};
use crate::sftp::serve_counted;
use crate::{nursery, privileges, raw};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Group, Uid};
use rustix::fs::Mode;
use rustix::net::SendFlags;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// First argument of a process that shall call [`run_child`].
pub const CHILD_ARGUMENT: &str = "__child";

/// Files that close a machine to everybody but root.
const NO_LOGIN_FILES: [&str; 2] = ["/run/nologin", "/etc/nologin"];

/// How much of such a file is told.
const NO_LOGIN_BYTES_MAX: u64 = 1024;

/// Where directories for agent sockets are made.
const PRIVATE_DIRECTORY_TEMPLATE: &str = "/tmp/ssh-XXXXXXXXXX";

/// The group that may write to terminals (`write`, `wall`).
const TERMINAL_GROUP: &str = "tty";

const UMASK: u32 = 0o022;
const UMASK_OF_SOCKETS: u32 = 0o177;

/// Forks for whoever asks on standard input; each copy becomes what is ordered on the socket that it is made with. Never
/// returns.
///
/// Call it first in `main`, before any thread, file or signal handler, when the first argument is
/// [`CHILD_ARGUMENT`]. Whoever else calls it gives orders to a process with no more rights than his own.
pub fn run_child() -> ! {
    raw::reset_signals();
    let code = match serve_forks() {
        Ok(()) => 0,
        Err(_nobody_listens) => 1,
    };
    std::process::exit(code)
}

/// Forks until nobody asks any more.
fn serve_forks() -> Result<(), MessageError> {
    raw::close_others()?;
    // What a terminal or a service manager tells the daemon's group is the daemon's to act upon: the end of the control
    // socket ends this. A process that leads a group already stays where it is.
    let _leads_already = rustix::process::setsid();
    hold_back_ends().map_err(|errno| MessageError::Io(errno.into()))?;
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(io::Error::from)?;
    // What starting touched is not needed again, and copies do not get it. Without it this process is only larger.
    let _larger = release_program_pages();
    while let Some((_, descriptors)) = order::receive_header(&control)? {
        for socket in descriptors {
            let forked = match raw::fork_as_sibling() {
                Ok(None) => become_ordered(&socket),
                Ok(Some(pid)) => Ok(pid),
                Err(error) => Err(error),
            };
            order::send_header(&control, nursery::answer(forked), &[])?;
        }
    }
    Ok(())
}

/// The copy: knows nothing of the process that it comes from.
fn become_ordered(socket: &OwnedFd) -> ! {
    raw::reset_signals();
    let obeyed = match rustix::stdio::dup2_stdin(socket) {
        Ok(()) => obey_order(),
        Err(errno) => Err(MessageError::Io(errno.into())),
    };
    std::process::exit(match obeyed {
        Ok(()) => 0,
        Err(_nobody_listens) => 1,
    })
}

/// Carries out the order; failures are told to the parent, the error is that it cannot be told.
fn obey_order() -> Result<(), MessageError> {
    raw::close_others()?;
    let control =
        Control(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(io::Error::from)?);
    let (order, descriptors) = control.receive()?;
    let Order { account, task } = order;
    let outcome = match task {
        Task::Shell(task) => run_shell(&account, task, descriptors, &control),
        Task::Sftp => return serve_files(&account, descriptors, control),
        Task::Connect { path } => connect(&account, path, &control),
        Task::Listen { path } => listen(&account, path, &control),
        Task::ListenInPrivateDirectory => listen_in_private_directory(&account, &control),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(failure) => control.send(&Reply::Failed(failure), &[]),
    }
}

/// The socket to the parent; closed by exec.
struct Control(OwnedFd);

impl Control {
    fn receive(&self) -> Result<(Order, Vec<OwnedFd>), MessageError> {
        let (header, descriptors) = order::receive_header(&self.0)?.ok_or(MessageError::Ended)?;
        let mut body = vec![0; order::body_bytes(header)?];
        File::from(self.0.try_clone()?).read_exact(&mut body)?;
        Ok((order::decode(&body)?, descriptors))
    }

    fn send(&self, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> Result<(), MessageError> {
        let (header, body) = order::encode(reply)?;
        order::send_header(&self.0, header, descriptors)?;
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            let sent = rustix::net::send(&self.0, rest, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// The same for replies on the way to a failure that will be told instead.
    fn tell(&self, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChildFailure> {
        self.send(reply, descriptors).map_err(|error| ChildFailure::Order { reason: error.to_string() })
    }

    fn wait_for_end(&self) {
        let mut byte = [0; 1];
        while matches!(rustix::io::read(&self.0, &mut byte), Ok(1..) | Err(rustix::io::Errno::INTR)) {}
    }
}

/// Executes the account's shell; returns only when it could not.
fn run_shell(
    account: &Account,
    task: ShellTask,
    descriptors: Vec<OwnedFd>,
    control: &Control,
) -> Result<(), ChildFailure> {
    refuse_while_closed(account, &NO_LOGIN_FILES)?;
    start_session()?;
    match &task.terminal {
        Some(_) => take_terminal(account, &descriptors)?,
        None => take_pipes(account, &descriptors)?,
    }
    drop(descriptors);
    settle(account)?;
    if let Err(reason) = enter_home(account.home()) {
        // As sshd: tell, and begin in the root directory. With nobody reading there is nobody to tell.
        let _unread = writeln!(
            File::from(
                rustix::io::dup(rustix::stdio::stderr()).map_err(|errno| bad_order(errno.to_string()))?
            ),
            "No home directory {}: {reason}",
            account.home().display()
        );
    }
    execute_shell(account, &task, control)
}

fn execute_shell(account: &Account, task: &ShellTask, control: &Control) -> Result<(), ChildFailure> {
    let shell = account.shell();
    let cannot = |reason: String| ChildFailure::Shell { shell: shell.display().to_string(), reason };
    let c_string =
        |bytes: &[u8]| CString::new(bytes).map_err(|_| bad_order("a zero byte in text".to_owned()));

    let name = shell.file_name().unwrap_or(OsStr::new("sh")).as_bytes();
    let arguments = match &task.command {
        Some(command) => vec![c_string(name)?, c_string(b"-c")?, c_string(command)?],
        None => vec![c_string(&[b"-", name].concat())?],
    };
    let terminal = task.terminal.as_ref().map(|TerminalTask { path, term }| (path.as_str(), term.as_str()));
    let environment = environment::build(
        account,
        EnvironmentSources {
            accepted: &task.accepted,
            connection: task.connection,
            agent_socket: task.agent_socket.as_deref(),
            terminal,
        },
    );
    let environment =
        environment.iter().map(|pair| c_string(pair.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let path = c_string(shell.as_os_str().as_bytes())?;
    raw::close_others_on_exec().map_err(|error| bad_order(error.to_string()))?;
    control.tell(&Reply::Ready, &[])?;
    match nix::unistd::execve(&path, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(cannot(errno.desc().to_owned())),
    }
}

/// Serves SFTP as the user on the pipes, until their end, and notes in the last descriptor what was done.
fn serve_files(
    account: &Account,
    mut descriptors: Vec<OwnedFd>,
    control: Control,
) -> Result<(), MessageError> {
    let memory = descriptors.pop();
    let prepared = refuse_while_closed(account, &NO_LOGIN_FILES)
        .and_then(|()| start_session())
        .and_then(|()| take_pipes(account, &descriptors))
        .and_then(|()| settle(account));
    drop(descriptors);
    if let Err(failure) = prepared {
        return control.send(&Reply::Failed(failure), &[]);
    }
    // Without a home, paths are relative to the root directory: clients see that by `pwd`.
    let _stays_in_root = enter_home(account.home());
    control.send(&Reply::Ready, &[])?;
    drop(control);
    if let Err(error) = serve_counted(rustix::stdio::stdin(), rustix::stdio::stdout(), memory) {
        // To the user's client, as far as it still listens.
        let _unread = writeln!(io::stderr(), "sftp: {error}");
        std::process::exit(1);
    }
    Ok(())
}

/// Connects to a socket as the user and hands the connection over.
fn connect(account: &Account, path: PathBuf, control: &Control) -> Result<(), ChildFailure> {
    become_helper(account)?;
    let stream = absolute(&path).and_then(|()| UnixStream::connect(&path)).map_err(socket_failure(&path))?;
    control.tell(&Reply::Socket { path }, &[stream.as_fd()])
}

/// Listens as the user, hands the listener over, and removes the file when the parent lets go.
fn listen(account: &Account, path: PathBuf, control: &Control) -> Result<(), ChildFailure> {
    become_helper(account)?;
    hold_listener(&path, control)
}

fn listen_in_private_directory(account: &Account, control: &Control) -> Result<(), ChildFailure> {
    become_helper(account)?;
    let template = Path::new(PRIVATE_DIRECTORY_TEMPLATE);
    // With mode 0700, and owned by the user that this process is by now.
    let directory = nix::unistd::mkdtemp(template).map_err(socket_failure(template))?;
    let outcome = hold_listener(&directory.join(format!("agent.{}", std::process::id())), control);
    // Not empty only if the user put something there, which is his to keep.
    let _not_empty = std::fs::remove_dir(&directory);
    outcome
}

fn hold_listener(path: &Path, control: &Control) -> Result<(), ChildFailure> {
    // The end is the parent's to say: a signal to the agent's group must not leave the file behind.
    hold_back_ends().map_err(|errno| bad_order(errno.to_string()))?;
    rustix::process::umask(Mode::from_raw_mode(UMASK_OF_SOCKETS));
    let listener = absolute(path).and_then(|()| UnixListener::bind(path)).map_err(socket_failure(path))?;
    let told = control.tell(&Reply::Socket { path: path.to_owned() }, &[listener.as_fd()]);
    drop(listener);
    if told.is_ok() {
        control.wait_for_end();
    }
    // Gone only if somebody else removed it.
    let _gone = std::fs::remove_file(path);
    told
}

fn hold_back_ends() -> nix::Result<()> {
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE];
    signals.into_iter().collect::<SigSet>().thread_block()
}

fn absolute(path: &Path) -> io::Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not begin with /"))
}

/// What every task without a program of its own does first.
fn become_helper(account: &Account) -> Result<(), ChildFailure> {
    refuse_while_closed(account, &NO_LOGIN_FILES)?;
    start_session()?;
    settle(account)
}

/// Leaves the agent's session and process group.
fn start_session() -> Result<(), ChildFailure> {
    match rustix::process::setsid() {
        Ok(_) => Ok(()),
        Err(errno) => Err(bad_order(format!("setsid: {errno}"))),
    }
}

/// Becomes the user, in a directory that everybody may enter.
fn settle(account: &Account) -> Result<(), ChildFailure> {
    privileges::become_user(account)?;
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    Ok(())
}

/// Enters the home directory as the user; the working directory stays `/` when it cannot.
fn enter_home(home: &Path) -> io::Result<()> {
    std::env::set_current_dir(home)
}

/// Makes the terminal this session's own and the user's.
fn take_terminal(account: &Account, descriptors: &[OwnedFd]) -> Result<(), ChildFailure> {
    let [terminal] = descriptors else {
        return Err(bad_order(format!("{} descriptors for a terminal", descriptors.len())));
    };
    let failed = |step: &'static str| {
        move |errno: rustix::io::Errno| ChildFailure::Terminal {
            step: step.to_owned(),
            reason: errno.to_string(),
        }
    };
    rustix::process::ioctl_tiocsctty(terminal).map_err(failed("control"))?;
    if Uid::effective().is_root() {
        let group = Group::from_name(TERMINAL_GROUP).ok().flatten();
        let (gid, mode) = match group {
            Some(group) => (group.gid.as_raw(), 0o620),
            None => (account.gid(), 0o600),
        };
        give_away(terminal, account.uid(), gid).map_err(failed("owner"))?;
        rustix::fs::fchmod(terminal, Mode::from_raw_mode(mode)).map_err(failed("mode"))?;
    }
    become_standard(terminal.as_fd(), terminal.as_fd(), terminal.as_fd()).map_err(failed("standard streams"))
}

/// Makes the pipes the standard streams, and the user's: opening `/dev/stdout` checks their owner.
fn take_pipes(account: &Account, descriptors: &[OwnedFd]) -> Result<(), ChildFailure> {
    let [input, output, error] = descriptors else {
        return Err(bad_order(format!("{} descriptors for standard streams", descriptors.len())));
    };
    let failed = |errno: rustix::io::Errno| bad_order(format!("standard streams: {errno}"));
    if Uid::effective().is_root() {
        for pipe in descriptors {
            give_away(pipe, account.uid(), account.gid()).map_err(failed)?;
        }
    }
    become_standard(input.as_fd(), output.as_fd(), error.as_fd()).map_err(failed)
}

fn give_away(descriptor: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    rustix::fs::fchown(descriptor, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

fn become_standard(
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    error: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdin(input)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(error)
}

/// Keeps everybody but root out while one of `files` exists.
fn refuse_while_closed(account: &Account, files: &[impl AsRef<Path>]) -> Result<(), ChildFailure> {
    if account.is_root() {
        return Ok(());
    }
    for file in files.iter().map(AsRef::as_ref) {
        match File::open(file) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(unreadable) => return Err(ChildFailure::LoginsDisabled { message: unreadable.to_string() }),
            Ok(opened) => {
                let mut message = Vec::new();
                // Whatever it says, and even if it cannot be read: it is there.
                let _unreadable = opened.take(NO_LOGIN_BYTES_MAX).read_to_end(&mut message);
                let message = String::from_utf8_lossy(&message).trim().to_owned();
                return Err(ChildFailure::LoginsDisabled { message });
            }
        }
    }
    Ok(())
}

fn bad_order(reason: String) -> ChildFailure {
    ChildFailure::Order { reason }
}

fn socket_failure<E: Into<io::Error>>(path: &Path) -> impl Fn(E) -> ChildFailure {
    let path = path.display().to_string();
    move |error| ChildFailure::Socket { path: path.clone(), reason: error.into().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_vocab::Login;

    #[test]
    fn a_closed_machine_lets_only_root_in() {
        let directory = tempfile::tempdir().unwrap();
        let [absent, closed] = ["absent", "closed"].map(|name| directory.path().join(name));
        std::fs::write(&closed, "back at noon\n").unwrap();
        let root = Account::lookup_blocking(&Login::parse("root").unwrap());
        let Ok(root) = root else { return };
        let nobody = Account::lookup_blocking(&Login::parse("nobody").unwrap()).unwrap();

        let told = ChildFailure::LoginsDisabled { message: "back at noon".to_owned() };
        assert_eq!(refuse_while_closed(&nobody, &[&absent, &closed]), Err(told));
        assert_eq!(refuse_while_closed(&nobody, &[&absent]), Ok(()));
        assert_eq!(refuse_while_closed(&root, &[&closed]), Ok(()));
    }
}
