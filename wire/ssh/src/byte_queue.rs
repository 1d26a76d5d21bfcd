//! A queue of bytes that costs little more than its bytes, however small the pieces it is fed.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// Pieces up to this size are copied together.
const SMALL_BYTES_MAX: usize = 1024;
/// Size of what they are copied into.
const GATHERED_BYTES_MAX: usize = 4096;

/// Bytes in order, in pieces. Large pieces are kept as they are, without copying; small ones are gathered.
///
/// For an embedder that holds the data of a channel nobody reads at the moment: a peer that sends a
/// window full of one-byte messages makes it no larger than the window.
#[derive(Debug, Default)]
pub struct ByteQueue {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Shared(Bytes),
    Gathered(BytesMut),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(data) => data,
            Self::Gathered(data) => data,
        }
    }

    fn advance(&mut self, bytes: usize) {
        match self {
            Self::Shared(data) => data.advance(bytes),
            Self::Gathered(data) => data.advance(bytes),
        }
    }
}

impl ByteQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes inside.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is inside.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends.
    pub fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if data.len() > SMALL_BYTES_MAX {
            self.pieces.push_back(Piece::Shared(data));
            return;
        }
        if let Some(Piece::Gathered(last)) = self.pieces.back_mut()
            && last.len() + data.len() <= GATHERED_BYTES_MAX
        {
            last.extend_from_slice(&data);
        } else if !data.is_empty() {
            self.pieces.push_back(Piece::Gathered(BytesMut::from(&data[..])));
        }
    }

    /// The first piece; empty only when the queue is.
    pub fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&[], Piece::as_slice)
    }

    /// Drops so many bytes, or all.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        while left > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = left.min(piece.as_slice().len());
            left -= part;
            if part == piece.as_slice().len() {
                self.pieces.pop_front();
            } else {
                piece.advance(part);
            }
        }
    }

    /// Takes the first piece out.
    pub fn pop(&mut self) -> Option<Bytes> {
        let data = match self.pieces.pop_front()? {
            Piece::Shared(data) => data,
            Piece::Gathered(data) => data.freeze(),
        };
        self.bytes -= data.len();
        Some(data)
    }

    /// Moves the first `bytes`, or all, to the end of `out`.
    pub fn copy_out(&mut self, bytes: usize, out: &mut BytesMut) {
        let mut left = bytes.min(self.bytes);
        while left > 0 {
            let front = self.front();
            let part = left.min(front.len());
            out.extend_from_slice(front.get(..part).unwrap_or_default());
            self.advance(part);
            left -= part;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn f_tiny_pieces_cost_little() {
        let mut queue = ByteQueue::new();
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert_eq!(queue.len(), 100_000);
        assert!(queue.pieces.len() <= 100_000 / GATHERED_BYTES_MAX + 1);
    }

    proptest! {
        #[test]
        fn order_is_kept(
            pieces in proptest::collection::vec(0usize..3000, 0..20),
            takes in proptest::collection::vec(0usize..4000, 0..40),
        ) {
            let (mut queue, mut expected, mut got) = (ByteQueue::new(), Vec::new(), BytesMut::new());
            for (index, len) in pieces.into_iter().enumerate() {
                let piece: Vec<u8> = (0..len).map(|i| (i * 7 + index) as u8).collect();
                expected.extend(&piece);
                queue.push(piece.into());
            }
            for take in takes {
                queue.copy_out(take, &mut got);
                prop_assert_eq!(got.len() + queue.len(), expected.len());
                prop_assert_eq!(queue.is_empty(), queue.front().is_empty());
            }
            while let Some(piece) = queue.pop() {
                got.extend_from_slice(&piece);
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(&got[..], &expected[..]);
        }
    }
}
