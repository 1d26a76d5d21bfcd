//! Reads typed fields out of a [`Tree`], noting every mistake instead of stopping at the first.
//!
//! A function that reads something returns `None` only when it has noted why.

use crate::error::{ResourceError, ResourceErrors};
use crate::tree::{Key, Tree, Value, short};
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use wayleave_vocab::{Ttl, Wall};

/// Most entries of a list, and of a map, in a resource.
pub const ENTRIES_MAX: usize = 1024;
/// Longest text of a field in bytes, unless the field says otherwise.
pub const FIELD_BYTES_MAX: usize = 4096;
/// Most mistakes that are reported; more are cut.
const ERRORS_MAX: usize = 200;
/// A suggestion is a near miss from this similarity on.
const NEAR_MISS: f64 = 0.75;

/// Collects the mistakes of one document.
pub(crate) struct Report {
    document: usize,
    errors: RefCell<Vec<ResourceError>>,
}

impl Report {
    pub(crate) fn new(document: usize) -> Self {
        Self { document, errors: RefCell::default() }
    }

    fn note(&self, line: usize, path: &str, message: String) {
        let mut errors = self.errors.borrow_mut();
        if errors.len() < ERRORS_MAX {
            errors.push(ResourceError {
                document: self.document,
                line: (line > 0).then_some(line),
                path: path.to_owned(),
                message,
            });
        }
    }

    /// The value, unless anything was noted.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, ResourceErrors> {
        let mut errors = self.errors.into_inner();
        match value {
            Some(value) if errors.is_empty() => Ok(value),
            Some(_) | None => {
                errors.sort_by_key(|error| error.line);
                Err(ResourceErrors(errors))
            }
        }
    }
}

/// A value in the tree and where it is.
#[derive(Clone)]
pub(crate) struct At<'a> {
    pub(crate) tree: &'a Tree,
    path: String,
    report: &'a Report,
}

impl<'a> At<'a> {
    pub(crate) fn root(tree: &'a Tree, report: &'a Report) -> Self {
        Self { tree, path: String::new(), report }
    }

    /// Notes a mistake at this value.
    pub(crate) fn fail<T>(&self, message: impl fmt::Display) -> Option<T> {
        self.report.note(self.tree.line, &self.path, message.to_string());
        None
    }

    fn describe(&self) -> String {
        match &self.tree.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar { text, .. } => format!("{:?}", short(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.fail(format_args!("expected {what}, found {}", self.describe()))
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&'a str> {
        match &self.tree.value {
            Value::Scalar { text, .. } if text.len() > FIELD_BYTES_MAX => {
                self.fail(format_args!("has {} bytes, at most {FIELD_BYTES_MAX}", text.len()))
            }
            Value::Scalar { text, .. } => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => self.expected("a text"),
        }
    }

    /// Text without control characters.
    pub(crate) fn line_of_text(&self) -> Option<String> {
        let text = self.text()?;
        if text.chars().any(char::is_control) {
            return self.fail("control characters are not accepted here");
        }
        Some(text.to_owned())
    }

    /// A boolean, as YAML 1.1 writes them too.
    pub(crate) fn flag(&self) -> Option<bool> {
        if let Value::Scalar { text, .. } = &self.tree.value {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "y" => return Some(true),
                "false" | "no" | "off" | "n" => return Some(false),
                _ => {}
            }
        }
        self.expected("true or false")
    }

    /// A value that knows how to read itself.
    pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Option<T> {
        self.text()?.parse().map_err(|error| self.fail::<()>(error)).ok()
    }

    /// A whole number.
    pub(crate) fn number<T: FromStr>(&self, what: &str) -> Option<T> {
        match self.text()?.parse() {
            Ok(number) => Some(number),
            Err(_) => self.expected(what),
        }
    }

    /// A duration; `never`, `0` and `0s` mean none.
    pub(crate) fn duration(&self) -> Option<Option<Ttl>> {
        let text = self.text()?;
        if text == "never" {
            return Some(None);
        }
        let ttl: Ttl = self.parse()?;
        Some((ttl.0 > Duration::ZERO).then_some(ttl))
    }

    /// A point in time as RFC 3339 writes it.
    pub(crate) fn time(&self) -> Option<Wall> {
        let parsed = self.text()?.parse::<jiff::Timestamp>().ok();
        match parsed.and_then(|t| u64::try_from(t.as_millisecond()).ok()) {
            Some(ms) => Some(Wall::from_ms(ms)),
            None => self.expected("a time such as 2026-01-31T12:00:00Z"),
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        if let Value::Scalar { text, .. } = &self.tree.value
            && let Some((_, value)) = words.iter().find(|(word, _)| word == text)
        {
            return Some(*value);
        }
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.expected(&format!("one of {}", all.join(", ")))
    }

    /// The entries of a list.
    pub(crate) fn items(&self) -> Option<Vec<Self>> {
        let Value::List(items) = &self.tree.value else { return self.expected("a list") };
        self.bounded(items.len())?;
        Some(items.iter().enumerate().map(|(n, tree)| self.below(tree, &format!("[{n}]"))).collect())
    }

    /// The entries of a list, or the one scalar that stands for it.
    pub(crate) fn one_or_more(&self) -> Option<Vec<Self>> {
        match &self.tree.value {
            Value::Scalar { .. } => Some(vec![self.clone()]),
            Value::Null | Value::List(_) | Value::Map(_) => self.items(),
        }
    }

    /// Every entry read by one function; a mistake in one does not hide the others.
    pub(crate) fn each<T, C: FromIterator<T>>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<C> {
        all(self.items()?.iter().map(read))
    }

    /// As [`At::each`], where one scalar may stand for a list of one.
    pub(crate) fn each_of_one_or_more<T, C: FromIterator<T>>(
        &self,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<C> {
        all(self.one_or_more()?.iter().map(read))
    }

    /// The pairs of a map whose keys are data.
    pub(crate) fn pairs(&self) -> Option<Vec<(&'a str, Self)>> {
        let Value::Map(entries) = &self.tree.value else { return self.expected("a map") };
        self.bounded(entries.len())?;
        Some(
            entries
                .iter()
                .map(|(key, tree)| (key.text.as_str(), self.below(tree, &format!(".{}", short(&key.text)))))
                .collect(),
        )
    }

    /// The fields of a map whose keys are known.
    pub(crate) fn fields(&self) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.tree.value else { return self.expected("a map") };
        Some(Fields { at: self.clone(), entries, known: Vec::new() })
    }

    /// True for nothing, an empty list or map, or an empty text: what demands nothing.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.tree.value {
            Value::Null => true,
            Value::Scalar { text, .. } => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    /// The value as data that is kept but not understood.
    pub(crate) fn data(&self) -> serde_json::Value {
        data(self.tree)
    }

    fn bounded(&self, entries: usize) -> Option<()> {
        if entries > ENTRIES_MAX {
            return self.fail(format_args!("has {entries} entries, at most {ENTRIES_MAX}"));
        }
        Some(())
    }

    fn below(&self, tree: &'a Tree, step: &str) -> Self {
        let path = format!("{}{step}", self.path);
        Self { tree, path: path.trim_start_matches('.').to_owned(), report: self.report }
    }
}

/// The known fields of one map.
pub(crate) struct Fields<'a> {
    at: At<'a>,
    entries: &'a [(Key, Tree)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The map itself.
    pub(crate) fn at(&self) -> &At<'a> {
        &self.at
    }

    /// A field that may be absent (or null).
    pub(crate) fn take(&mut self, name: &'static str) -> Option<At<'a>> {
        self.known.push(name);
        let (_, tree) = self.entries.iter().find(|(key, _)| key.text == name)?;
        (tree.value != Value::Null).then(|| self.at.below(tree, &format!(".{name}")))
    }

    /// Reads an optional field: the outer `None` is a mistake (noted), the inner one absence.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.take(name) {
            None => Some(None),
            Some(at) => read(&at).map(Some),
        }
    }

    /// Reads a field or takes the default of its type when it is absent.
    pub(crate) fn or_default<T: Default>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<T> {
        self.optional(name, read).map(Option::unwrap_or_default)
    }

    /// Reads a field that must be there.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<T> {
        match self.take(name) {
            Some(at) => read(&at),
            None => self.at.fail(format_args!("the field {name} is missing")),
        }
    }

    /// A field known to the field but not built: passes while it demands nothing.
    pub(crate) fn refuse(&mut self, name: &'static str, passes: impl FnOnce(&At<'a>) -> bool, reason: &str) {
        if let Some(at) = self.take(name)
            && !at.is_empty()
            && !passes(&at)
        {
            at.fail::<()>(format_args!("{name} is not supported yet: {reason}"));
        }
    }

    /// Notes every field that nothing asked for.
    pub(crate) fn finish(self) {
        for (key, _) in self.entries.iter().filter(|(key, _)| !self.known.contains(&key.text.as_str())) {
            let near = near_miss(&key.text, self.known.iter().copied())
                .map_or_else(String::new, |name| format!("; did you mean {name}?"));
            let path = format!("{}.{}", self.at.path, short(&key.text)).trim_start_matches('.').to_owned();
            self.at.report.note(key.line, &path, format!("unknown field{near}"));
        }
    }
}

/// The candidate that a mistyped word most likely meant.
pub(crate) fn near_miss<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let word = short(word);
    candidates
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= NEAR_MISS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn all<T, C: FromIterator<T>>(read: impl Iterator<Item = Option<T>>) -> Option<C> {
    let read: Vec<Option<T>> = read.collect();
    read.into_iter().collect()
}

fn data(tree: &Tree) -> serde_json::Value {
    use serde_json::Value as Json;
    match &tree.value {
        Value::Null => Json::Null,
        Value::Scalar { text, plain: true } => match text.as_str() {
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            _ => text.parse::<i64>().map_or_else(|_| Json::String(text.clone()), Json::from),
        },
        Value::Scalar { text, plain: false } => Json::String(text.clone()),
        Value::List(items) => Json::Array(items.iter().map(data).collect()),
        Value::Map(entries) => {
            let sorted: std::collections::BTreeMap<_, _> =
                entries.iter().map(|(key, tree)| (key.text.clone(), data(tree))).collect();
            Json::Object(sorted.into_iter().collect())
        }
    }
}
