//! What all streams of a process keep together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An account that all streams of a process share. Clones are the same account.
///
/// It refuses nobody: whoever finds it empty waits for his own acknowledgements, with the few bytes that every stream
/// may keep in any case.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    bytes_max: usize,
    bytes: AtomicUsize,
}

impl Budget {
    /// What a process may keep where nobody says otherwise.
    pub const BYTES_MAX: usize = 256 * 1024 * 1024;

    /// An account of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Account { bytes_max, bytes: AtomicUsize::new(0) }))
    }

    /// What is left. Several streams may see the same rest and take it together: the account is overdrawn by one write
    /// of each at most.
    pub fn left(&self) -> usize {
        self.0.bytes_max.saturating_sub(self.used())
    }

    /// What is kept.
    pub fn used(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Self::BYTES_MAX)
    }
}
