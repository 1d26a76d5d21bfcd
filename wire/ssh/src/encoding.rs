//! RFC 4251 section 5 data types: a bounded reader over peer bytes and a writer into a growing buffer.
//!
//! Nothing here allocates by a length that the peer declared: strings are borrowed from the packet.

use thiserror::Error;

/// Peer bytes that are not what their position calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A field runs past the end of its container.
    #[error("truncated")]
    Truncated,
    /// A field is longer than this implementation takes.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// A text field is not UTF-8 or holds a NUL.
    #[error("text is not UTF-8")]
    NotText,
    /// Bytes remain after the last field.
    #[error("trailing bytes")]
    Trailing,
    /// A field has a value that is never valid.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// A cursor over borrowed bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.u8()? != 0)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = usize::try_from(self.u32()?).map_err(|_| DecodeError::Truncated)?;
        self.take(len)
    }

    pub(crate) fn string_max(
        &mut self,
        bytes_max: usize,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let bytes = self.string()?;
        if bytes.len() > bytes_max {
            return Err(DecodeError::TooLong(what));
        }
        Ok(bytes)
    }

    /// UTF-8 text without NUL.
    pub(crate) fn text(&mut self, bytes_max: usize, what: &'static str) -> Result<&'a str, DecodeError> {
        let bytes = self.string_max(bytes_max, what)?;
        if bytes.contains(&0) {
            return Err(DecodeError::NotText);
        }
        std::str::from_utf8(bytes).map_err(|_| DecodeError::NotText)
    }

    /// A non-negative multiple precision integer, without its leading zero; canonical form only.
    pub(crate) fn mpint(&mut self, bytes_max: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let bytes = self.string_max(bytes_max.saturating_add(1), what)?;
        match bytes {
            [] => Ok(bytes),
            [0, next, ..] if *next >= 0x80 => Ok(bytes.get(1..).unwrap_or_default()),
            [first, ..] if *first != 0 && *first < 0x80 => Ok(bytes),
            _ => Err(DecodeError::Invalid(what)),
        }
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// Appends SSH data types to a byte vector.
pub(crate) trait Put {
    fn put_byte(&mut self, value: u8);
    fn put_raw(&mut self, bytes: &[u8]);

    fn put_bool(&mut self, value: bool) {
        self.put_byte(u8::from(value));
    }

    fn put_uint(&mut self, value: u32) {
        self.put_raw(&value.to_be_bytes());
    }

    fn put_long(&mut self, value: u64) {
        self.put_raw(&value.to_be_bytes());
    }

    /// A string. Local invariant: nothing that this crate builds reaches 4 GiB; longer is cut.
    fn put_string(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.put_uint(len);
        self.put_raw(bytes.get(..len as usize).unwrap_or(bytes));
    }

    /// A non-negative integer given as big-endian bytes.
    fn put_mpint(&mut self, bytes: &[u8]) {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        let digits = bytes.get(zeros..).unwrap_or_default();
        let pad = digits.first().is_some_and(|b| *b >= 0x80);
        self.put_uint(u32::try_from(digits.len() + usize::from(pad)).unwrap_or(u32::MAX));
        if pad {
            self.put_byte(0);
        }
        self.put_raw(digits);
    }
}

impl Put for Vec<u8> {
    fn put_byte(&mut self, value: u8) {
        self.push(value);
    }

    fn put_raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Put for bytes::BytesMut {
    fn put_byte(&mut self, value: u8) {
        self.extend_from_slice(&[value]);
    }

    fn put_raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_have_one_form() {
        let cases: [(&[u8], Option<&[u8]>); 6] = [
            (&[0, 0, 0, 0], Some(&[])),
            (&[0, 0, 0, 1, 5], Some(&[5])),
            (&[0, 0, 0, 2, 0, 0x80], Some(&[0x80])),
            (&[0, 0, 0, 2, 0, 5], None),
            (&[0, 0, 0, 1, 0x80], None),
            (&[0, 0, 0, 1, 0], None),
        ];
        for (wire, expected) in cases {
            assert_eq!(Reader::new(wire).mpint(8, "n").ok(), expected, "{wire:?}");
        }
    }

    #[test]
    fn f_declared_length_is_checked_before_use() {
        let mut huge = vec![0xff, 0xff, 0xff, 0xff];
        huge.extend([0; 8]);
        assert_eq!(Reader::new(&huge).string(), Err(DecodeError::Truncated));
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while reader.string().is_ok() && !reader.is_empty() {}
            let _ = Reader::new(&bytes).mpint(16, "n");
            let _ = Reader::new(&bytes).text(16, "t");
        }

        #[test]
        fn integers_survive(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut wire = Vec::new();
            wire.put_mpint(&bytes);
            let digits: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
            prop_assert_eq!(Reader::new(&wire).mpint(40, "n").unwrap(), &digits[..]);
        }
    }
}
