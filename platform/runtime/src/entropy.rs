//! Randomness from the operating system's generator.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Fills a buffer with random bytes.
pub fn fill_random(out: &mut [u8]) {
    SystemRandom::new()
        .fill(out)
        .expect("the operating system's generator never fails once the process runs");
}

/// An array of random bytes.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill_random(&mut out);
    out
}

/// A random number, to seed jitter.
pub fn random_u64() -> u64 {
    u64::from_le_bytes(random_bytes())
}
