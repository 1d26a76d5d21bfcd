//! Packets in a stream of bytes: a big-endian u32 length and that many bytes.

use crate::PACKET_BYTES_MAX;

/// Length of the length.
pub const HEADER_BYTES: usize = 4;

/// A packet at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The packet without its length, at least one byte.
    pub packet: &'a [u8],
    /// What follows it in the buffer.
    pub rest: &'a [u8],
}

/// A stream that cannot be SFTP. Nothing after this can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {declared} bytes is declared; 1 to {PACKET_BYTES_MAX} are possible")]
pub struct BadLength {
    /// What the peer declared.
    pub declared: u32,
}

/// Splits the first packet off; none while it is incomplete.
pub fn split(bytes: &[u8]) -> Result<Option<Frame<'_>>, BadLength> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let declared = u32::from_be_bytes(*header);
    let length = usize::try_from(declared)
        .ok()
        .filter(|length| (1..=PACKET_BYTES_MAX).contains(length))
        .ok_or(BadLength { declared })?;
    Ok(body.split_at_checked(length).map(|(packet, rest)| Frame { packet, rest }))
}

/// Appends a packet whose body `write` appends, and fills in its length.
pub(crate) fn append(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    write(out);
    let length = out.len() - start - HEADER_BYTES;
    let header = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(place) = out.get_mut(start..start + HEADER_BYTES) {
        place.copy_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_whole_or_not_yet() {
        let stream = [0, 0, 0, 2, 7, 8, 0, 0, 0, 1];
        assert_eq!(split(&stream), Ok(Some(Frame { packet: &[7, 8], rest: &[0, 0, 0, 1] })));
        for cut in 0..6 {
            assert_eq!(split(&stream[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn f_declared_lengths_are_bounded() {
        let at = |length: u32| length.to_be_bytes();
        assert_eq!(split(&at(0)), Err(BadLength { declared: 0 }));
        assert_eq!(split(&at(PACKET_BYTES_MAX as u32)), Ok(None));
        assert_eq!(
            split(&at(PACKET_BYTES_MAX as u32 + 1)),
            Err(BadLength { declared: PACKET_BYTES_MAX as u32 + 1 })
        );
        assert_eq!(split(&at(u32::MAX)), Err(BadLength { declared: u32::MAX }));
    }
}
