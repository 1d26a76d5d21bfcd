//! Secrets: no `Debug`, no `Display`, no `Serialize`, wiped when dropped, exposed by one method.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Text that must never appear in a log, an error or a command line.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes the text; the caller's copy is gone.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Grep for this name to see every place that touches a secret.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

/// Bytes that must never appear in a log, an error or a command line.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the bytes; the caller's copy is gone.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves. Grep for this name to see every place that touches a secret.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}
