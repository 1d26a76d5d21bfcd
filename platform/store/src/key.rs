//! Where a value is kept: a path of names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A path such as `/nodes/web-1`: it starts with `/`, its segments are not empty, it has no control
/// characters and at most [`KEY_BYTES_MAX`] bytes. Keys sort by their bytes. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

/// Text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no backend key: {reason}")]
pub struct ParseKeyError {
    /// What was given, cut to 64 characters.
    pub given: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

impl Key {
    /// Reads a key. Fails with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, ParseKeyError> {
        let fail = |reason| Err(ParseKeyError { given: text.chars().take(64).collect(), reason });
        if text.len() > KEY_BYTES_MAX {
            return fail("it is longer than 1024 bytes");
        }
        let Some(path) = text.strip_prefix('/') else {
            return fail("it does not start with a slash");
        };
        if path.split('/').any(str::is_empty) {
            return fail("a segment of it is empty");
        }
        if text.chars().any(char::is_control) {
            return fail("it has a control character");
        }
        Ok(Self(text.into()))
    }

    /// Above all keys: nothing is kept there, and everything is below it.
    pub fn root() -> Self {
        Self("".into())
    }

    /// The key one segment below: `/nodes` and `web-1` give `/nodes/web-1`. A segment has no slash.
    pub fn child(&self, segment: &str) -> Result<Self, ParseKeyError> {
        if segment.contains('/') {
            let given = segment.chars().take(64).collect();
            return Err(ParseKeyError { given, reason: "a segment has no slash" });
        }
        Self::parse(&format!("{self}/{segment}"))
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment: `web-1` of `/nodes/web-1`.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// True for this key itself and for everything below it: `/nodes` contains `/nodes/web-1`, but not
    /// `/nodes-old/web-1`.
    pub fn contains(&self, other: &Self) -> bool {
        other.0.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The half-open interval of texts in which every key below this one lies, this key excluded.
    pub(crate) fn below(&self) -> (String, String) {
        // '0' is the byte behind '/'.
        (format!("{self}/"), format!("{self}0"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        Self::parse(text)
    }
}

impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("/{}", "x".repeat(KEY_BYTES_MAX));
        for text in ["", "/", "nodes", "//", "/a//b", "/a/", "/a\nb", "/a\0", long.as_str()] {
            assert!(Key::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn everything_is_below_the_root() {
        let (root, web) = (Key::root(), Key::parse("/nodes/web-1").unwrap());
        assert!(root.contains(&web) && root.contains(&root) && !web.contains(&root));
        assert_eq!(root.child("nodes").unwrap().as_str(), "/nodes");
        let (from, to) = root.below();
        assert!(root < web && from.as_str() < web.as_str() && web.as_str() < to.as_str());
    }

    #[test]
    fn children_stay_below_their_parent() {
        let nodes = Key::parse("/nodes").unwrap();
        let web = nodes.child("web-1").unwrap();
        assert_eq!(web.as_str(), "/nodes/web-1");
        assert_eq!(web.name(), "web-1");
        assert!(nodes.contains(&web) && nodes.contains(&nodes) && !web.contains(&nodes));
        assert!(!nodes.contains(&Key::parse("/nodes-old/web-1").unwrap()));
        assert!(nodes.child("a/b").is_err() && nodes.child("").is_err());
        let (from, to) = nodes.below();
        assert!(from.as_str() < web.as_str() && web.as_str() < to.as_str());
    }
}
