//! What is wrong with a document, all of it at once.

use std::fmt;

/// One mistake, with the place where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceError {
    /// Which document of the text, counted from 1.
    pub document: usize,
    /// The line in the text, counted from 1; absent for JSON.
    pub line: Option<usize>,
    /// The key, such as `spec.options.max_session_ttl`; empty for the document itself.
    pub path: String,
    /// What is wrong, what was expected, and a near miss if there is one.
    pub message: String,
}

/// Every mistake of a text. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceErrors(pub(crate) Vec<ResourceError>);

impl ResourceErrors {
    /// The mistakes in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &ResourceError> {
        self.0.iter()
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if !self.path.is_empty() {
            write!(f, ", {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Display for ResourceErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(error, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ResourceError {}
impl std::error::Error for ResourceErrors {}
