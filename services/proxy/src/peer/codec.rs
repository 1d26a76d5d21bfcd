//! The codec of `Dial`: each gRPC message is plain bytes, without a protobuf copy.
//!
//! The first message each way is a dial message of `wire/dial` (request, response) with its length in front. After an
//! accepting response, messages are data; an empty one ends its direction. A call that ends without that was cut.

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Most bytes of data in one message.
pub(crate) const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Path of the method.
pub(crate) const DIAL_PATH: &str = "/wayleave.peer.v1.PeerDial/Dial";
/// Name of the service, the first part of the path.
pub(crate) const DIAL_SERVICE: &str = "wayleave.peer.v1.PeerDial";

const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes in, bytes out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, CHUNK_BYTES_MAX)
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = input.remaining();
        Ok(Some(input.copy_to_bytes(length)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, CHUNK_BYTES_MAX)
    }
}
