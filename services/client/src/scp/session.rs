//! An SFTP conversation over a connection to a node.

use crate::failure::{Exit, Failure};
use crate::output::note;
use crate::ssh::connect::NodeConnection;
use crate::ssh::driver::Notice;
use bytes::Bytes;
use wayleave_sftp::{
    Attributes, ClientError, ClientEvent, ClientLimits, Name, OpenFlags, Reply, Request, RequestId,
    SftpClient, Status, StatusCode,
};
use wayleave_ssh::{ChannelId, ChannelOpen, ChannelRequest, DataStream};

/// Names in one directory that are taken from a node; one that goes on for ever ends here.
const NAMES_MAX: usize = 1_000_000;

/// One conversation.
pub(crate) struct SftpSession {
    driver: NodeConnection,
    channel: ChannelId,
    client: SftpClient,
    unsent: Bytes,
}

/// What went wrong with one file; the conversation goes on.
#[derive(Debug)]
pub(crate) enum FileError {
    /// The node said no.
    Status(Status),
    /// The conversation is over, or something here failed.
    Fatal(Failure),
}

impl From<Failure> for FileError {
    fn from(failure: Failure) -> Self {
        Self::Fatal(failure)
    }
}

impl SftpSession {
    /// Starts SFTP on a connection.
    pub(crate) async fn open(mut driver: NodeConnection) -> Result<Self, Failure> {
        let channel = driver
            .connection()
            .open(&ChannelOpen::Session)
            .map_err(Failure::doing("cannot open a session"))?;
        let mut session = Self { driver, channel, client: SftpClient::default(), unsent: Bytes::new() };
        loop {
            match session.driver.next().await? {
                Notice::Opened(opened) if opened == channel => break,
                Notice::OpenFailed { message, .. } => return Err(no_sftp(&message)),
                _ => {}
            }
        }
        let subsystem = ChannelRequest::Subsystem { name: "sftp".to_owned() };
        session
            .driver
            .connection()
            .request(channel, &subsystem, true)
            .map_err(Failure::doing("cannot ask for SFTP"))?;
        loop {
            if session.poll_event()? == Some(ClientEvent::Ready) {
                return Ok(session);
            }
            session.exchange().await?;
        }
    }

    /// How much one read or write may carry.
    pub(crate) fn limits(&self) -> ClientLimits {
        self.client.limits()
    }

    /// The machine that makes requests; follow with [`SftpSession::next_reply`].
    pub(crate) fn client(&mut self) -> &mut SftpClient {
        &mut self.client
    }

    /// Whether everything asked so far is on its way, so that asking more does not pile up here.
    pub(crate) fn is_flowing(&mut self) -> bool {
        self.push();
        self.unsent.is_empty()
    }

    /// The next answer.
    pub(crate) async fn next_reply(&mut self) -> Result<(RequestId, Reply), Failure> {
        loop {
            match self.poll_event()? {
                Some(ClientEvent::Reply { id, reply }) => return Ok((id, reply)),
                Some(ClientEvent::Ready) => {}
                None => self.exchange().await?,
            }
        }
    }

    /// An answer that is there already.
    pub(crate) fn reply_at_hand(&mut self) -> Result<Option<(RequestId, Reply)>, Failure> {
        match self.poll_event()? {
            Some(ClientEvent::Reply { id, reply }) => Ok(Some((id, reply))),
            Some(ClientEvent::Ready) | None => Ok(None),
        }
    }

    fn poll_event(&mut self) -> Result<Option<ClientEvent>, Failure> {
        self.client.poll_event().map_err(|e| broken(&e))
    }

    /// Sends what is to be sent and takes what comes, once.
    pub(crate) async fn exchange(&mut self) -> Result<(), Failure> {
        self.push();
        match self.driver.next().await? {
            Notice::Data { channel, stream: DataStream::Main, data } => {
                self.client.handle_data(&data);
                self.driver.connection().consumed(channel, data.len());
            }
            Notice::Data { channel, stream: DataStream::Stderr, data } => {
                note(String::from_utf8_lossy(&data).trim_end());
                self.driver.connection().consumed(channel, data.len());
            }
            Notice::Answered { is_granted: false, .. } => {
                return Err(no_sftp("the node or your role switches file copies off"));
            }
            Notice::Closed(_) => {
                return Err(Failure::new(Exit::Unreachable, "the node ended the file copy")
                    .hint("its agent may have been stopped, or your role was changed"));
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self) {
        loop {
            if self.unsent.is_empty() {
                self.unsent = self.client.take_output().into();
            }
            if self.unsent.is_empty() {
                return;
            }
            // A channel that is gone is reported by the next notice.
            let sent = self.driver.connection().send(self.channel, DataStream::Main, &mut self.unsent);
            if !matches!(sent, Ok(sent) if sent > 0) {
                return;
            }
        }
    }

    /// One request and its answer.
    async fn call(&mut self, request: &Request<'_>) -> Result<Reply, FileError> {
        let wanted = self.client.request(request).map_err(|e| FileError::Fatal(broken(&e)))?;
        loop {
            let (id, reply) = self.next_reply().await?;
            if id != wanted {
                continue;
            }
            return match reply {
                Reply::Status(status) if status.code != StatusCode::Ok => Err(FileError::Status(status)),
                reply => Ok(reply),
            };
        }
    }

    /// What a path is, following links; `None` when there is nothing.
    pub(crate) async fn stat(&mut self, path: &[u8]) -> Result<Option<Attributes>, FileError> {
        match self.call(&Request::Stat { path }).await {
            Ok(Reply::Attributes(attributes)) => Ok(Some(attributes)),
            Err(FileError::Status(status)) if status.code == StatusCode::NoSuchFile => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Err(confused()),
        }
    }

    /// Opens a file.
    pub(crate) async fn open_file(
        &mut self,
        path: &[u8],
        flags: OpenFlags,
        attributes: Attributes,
    ) -> Result<Bytes, FileError> {
        match self.call(&Request::Open { path, flags, attributes }).await? {
            Reply::Handle(handle) => Ok(handle),
            _ => Err(confused()),
        }
    }

    /// Sets attributes of an open file.
    pub(crate) async fn set_attributes(
        &mut self,
        handle: &[u8],
        attributes: Attributes,
    ) -> Result<(), FileError> {
        self.call(&Request::Fsetstat { handle, attributes }).await.map(|_| ())
    }

    /// Sets attributes of a path.
    pub(crate) async fn set_path_attributes(
        &mut self,
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), FileError> {
        self.call(&Request::Setstat { path, attributes }).await.map(|_| ())
    }

    /// Closes a file or directory.
    pub(crate) async fn close(&mut self, handle: &[u8]) -> Result<(), FileError> {
        self.call(&Request::Close { handle }).await.map(|_| ())
    }

    /// Makes a directory.
    pub(crate) async fn make_directory(
        &mut self,
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), FileError> {
        self.call(&Request::Mkdir { path, attributes }).await.map(|_| ())
    }

    /// Entries of a directory.
    pub(crate) async fn list(&mut self, path: &[u8]) -> Result<Vec<Name>, FileError> {
        let handle = match self.call(&Request::Opendir { path }).await? {
            Reply::Handle(handle) => handle,
            _ => return Err(confused()),
        };
        let mut names = Vec::new();
        loop {
            match self.call(&Request::Readdir { handle: &handle }).await {
                Ok(Reply::Names(more)) if !more.is_empty() && names.len() < NAMES_MAX => names.extend(more),
                Ok(Reply::Names(more)) if !more.is_empty() => return Err(confused()),
                Ok(Reply::Names(_)) => break,
                Err(FileError::Status(status)) if status.code == StatusCode::EndOfFile => break,
                Err(error) => return Err(error),
                Ok(_) => return Err(confused()),
            }
        }
        self.close(&handle).await?;
        Ok(names)
    }

    /// Says goodbye.
    pub(crate) async fn finish(self) {
        self.driver.finish().await;
    }
}

fn no_sftp(why: &str) -> Failure {
    Failure::new(Exit::Denied, format!("the node offers no file copy: {why}"))
        .hint("an administrator allows it with the role option ssh_file_copy")
}

fn broken(error: &ClientError) -> Failure {
    Failure::failed(crate::failure::chain(error))
}

fn confused() -> FileError {
    FileError::Fatal(Failure::failed("the node answered out of order"))
}
