//! A user's process: started with a permit once its event is written, then held until it ends.

use super::NodeAdapter;
use crate::audit::AuditError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_audit::Event;
use wayleave_os::{Child, ChildSpec, ChildStreams, Exit, SftpReport, SftpTally, SpawnError, TerminalSize};
use wayleave_policy::Permit;

/// How long a process may take to end after SIGHUP before SIGKILL, when its session is cut by policy.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Commands to a process that wait; further ones are refused.
const COMMANDS_MAX: usize = 16;

/// What can be done with a running process. Dropped, the process is let go: it gets SIGHUP.
pub(crate) type Process = mpsc::Sender<Command>;

/// Something for a running process.
#[derive(Debug)]
pub(crate) enum Command {
    /// A signal by SSH's name.
    Signal(String),
    /// A new size of its terminal.
    Resize(TerminalSize),
    /// Its end, whatever it says.
    Kill,
}

/// What became of a start.
pub(crate) type ProcessStart = Result<(Child, ChildStreams), StartError>;

/// Why no process runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    NotRecorded(#[from] AuditError),
    #[error(transparent)]
    NotStarted(#[from] SpawnError),
}

impl StartError {
    /// What the user may read.
    pub(crate) fn user_text(&self) -> String {
        match self {
            Self::NotRecorded(_) => {
                "sessions are refused while this node cannot write its audit log".to_owned()
            }
            Self::NotStarted(error) => error.to_string(),
        }
    }
}

/// Writes the events, then starts the process that the permit is for.
pub(crate) async fn start(
    permit: Permit,
    node: Arc<NodeAdapter>,
    events: Vec<Event>,
    spec: ChildSpec,
) -> ProcessStart {
    node.record(events).await?;
    tracing::debug!(user = %permit.user(), login = %permit.login(), "a process is started");
    Ok(node.config.launcher.spawn(spec).await?)
}

/// The handle of a process and the other end of it.
pub(crate) fn handle() -> (Process, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS_MAX)
}

/// What is known of a process that is no longer held.
pub(crate) struct Ended {
    /// How it ended; `None` when it was let go.
    pub(crate) exit: Option<Exit>,
    /// What it did, if it was an SFTP server.
    pub(crate) sftp: Option<SftpReport>,
}

/// Holds a process until it ends or is let go; then its exit is not known.
pub(crate) async fn hold(mut child: Child, commands: mpsc::Receiver<Command>) -> Ended {
    let tally = child.take_sftp_tally();
    let exit = hold_process(child, commands, tally.is_some()).await;
    Ended { exit, sftp: tally.as_ref().and_then(report) }
}

fn report(tally: &SftpTally) -> Option<SftpReport> {
    tally.report().inspect_err(|error| tracing::warn!(%error, "what was done over SFTP is not known")).ok()
}

async fn hold_process(
    mut child: Child,
    mut commands: mpsc::Receiver<Command>,
    is_counted: bool,
) -> Option<Exit> {
    loop {
        tokio::select! {
            exit = child.wait() => {
                return exit.inspect_err(|error| tracing::warn!(%error, "a process could not be waited for")).ok();
            }
            command = commands.recv() => match command {
                Some(Command::Signal(name)) => {
                    if let Err(error) = child.signal(&name) {
                        tracing::debug!(%error, name, "a signal was not delivered");
                    }
                }
                Some(Command::Resize(size)) => {
                    if let Err(error) = child.resize(size) {
                        tracing::debug!(%error, "a terminal was not resized");
                    }
                }
                Some(Command::Kill) => return child.end(KILL_GRACE).await.ok(),
                // What is counted is counted to its end.
                None if is_counted => {
                    let _ended = child.end(KILL_GRACE).await;
                    return None;
                }
                None => return None,
            },
        }
    }
}
