//! Escapes that a person types at the start of a line: `~.` and its kin, as OpenSSH has them.

use bytes::{Bytes, BytesMut};

/// What a person asks the client for, instead of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// `~.`: give the connection up.
    Disconnect,
    /// `~^Z`: put the client to sleep.
    Suspend,
    /// `~B`: send a break.
    Break,
    /// `~R`: exchange keys again.
    Rekey,
    /// `~?`: show what there is.
    Help,
}

/// What `~?` shows.
pub(crate) const HELP: &str = "\r\nEscapes at the start of a line:\r\n \
    ~.   end the connection\r\n \
    ~B   send a BREAK\r\n \
    ~R   exchange keys again\r\n \
    ~^Z  suspend this client\r\n \
    ~?   this help\r\n \
    ~~   a tilde\r\n";

const TILDE: u8 = b'~';
const CONTROL_Z: u8 = 0x1a;

/// Where in a line the typing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    LineStart,
    AfterTilde,
    Inside,
}

/// Takes escapes out of what is typed.
#[derive(Debug, Default)]
pub(crate) struct EscapeFilter(Place);

impl EscapeFilter {
    /// What is left for the node; escapes go to `found`.
    pub(crate) fn filter(&mut self, typed: &Bytes, mut found: impl FnMut(Escape)) -> Bytes {
        let is_quick = self.0 == Place::Inside || (self.0 == Place::LineStart && !typed.starts_with(b"~"));
        if is_quick && !typed.contains(&TILDE) {
            self.0 = match typed.last() {
                Some(b'\r' | b'\n') => Place::LineStart,
                Some(_) => Place::Inside,
                None => self.0,
            };
            return typed.clone();
        }
        let mut left = BytesMut::with_capacity(typed.len() + 1);
        for byte in typed.iter().copied() {
            if self.0 == Place::AfterTilde {
                self.0 = Place::Inside;
                match byte {
                    b'.' => found(Escape::Disconnect),
                    CONTROL_Z => found(Escape::Suspend),
                    b'B' => found(Escape::Break),
                    b'R' => found(Escape::Rekey),
                    b'?' => found(Escape::Help),
                    TILDE => left.extend_from_slice(b"~"),
                    other => left.extend_from_slice(&[TILDE, other]),
                }
                // After an escape that sends nothing, the line still begins.
                if matches!(byte, CONTROL_Z | b'B' | b'R' | b'?' | b'\r' | b'\n') {
                    self.0 = Place::LineStart;
                }
            } else if self.0 == Place::LineStart && byte == TILDE {
                self.0 = Place::AfterTilde;
            } else {
                self.0 = if matches!(byte, b'\r' | b'\n') { Place::LineStart } else { Place::Inside };
                left.extend_from_slice(&[byte]);
            }
        }
        left.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(typed: &[&str], left: &str, escapes: &[Escape]) {
        let mut filter = EscapeFilter::default();
        let (mut got, mut found) = (Vec::new(), Vec::new());
        for piece in typed {
            let piece = Bytes::copy_from_slice(piece.as_bytes());
            got.extend_from_slice(&filter.filter(&piece, |escape| found.push(escape)));
        }
        assert_eq!(
            (String::from_utf8(got).unwrap().as_str(), found.as_slice()),
            (left, escapes),
            "{typed:?}"
        );
    }

    #[test]
    fn escapes_count_at_the_start_of_a_line_only() {
        check(&["~."], "", &[Escape::Disconnect]);
        check(&["ls\r", "~", "."], "ls\r", &[Escape::Disconnect]);
        check(&["ls ~.\r"], "ls ~.\r", &[]);
        check(&["cd ~\r~?pwd\r"], "cd ~\rpwd\r", &[Escape::Help]);
        check(&["~~x"], "~x", &[]);
        check(&["~/bin\r"], "~/bin\r", &[]);
        check(&["~B~R~\u{1a}~."], "", &[Escape::Break, Escape::Rekey, Escape::Suspend, Escape::Disconnect]);
    }

    proptest! {
        #[test]
        fn what_has_no_tilde_is_left_alone(pieces in proptest::collection::vec("[a-z \r\n]{0,9}", 0..6)) {
            let all = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            check(&pieces, &all, &[]);
        }
    }
}
