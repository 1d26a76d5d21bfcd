//! Unix sockets under a user's own rights: connected or made by a child that has become the user.

use crate::account::Account;
use crate::launch::{ControlSocket, Launcher, SpawnError, Starting, unexpected, within_start};
use crate::order::{Order, Reply, Task};
use crate::process::Process;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// A socket that a user's programs connect to. Dropped, its file (and directory) is removed.
#[derive(Debug)]
pub struct UserListener {
    listener: UnixListener,
    path: PathBuf,
    uid: u32,
    _helper: Process,
    _control: ControlSocket,
}

impl UserListener {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection of the user or of root; others are closed at once. May be dropped and called again.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = stream.peer_cred()?.uid();
            if peer == self.uid || peer == 0 {
                return Ok(stream);
            }
        }
    }
}

impl Launcher {
    /// Connects to the Unix socket at `path` with the rights of `account` (`direct-streamlocal`).
    pub async fn connect_unix(&self, account: Account, path: &Path) -> Result<UnixStream, SpawnError> {
        let mut starting =
            self.start(Order { account, task: Task::Connect { path: path.into() } }, Vec::new()).await?;
        let (socket, _) = starting.socket().await?;
        // The helper has done its work and ends by itself.
        let _helper = starting.into_parts()?;
        let stream = std::os::unix::net::UnixStream::from(socket);
        nonblocking(stream.set_nonblocking(true), || UnixStream::from_std(stream))
    }

    /// Listens at `path` with the rights of `account` (`streamlocal-forward`). An existing file is not replaced.
    pub async fn listen_unix(&self, account: Account, path: &Path) -> Result<UserListener, SpawnError> {
        self.listen(account, Task::Listen { path: path.into() }).await
    }

    /// Listens in a fresh directory below `/tmp` that only `account` can enter, for `SSH_AUTH_SOCK`.
    pub async fn listen_for_agent(&self, account: Account) -> Result<UserListener, SpawnError> {
        self.listen(account, Task::ListenInPrivateDirectory).await
    }

    async fn listen(&self, account: Account, task: Task) -> Result<UserListener, SpawnError> {
        let uid = account.uid();
        let mut starting = self.start(Order { account, task }, Vec::new()).await?;
        let (socket, path) = starting.socket().await?;
        let (helper, control) = starting.into_parts()?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        let listener = nonblocking(listener.set_nonblocking(true), || UnixListener::from_std(listener))?;
        Ok(UserListener { listener, path, uid, _helper: helper, _control: control })
    }
}

impl Starting {
    async fn socket(&mut self) -> Result<(OwnedFd, PathBuf), SpawnError> {
        within_start(async {
            match self.reply().await? {
                Some((Reply::Socket { path }, mut descriptors)) if descriptors.len() == 1 => {
                    let socket = descriptors.pop().ok_or_else(|| unexpected(None))?;
                    Ok((socket, path))
                }
                other => Err(unexpected(other)),
            }
        })
        .await
    }
}

fn nonblocking<T>(
    prepared: io::Result<()>,
    register: impl FnOnce() -> io::Result<T>,
) -> Result<T, SpawnError> {
    prepared.and_then(|()| register()).map_err(SpawnError::Streams)
}
