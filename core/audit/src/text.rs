//! Text of bounded length: an event is trimmed, never dropped.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Longest text in an event in bytes, marker included.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most entries of a list in an event.
pub const LIST_MAX: usize = 256;

/// Text of at most [`TEXT_BYTES_MAX`] bytes. What is longer ends in `…[N bytes trimmed]`.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// The text, trimmed.
    pub fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        if text.len() <= TEXT_BYTES_MAX {
            return Self(text);
        }
        // The marker's own length depends on the number; 40 bytes hold any.
        let mut end = TEXT_BYTES_MAX - 40;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let kept = text.get(..end).unwrap_or_default();
        Self(format!("{kept}…[{} bytes trimmed]", text.len() - end))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A list of at most [`LIST_MAX`] entries; the last one says how many are left out.
pub fn bounded_list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> Vec<Text> {
    let mut items = items.into_iter();
    let mut list: Vec<Text> =
        items.by_ref().take(LIST_MAX - 1).map(|item| Text::new(item.to_string())).collect();
    match (items.next(), items.count()) {
        (None, _) => {}
        (Some(last), 0) => list.push(Text::new(last.to_string())),
        (Some(_), more) => list.push(Text::new(format!("…[{} more]", more.saturating_add(1)))),
    }
    list
}

impl<T: Into<String>> From<T> for Text {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_long_text_is_trimmed_with_a_marker() {
        let text = Text::new("é".repeat(TEXT_BYTES_MAX));
        assert!(text.as_str().len() <= TEXT_BYTES_MAX);
        assert!(text.as_str().ends_with("…[4136 bytes trimmed]"), "{}", &text.as_str()[4000..]);
        assert_eq!(Text::new(text.as_str()), text, "trimming twice changes nothing");
        assert_eq!(Text::new("short").as_str(), "short");
    }

    #[test]
    fn f_long_lists_are_trimmed_with_a_marker() {
        assert_eq!(bounded_list(0..LIST_MAX).len(), LIST_MAX);
        let list = bounded_list(0..1000);
        assert_eq!(list.len(), LIST_MAX);
        assert_eq!(list.last(), Some(&Text::new("…[745 more]")));
        assert!(bounded_list::<u8>([]).is_empty());
    }
}
