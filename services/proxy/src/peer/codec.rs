//! The messages of `Dial`: gRPC's own framing around plain bytes, without a protobuf copy.
//!
//! Each message is five bytes in front (no compression, length) and its data; data is handed on as it comes, not message
//! by message. The first message each way is a dial message of `wire/dial` (request, response) with its length in front.
//! After an accepting response, messages are data; an empty one ends its direction. A call that ends without that was cut.

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tonic::Status;

/// Path of the method.
pub(crate) const DIAL_PATH: &str = "/wayleave.peer.v1.PeerDial/Dial";
/// Name of the service, the first part of the path.
pub(crate) const DIAL_SERVICE: &str = "wayleave.peer.v1.PeerDial";
/// Most bytes of data in one message that is taken.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// What gRPC puts in front of each message: a flag for compression, and the length.
const PREFIX_BYTES: usize = 5;
/// What HTTP/2 puts in front of each frame.
const FRAME_HEADER_BYTES: usize = 9;
/// Most bytes of data in one message that is sent: with what stands in front it fills four TLS records.
pub(crate) const CHUNK_BYTES_MAX: usize = MESSAGE_BYTES_MAX - PREFIX_BYTES - FRAME_HEADER_BYTES;

/// A message as it is sent.
pub(crate) fn message(data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + data.len());
    message.put_u8(0);
    // Longer data than CHUNK_BYTES_MAX is not given.
    message.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    message.put_slice(data);
    message.freeze()
}

/// What comes next in a direction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Data(Bytes),
    End,
}

/// A message that is none of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum CodecError {
    #[error("a peer's message is compressed")]
    Compressed,
    #[error("a peer's message of {0} bytes")]
    TooLong(usize),
}

/// Takes messages apart, wherever HTTP/2 has cut them.
#[derive(Debug, Default)]
pub(super) struct Reader {
    prefix: Vec<u8>,
    left: usize,
}

impl Reader {
    /// The next part of `input`; none when nothing is left of it.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Part>, CodecError> {
        if self.left == 0 {
            let missing = PREFIX_BYTES - self.prefix.len();
            self.prefix.extend_from_slice(&input.split_to(missing.min(input.len())));
            let [flag, a, b, c, d] = self.prefix[..] else { return Ok(None) };
            self.prefix.clear();
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            match (flag, length) {
                (1.., _) => return Err(CodecError::Compressed),
                (0, 0) => return Ok(Some(Part::End)),
                (0, 1..=MESSAGE_BYTES_MAX) => self.left = length,
                (0, _) => return Err(CodecError::TooLong(length)),
            }
        }
        let data = input.split_to(self.left.min(input.len()));
        self.left -= data.len();
        Ok((!data.is_empty()).then_some(Part::Data(data)))
    }
}

/// The messages of one direction as a body.
pub(super) struct Messages {
    messages: mpsc::Receiver<Bytes>,
    /// What a server says at the end.
    trailers: Option<HeaderMap>,
}

impl Messages {
    /// The body of a call.
    pub(super) fn of_client(messages: mpsc::Receiver<Bytes>) -> Self {
        Self { messages, trailers: None }
    }

    /// The body of an answer.
    pub(super) fn of_server(messages: mpsc::Receiver<Bytes>) -> Result<Self, Status> {
        let mut trailers = HeaderMap::new();
        Status::ok("").add_header(&mut trailers)?;
        Ok(Self { messages, trailers: Some(trailers) })
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = ready!(self.messages.poll_recv(cx)).map(Frame::data);
        Poll::Ready(message.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_arrive_however_they_are_cut(
            lengths in proptest::collection::vec(1usize..2000, 0..20),
            cuts in proptest::collection::vec(1usize..3000, 1..20),
        ) {
            let mut wire = BytesMut::new();
            let mut sent = Vec::new();
            for (n, length) in lengths.into_iter().enumerate() {
                let data = vec![n as u8; length];
                wire.extend_from_slice(&message(&data));
                sent.extend(data);
            }
            wire.extend_from_slice(&message(&[]));
            let (mut reader, mut wire, mut got) = (Reader::default(), wire.freeze(), Vec::new());
            let mut is_ended = false;
            for cut in cuts.into_iter().cycle() {
                if wire.is_empty() {
                    break;
                }
                let mut piece = wire.split_to(cut.min(wire.len()));
                while let Some(part) = reader.next(&mut piece).unwrap() {
                    match part {
                        Part::Data(data) => got.extend_from_slice(&data),
                        Part::End => is_ended = true,
                    }
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert!(is_ended && got == sent);
        }
    }

    #[test]
    fn messages_of_others_are_refused() {
        let check = |bytes: &'static [u8]| Reader::default().next(&mut Bytes::from_static(bytes));
        assert_eq!(check(&[1, 0, 0, 0, 1, 7]), Err(CodecError::Compressed));
        assert_eq!(check(&[0, 0, 1, 0, 1]), Err(CodecError::TooLong(65_537)));
        assert_eq!(check(&[0, 0xff, 0xff, 0xff, 0xff]), Err(CodecError::TooLong(0xffff_ffff)));
        assert_eq!(check(&[0, 0, 1, 0]), Ok(None));
    }

    #[test]
    fn a_full_message_fills_whole_records() {
        assert_eq!((message(&vec![0; CHUNK_BYTES_MAX]).len() + FRAME_HEADER_BYTES) % (16 * 1024), 0);
    }
}
