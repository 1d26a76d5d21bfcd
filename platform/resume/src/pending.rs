//! A connection that carries no stream yet: single frames, each with a deadline.

use bytes::BytesMut;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_net::BoxStream;
use wayleave_resume_wire::{DecodeError, Frame};

/// How long the other end may take for one frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// A frame that did not come or could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection was lost: {0}")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", FRAME_TIMEOUT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("an answer of another kind")]
    Unexpected,
}

/// A connection and what was read from it.
pub(crate) struct Pending {
    pub(crate) connection: BoxStream,
    pub(crate) input: BytesMut,
}

impl Pending {
    pub(crate) fn new(connection: BoxStream) -> Self {
        Self { connection, input: BytesMut::new() }
    }

    pub(crate) async fn write(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        let writing = async {
            self.connection.write_all(&bytes).await?;
            self.connection.flush().await
        };
        tokio::time::timeout(FRAME_TIMEOUT, writing).await.map_err(|_| FrameError::TimedOut)??;
        Ok(())
    }

    pub(crate) async fn read(&mut self) -> Result<Frame, FrameError> {
        let reading = async {
            loop {
                if let Some(frame) = Frame::decode(&mut self.input)? {
                    return Ok(frame);
                }
                if self.connection.read_buf(&mut self.input).await? == 0 {
                    return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        };
        tokio::time::timeout(FRAME_TIMEOUT, reading).await.map_err(|_| FrameError::TimedOut)?
    }
}
