//! Where randomness comes from: the embedder. This crate never asks the system.

/// A source of cryptographically secure random bytes.
///
/// Used for key exchange cookies and ephemeral X25519 keys. The one exception is the ML-KEM-768
/// half of `mlkem768x25519-sha256`, whose library draws its own randomness and takes none.
pub trait Entropy {
    /// Fills the whole slice with unpredictable bytes.
    fn fill(&mut self, out: &mut [u8]);
}

impl<F: FnMut(&mut [u8])> Entropy for F {
    fn fill(&mut self, out: &mut [u8]) {
        self(out);
    }
}
