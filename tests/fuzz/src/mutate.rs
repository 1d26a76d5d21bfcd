//! Changes of an input that a number determines: bits, integers, lengths and what they cover, pieces of other inputs.

/// Longest input made.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Most changes of one input.
const CHANGES_MAX: u64 = 6;
/// Integers at which decoders go wrong.
const INTERESTING: [u64; 14] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// Makes inputs of other inputs.
pub struct Mutator(u64);

impl Mutator {
    /// The same number makes the same inputs.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// A number below `bound`, zero when that is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    fn interesting(&mut self, length: usize) -> u64 {
        let near = u64::try_from(length).unwrap_or(u64::MAX);
        match self.below(INTERESTING.len() + 3) {
            0 => near,
            1 => near.wrapping_add(1),
            2 => near.saturating_sub(1),
            other => INTERESTING[other - 3],
        }
    }

    /// A changed copy of one of `inputs`; pieces come from the others.
    pub fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.next() % CHANGES_MAX {
            let other = &inputs[self.below(inputs.len())];
            self.change(&mut bytes, other);
        }
        bytes.truncate(INPUT_BYTES_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        match self.below(12) {
            0 => bytes.truncate(at),
            1 => {
                let end = at + self.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            2 => {
                let end = at + self.below((bytes.len() - at).min(1024) + 1);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => {
                let from = self.below(other.len() + 1);
                let end = from + self.below((other.len() - from).min(4096) + 1);
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            4 => {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
            }
            5 => {
                let fresh: Vec<u8> = (0..self.below(32)).map(|_| self.next().to_le_bytes()[0]).collect();
                bytes.splice(at..at, fresh);
            }
            6 => self.change_number(bytes),
            7 | 8 => self.change_length(bytes),
            9 | 10 => self.change_integer(bytes, at),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (self.next() % 8);
                }
            }
        }
    }

    /// Overwrites one, two, four or eight bytes in either order.
    fn change_integer(&mut self, bytes: &mut [u8], at: usize) {
        let value = self.interesting(bytes.len().saturating_sub(at));
        let width = 1 << self.below(4);
        let (big, little) = (value.to_be_bytes(), value.to_le_bytes());
        let written = if self.below(3) == 0 { &little[..width] } else { &big[8 - width..] };
        if let Some(place) = bytes.get_mut(at..at + width) {
            place.copy_from_slice(written);
        }
    }

    /// Finds what may be the length of what follows it: makes it a lie, or changes what it covers and keeps it true, so
    /// that decoders go deeper.
    fn change_length(&mut self, bytes: &mut Vec<u8>) {
        let begin = self.below(bytes.len() + 1);
        let plausible = (begin..bytes.len()).chain(0..begin).find_map(|at| {
            [4_usize, 2].into_iter().find_map(|width| {
                let prefix = bytes.get(at..at + width)?;
                let length = prefix.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
                (length > 0 && length <= bytes.len() - at - width).then_some((at, width, length))
            })
        });
        let Some((at, width, length)) = plausible else { return };
        let covered = at + width..at + width + length;
        let new_length = match self.below(5) {
            0 => length + 1,
            1 => length - 1,
            2 => usize::MAX,
            3 => {
                let cut = self.below(length + 1);
                bytes.drain(covered.start..covered.start + cut);
                length - cut
            }
            _ => {
                let more: Vec<u8> = (0..=self.below(64)).map(|_| self.next().to_le_bytes()[0]).collect();
                let count = more.len();
                bytes.splice(covered.end..covered.end, more);
                length + count
            }
        };
        let encoded = new_length.to_be_bytes();
        bytes[at..at + width].copy_from_slice(&encoded[encoded.len() - width..]);
    }

    /// Replaces a number that is written in digits.
    fn change_number(&mut self, bytes: &mut Vec<u8>) {
        let begin = self.below(bytes.len() + 1);
        let Some(from) = (begin..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) else { return };
        let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let sign = if self.below(4) == 0 { "-" } else { "" };
        let number = format!("{sign}{}", self.interesting(digits));
        bytes.splice(from..from + digits, number.into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_inputs() {
        let inputs = [b"kind: role 7".to_vec(), vec![0, 0, 0, 3, 1, 2, 3], Vec::new()];
        let make = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| mutator.mutate(&inputs)).collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        let made = make(3);
        assert!(made.iter().any(|input| input.starts_with(&[0, 0, 0, 4])), "a length is made a lie");
        let is_true =
            |input: &Vec<u8>| input.len() > 7 && input[..4] == (input.len() as u32 - 4).to_be_bytes();
        assert!(made.iter().any(is_true), "a length stays true of more");
    }
}
