//! Labels of resources.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Most labels on one resource.
pub const LABELS_MAX: usize = 128;
/// Longest key in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;
/// Longest value in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 1024;

/// Keys and values by which resources are found and rules are written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Labels that are too many, too long or misshapen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("labels: {0}")]
pub struct ParseLabelsError(pub String);

impl Labels {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All pairs in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// No labels at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one label, within the bounds.
    pub fn insert(&mut self, key: String, value: String) -> Result<(), ParseLabelsError> {
        let mut next = self.0.clone();
        next.insert(key, value);
        *self = Self::try_from(next)?;
        Ok(())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = ParseLabelsError;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, ParseLabelsError> {
        if map.len() > LABELS_MAX {
            return Err(ParseLabelsError(format!("{} labels, at most {LABELS_MAX}", map.len())));
        }
        for (key, value) in &map {
            if key.is_empty()
                || key.len() > LABEL_KEY_BYTES_MAX
                || key.chars().any(|c| c.is_control() || c == '=' || c == ',')
            {
                return Err(ParseLabelsError(format!(
                    "the key {:?} is empty, longer than {LABEL_KEY_BYTES_MAX} bytes or has = , or a control character",
                    key.chars().take(64).collect::<String>()
                )));
            }
            if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
                return Err(ParseLabelsError(format!(
                    "the value of {key} is longer than {LABEL_VALUE_BYTES_MAX} bytes or has a control character"
                )));
            }
        }
        Ok(Self(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl FromStr for Labels {
    type Err = ParseLabelsError;

    /// Reads `key=value,key=value`.
    fn from_str(s: &str) -> Result<Self, ParseLabelsError> {
        let mut map = BTreeMap::new();
        for pair in s.split(',').filter(|p| !p.trim().is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| ParseLabelsError(format!("{pair:?} is not key=value")))?;
            map.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        Self::try_from(map)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_back_what_they_print() {
        let labels: Labels = "env=dev, team=infra".parse().unwrap();
        assert_eq!(labels.to_string(), "env=dev,team=infra");
        assert_eq!(labels.get("env"), Some("dev"));
    }

    #[test]
    fn labels_are_bounded() {
        let many: BTreeMap<_, _> = (0..=LABELS_MAX).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(Labels::try_from(many).is_err());
        assert!("novalue".parse::<Labels>().is_err());
    }
}
