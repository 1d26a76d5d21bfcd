//! How a record lies in a segment: length, checksum, bytes.

/// Longest record.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;
const HEADER_BYTES: usize = 8;

/// Appends the stored form of a record.
pub(crate) fn encode(record: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&checksum(record).to_be_bytes());
    out.extend_from_slice(record);
}

/// All whole records at the beginning of a segment, and how many bytes they take.
pub(crate) fn parse_all(bytes: &[u8]) -> (Vec<&[u8]>, usize) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, tail)) = parse_one(rest) {
        records.push(record);
        rest = tail;
    }
    (records, bytes.len() - rest.len())
}

fn parse_one(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let (length, sum) = header.split_at_checked(4)?;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    if length > RECORD_BYTES_MAX {
        return None;
    }
    let (record, rest) = rest.split_at_checked(length)?;
    (checksum(record) == u32::from_be_bytes(sum.try_into().ok()?)).then_some((record, rest))
}

/// CRC-32C, bit by bit: records are small and few.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn f_damage_ends_the_list_of_records() {
        let mut bytes = Vec::new();
        encode(b"one", &mut bytes);
        encode(b"two", &mut bytes);
        assert_eq!(parse_all(&bytes).0, [b"one", b"two"]);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(parse_all(&damaged).0.len() < 2, "byte {index}");
        }
    }
}
