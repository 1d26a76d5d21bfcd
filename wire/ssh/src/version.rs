//! The version line that opens a connection (RFC 4253 section 4.2).

use bytes::{Buf, BytesMut};
use thiserror::Error;

/// Longest version line, line end included.
pub const VERSION_LINE_BYTES_MAX: usize = 255;
/// Longest line that a server may send before its version.
const GREETING_LINE_BYTES_MAX: usize = 1024;
/// Most lines that a server may send before its version.
const GREETING_LINES_MAX: usize = 64;

/// A peer that does not open as SSH 2.0 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VersionError {
    /// A line without an end.
    #[error("version line is too long")]
    TooLong,
    /// Too many lines before the version.
    #[error("too many lines before the version")]
    TooManyLines,
    /// Another protocol, or SSH 1.
    #[error("not an SSH 2.0 version line")]
    NotSsh2,
}

/// Waits for the peer's version line.
#[derive(Debug)]
pub(crate) struct VersionReader {
    greeting_lines_left: usize,
}

impl VersionReader {
    /// A server takes no greeting, a client does.
    pub(crate) const fn new(may_greet: bool) -> Self {
        Self { greeting_lines_left: if may_greet { GREETING_LINES_MAX } else { 0 } }
    }

    /// The peer's version without its line end, once complete.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Vec<u8>>, VersionError> {
        loop {
            let is_version = input.starts_with(b"SSH-") || b"SSH-".starts_with(input);
            if !is_version && self.greeting_lines_left == 0 {
                return Err(VersionError::NotSsh2);
            }
            let bytes_max = if is_version { VERSION_LINE_BYTES_MAX } else { GREETING_LINE_BYTES_MAX };
            let Some(end) = input.iter().take(bytes_max).position(|b| *b == b'\n') else {
                return if input.len() < bytes_max { Ok(None) } else { Err(VersionError::TooLong) };
            };
            let line = input.split_to(end);
            input.advance(1);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if is_version {
                return check(line).map(Some);
            }
            self.greeting_lines_left -= 1;
            if self.greeting_lines_left == 0 {
                return Err(VersionError::TooManyLines);
            }
        }
    }
}

fn check(line: &[u8]) -> Result<Vec<u8>, VersionError> {
    let is_ssh2 = line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-");
    let is_text = line.iter().all(|b| (0x20..0x7f).contains(b));
    if is_ssh2 && is_text { Ok(line.to_vec()) } else { Err(VersionError::NotSsh2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        check_line(false, b"SSH-2.0-x\r\nrest", Ok(Some(b"SSH-2.0-x")));
        check_line(false, b"SSH-2.0-x y\n", Ok(Some(b"SSH-2.0-x y")));
        check_line(false, b"SS", Ok(None));
        check_line(false, b"SSH-1.5-x\r\n", Err(VersionError::NotSsh2));
        check_line(false, b"GET / HTTP/1.1\r\n", Err(VersionError::NotSsh2));
        check_line(true, b"hello\r\nSSH-1.99-x\r\n", Ok(Some(b"SSH-1.99-x")));
        check_line(true, b"hello\r\nSS", Ok(None));
    }

    #[test]
    fn f_a_line_without_end_is_refused() {
        let mut long = b"SSH-2.0-".to_vec();
        long.resize(VERSION_LINE_BYTES_MAX, b'x');
        check_line(false, &long, Err(VersionError::TooLong));
        check_line(true, &[b'x'; GREETING_LINE_BYTES_MAX], Err(VersionError::TooLong));
        check_line(true, &b"x\n".repeat(100), Err(VersionError::TooManyLines));
        check_line(false, b"SSH-2.0-\0\r\n", Err(VersionError::NotSsh2));
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = VersionReader::new(true).next(&mut BytesMut::from(&bytes[..]));
        }
    }

    fn check_line(may_greet: bool, input: &[u8], expected: Result<Option<&[u8]>, VersionError>) {
        let got = VersionReader::new(may_greet).next(&mut BytesMut::from(input));
        assert_eq!(got, expected.map(|line| line.map(<[u8]>::to_vec)), "{:?}", input.get(..20));
    }
}
