//! What is wrong with a configuration file: every mistake with its place, never a secret's text.

use std::cell::{Cell, RefCell};
use std::fmt;

/// Most mistakes that are listed; the rest is counted.
pub const ERRORS_MAX: usize = 100;
/// Longest piece of the file that an error repeats, in characters.
pub(crate) const QUOTED_CHARS_MAX: usize = 64;

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file's name as the caller gave it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// The path of the key, such as `proxy_service.https_keypairs[0].key_file`; empty for the file as a whole.
    pub key: String,
    /// What stands there. Values that may be secret are named by their kind only.
    pub found: String,
    /// What belongs there.
    pub expected: String,
    /// A key that the writer may have meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}; expected {}", self.found, self.expected)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean {suggestion}?)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// All mistakes of a configuration file, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The mistakes, at most [`ERRORS_MAX`], at least one.
    pub errors: Vec<ConfigError>,
    /// How many more there are.
    pub left_out: usize,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(error, f)?;
        }
        match self.left_out {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// A place in the file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Place {
    /// Where the file begins; errors about the whole file point here.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// The key path of a node: as the key table spells it and as the writer of the file knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyPath {
    /// `wayleave.join_params.method`, `proxy_service.https_keypairs[].key_file`.
    pub(crate) table: String,
    /// `teleport.join_params.method`, `proxy_service.https_keypairs[0].key_file`.
    pub(crate) shown: String,
}

impl KeyPath {
    pub(crate) fn child(&self, key: &str) -> Self {
        let table_key = match key {
            INSTANCE_ALIAS if self.table.is_empty() => INSTANCE_SECTION,
            // A key is one word. `auth_service.enabled: no` on one line must not pass for a path.
            key if key.contains(['.', '[', ']']) || key.chars().any(char::is_control) => NO_KEY,
            key => key,
        };
        Self { table: join(&self.table, table_key), shown: join(&self.shown, &cut(key)) }
    }

    pub(crate) fn item(&self, index: usize) -> Self {
        Self { table: format!("{}[]", self.table), shown: format!("{}[{index}]", self.shown) }
    }
}

/// The section about the process as a whole.
pub(crate) const INSTANCE_SECTION: &str = "wayleave";
/// The field's name for the same section, accepted so that existing files load.
pub(crate) const INSTANCE_ALIAS: &str = "teleport";

/// Stands in the table's path for what cannot be a key of the table.
const NO_KEY: &str = "?";

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// The first characters of a text, without control characters.
pub(crate) fn cut(text: &str) -> String {
    let mut short: String =
        text.chars().take(QUOTED_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Collects mistakes while one file is read.
pub(crate) struct Report {
    file: String,
    errors: RefCell<Vec<(Place, ConfigError)>>,
    left_out: Cell<usize>,
    /// Which keys of the table were asked for, and as what: the table's own test compares.
    #[cfg(test)]
    pub(crate) asked: RefCell<std::collections::BTreeMap<String, std::mem::Discriminant<crate::keys::Kind>>>,
}

impl Report {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: RefCell::new(Vec::new()),
            left_out: Cell::new(0),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// False when one more mistake would only be counted: its suggestion need not be computed.
    pub(crate) fn has_room(&self) -> bool {
        self.errors.borrow().len() < ERRORS_MAX
    }

    pub(crate) fn mistake(
        &self,
        place: Place,
        path: &KeyPath,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.mistake_with(place, path, found, expected, None);
    }

    pub(crate) fn mistake_with(
        &self,
        place: Place,
        path: &KeyPath,
        found: impl Into<String>,
        expected: impl Into<String>,
        suggestion: Option<String>,
    ) {
        if !self.has_room() {
            self.left_out.set(self.left_out.get().saturating_add(1));
            return;
        }
        let error = ConfigError {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            key: path.shown.clone(),
            found: found.into(),
            expected: expected.into(),
            suggestion,
        };
        self.errors.borrow_mut().push((place, error));
    }

    /// Gives `value` if nothing was wrong, and otherwise every mistake in the order of the file.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            if let Some(value) = value {
                return Ok(value);
            }
            // Unreachable while every reader reports what it cannot read; refusing is the safe answer.
            let refusal = ConfigError {
                file: self.file,
                line: 1,
                column: 1,
                key: String::new(),
                found: "a file that cannot be read as a configuration".to_owned(),
                expected: "the keys of docs/reference/config.md".to_owned(),
                suggestion: None,
            };
            return Err(ConfigErrors { errors: vec![refusal], left_out: 0 });
        }
        errors.sort_by_key(|(place, _)| *place);
        let errors = errors.into_iter().map(|(_, error)| error).collect();
        Err(ConfigErrors { errors, left_out: self.left_out.get() })
    }
}
