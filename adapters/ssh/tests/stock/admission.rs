//! Coming.
pub(crate) const CASES: &[crate::Case] = &[];
