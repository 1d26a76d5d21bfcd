//! Policy as it travels to many: deflated once (RFC 1951), inflated by each, within the bound of a snapshot.

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use std::io::{self, Read, Write};
use wayleave_ca::SNAPSHOT_BYTES_MAX;

/// Deflates a snapshot.
///
/// # Errors
/// Never for bytes in memory; the encoder's interface allows it.
pub fn deflate_policy(payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(payload)?;
    encoder.finish()
}

/// Inflates what [`deflate_policy`] made.
///
/// # Errors
/// When the bytes are not of that form, or more than a snapshot may have; nothing beyond that bound is inflated.
pub fn inflate_policy(deflated: &[u8]) -> io::Result<Vec<u8>> {
    let mut payload = Vec::new();
    let limit = u64::try_from(SNAPSHOT_BYTES_MAX).unwrap_or(u64::MAX);
    DeflateDecoder::new(deflated).take(limit + 1).read_to_end(&mut payload)?;
    if payload.len() > SNAPSHOT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a policy of more than 64 MiB"));
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deflated_comes_back() {
        let payload = br#"{"roles":[]}"#.repeat(1000);
        let deflated = deflate_policy(&payload).unwrap();
        assert!(deflated.len() < payload.len() / 10);
        assert_eq!(inflate_policy(&deflated).unwrap(), payload);
    }

    #[test]
    fn f_what_inflates_without_end_is_refused_at_the_bound() {
        let bomb = deflate_policy(&vec![0; SNAPSHOT_BYTES_MAX + 1]).unwrap();
        assert!(bomb.len() < 1024 * 1024);
        assert!(inflate_policy(&bomb).is_err());
        assert!(inflate_policy(&[0xff; 64]).is_err());
    }
}
