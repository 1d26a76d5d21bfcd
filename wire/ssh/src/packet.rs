//! The binary packet protocol (RFC 4253 section 6): a receive buffer becomes payloads, payloads
//! become an output buffer. Decryption is in place; channel data is never copied here.

use crate::cipher::{CipherError, DirectionKeys, LENGTH_BYTES, Opener, Sealer};
use crate::encoding::Put;
use bytes::{Buf, BytesMut};
use thiserror::Error;

/// Largest packet taken, in bytes of its length field.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Largest packet taken before authentication (RFC 4253 section 6.1).
pub const PACKET_BEFORE_AUTH_BYTES_MAX: usize = 35_000;
/// The smallest packet: padding length, one byte of payload, four of padding, rounded to a block.
const LENGTH_MIN: usize = 8;
/// The least padding.
const PADDING_MIN: usize = 4;

/// A packet that cannot be taken; the connection cannot go on after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketError {
    /// The declared length is above the limit, zero, or not whole blocks.
    #[error("packet length {0} is not acceptable")]
    Length(u32),
    /// The padding does not fit the packet.
    #[error("packet padding is not acceptable")]
    Padding,
    /// Nothing in it.
    #[error("packet without payload")]
    Empty,
    /// The tag is wrong.
    #[error("packet does not authenticate")]
    Authentication,
    /// Sequence numbers are used up without a key exchange.
    #[error("sequence numbers wrapped without a key exchange")]
    SequenceWrapped,
}

impl From<CipherError> for PacketError {
    fn from(_: CipherError) -> Self {
        Self::Authentication
    }
}

/// Takes packets out of a receive buffer.
pub(crate) struct PacketReader {
    opener: Opener,
    sequence: u32,
    /// Length of the packet that is only partly here.
    pending: Option<usize>,
    pub(crate) bytes_max: usize,
    /// Bytes under the present keys.
    pub(crate) bytes_since_keys: u64,
    pub(crate) packets_since_keys: u32,
}

impl PacketReader {
    pub(crate) fn new() -> Self {
        Self {
            opener: Opener::Clear,
            sequence: 0,
            pending: None,
            bytes_max: PACKET_BEFORE_AUTH_BYTES_MAX,
            bytes_since_keys: 0,
            packets_since_keys: 0,
        }
    }

    /// Whether no keys are in use yet.
    pub(crate) const fn is_clear(&self) -> bool {
        matches!(self.opener, Opener::Clear)
    }

    /// Sequence number of the last packet taken.
    pub(crate) const fn last_sequence(&self) -> u32 {
        self.sequence.wrapping_sub(1)
    }

    /// The payload of the next complete packet, at least one byte long.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<BytesMut>, PacketError> {
        let length = match self.pending {
            Some(length) => length,
            None => {
                let Some(field) = input.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
                let declared = self.opener.length(self.sequence, *field);
                let length = usize::try_from(declared).unwrap_or(usize::MAX);
                if !(LENGTH_MIN..=self.bytes_max).contains(&length) || !self.opener.is_aligned(length) {
                    return Err(PacketError::Length(declared));
                }
                self.pending = Some(length);
                length
            }
        };
        let total = LENGTH_BYTES + length + self.opener.tag_bytes();
        if input.len() < total {
            return Ok(None);
        }
        let mut packet = input.split_to(total);
        self.opener.open(self.sequence, &mut packet)?;
        self.pending = None;
        self.sequence = self.sequence.wrapping_add(1);
        self.bytes_since_keys = self.bytes_since_keys.saturating_add(total as u64);
        self.packets_since_keys =
            self.packets_since_keys.checked_add(1).ok_or(PacketError::SequenceWrapped)?;
        let padding = usize::from(packet.get(LENGTH_BYTES).copied().unwrap_or(0));
        let payload = length.checked_sub(padding + 1).ok_or(PacketError::Padding)?;
        if padding < PADDING_MIN {
            return Err(PacketError::Padding);
        }
        if payload == 0 {
            return Err(PacketError::Empty);
        }
        packet.advance(LENGTH_BYTES + 1);
        packet.truncate(payload);
        Ok(Some(packet))
    }

    pub(crate) fn rekey(&mut self, keys: &DirectionKeys, reset_sequence: bool) -> Result<(), CipherError> {
        self.opener = Opener::new(keys)?;
        self.bytes_since_keys = 0;
        self.packets_since_keys = 0;
        if reset_sequence {
            self.sequence = 0;
        }
        Ok(())
    }
}

/// Puts packets into an output buffer.
pub(crate) struct PacketWriter {
    sealer: Sealer,
    sequence: u32,
    pub(crate) output: BytesMut,
    /// Bytes under the present keys.
    pub(crate) bytes_since_keys: u64,
    pub(crate) packets_since_keys: u32,
}

impl PacketWriter {
    pub(crate) fn new() -> Self {
        Self {
            sealer: Sealer::Clear,
            sequence: 0,
            output: BytesMut::new(),
            bytes_since_keys: 0,
            packets_since_keys: 0,
        }
    }

    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<(), PacketError> {
        self.write_with(payload.len(), |out| out.put_raw(payload))
    }

    /// Writes a packet whose payload of exactly `payload_bytes` is appended by `fill`.
    pub(crate) fn write_with(
        &mut self,
        payload_bytes: usize,
        fill: impl FnOnce(&mut BytesMut),
    ) -> Result<(), PacketError> {
        let padding = self.sealer.padding(payload_bytes);
        let length = 1 + payload_bytes + padding;
        let total = LENGTH_BYTES + length + self.sealer.tag_bytes();
        self.output.reserve(total);
        let start = self.output.len();
        self.output.put_uint(u32::try_from(length).unwrap_or(u32::MAX));
        self.output.put_byte(u8::try_from(padding).unwrap_or(u8::MAX));
        fill(&mut self.output);
        // Zeros: under authenticated encryption the content of padding is worth nothing.
        self.output.resize(start + LENGTH_BYTES + length, 0);
        let packet = self.output.get_mut(start..).unwrap_or_default();
        if let Some(tag) = self.sealer.seal(self.sequence, packet)? {
            self.output.put_raw(&tag);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.bytes_since_keys = self.bytes_since_keys.saturating_add(total as u64);
        self.packets_since_keys =
            self.packets_since_keys.checked_add(1).ok_or(PacketError::SequenceWrapped)?;
        Ok(())
    }

    pub(crate) fn rekey(&mut self, keys: &DirectionKeys, reset_sequence: bool) -> Result<(), CipherError> {
        self.sealer = Sealer::new(keys)?;
        self.bytes_since_keys = 0;
        self.packets_since_keys = 0;
        if reset_sequence {
            self.sequence = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::CipherAlgorithm;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    #[test]
    fn every_cipher_carries_every_size() {
        for cipher in CipherAlgorithm::ALL {
            let (mut writer, mut reader) = pair(cipher);
            for size in (1..100).chain([1000, 32_768, 65_536]) {
                let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
                writer.write(&payload).unwrap();
                let got = reader.next(&mut writer.output).unwrap().unwrap();
                assert_eq!(&got[..], &payload[..], "{cipher:?} {size}");
            }
        }
    }

    #[test]
    fn f_a_flipped_bit_is_found_in_every_cipher() {
        for cipher in CipherAlgorithm::ALL {
            for bit in [0, 4, 9, 20, 40] {
                let (mut writer, mut reader) = pair(cipher);
                writer.write(b"some payload of some length").unwrap();
                writer.output[bit] ^= 1;
                let result = reader.next(&mut writer.output);
                assert!(!matches!(result, Ok(Some(_))), "{cipher:?} {bit}");
            }
        }
    }

    #[test]
    fn f_length_is_refused_before_the_packet_arrives() {
        for declared in [0u32, 1, 7, 13, 35_004, 262_145, u32::MAX] {
            let mut input = BytesMut::from(&declared.to_be_bytes()[..]);
            assert!(PacketReader::new().next(&mut input).is_err(), "{declared}");
        }
    }

    #[test]
    fn f_padding_must_fit() {
        for padding in [0u8, 3, 12, 255] {
            let mut input = BytesMut::from(&[0, 0, 0, 12, padding][..]);
            input.resize(16, 0);
            assert_eq!(PacketReader::new().next(&mut input), Err(PacketError::Padding), "{padding}");
        }
        let mut input = BytesMut::from(&[0, 0, 0, 12, 11][..]);
        input.resize(16, 0);
        assert_eq!(PacketReader::new().next(&mut input), Err(PacketError::Empty));
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), which in 0usize..4) {
            let mut input = BytesMut::from(&bytes[..]);
            let mut reader = match CipherAlgorithm::ALL.get(which) {
                Some(cipher) => pair(*cipher).1,
                None => PacketReader::new(),
            };
            while let Ok(Some(_)) = reader.next(&mut input) {}
        }
    }

    fn pair(cipher: CipherAlgorithm) -> (PacketWriter, PacketReader) {
        let keys = DirectionKeys {
            cipher,
            key: Zeroizing::new((0..cipher.key_bytes()).map(|i| i as u8).collect()),
            iv: [7; 12],
        };
        let (mut writer, mut reader) = (PacketWriter::new(), PacketReader::new());
        writer.rekey(&keys, true).unwrap();
        reader.rekey(&keys, true).unwrap();
        reader.bytes_max = PACKET_BYTES_MAX;
        (writer, reader)
    }
}
