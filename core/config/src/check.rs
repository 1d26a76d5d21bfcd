//! Holds a file's keys against the table: which are unknown, and which are not here and not off.
//!
//! Values of supported keys are read by `section`; this pass never looks at them, except that a
//! section must be a map and a list of sections a list of maps.

use crate::error::{INSTANCE_ALIAS, INSTANCE_SECTION, KeyPath, Report, cut};
use crate::keys::{self, Class, Key, Kind, Passes};
use crate::yaml::{Entry, Node, Value};

/// How alike a near miss is, of 1.
const SIMILARITY_MIN: f64 = 0.84;

/// Reports every key of `root` that is unknown or not here.
pub(crate) fn check(report: &Report, root: &Node) {
    let Value::Map(entries) = &root.value else {
        let found = if matches!(root.value, Value::Scalar(_)) { "plain text" } else { root.kind() };
        report.mistake(
            root.place,
            &KeyPath::default(),
            found,
            "sections such as auth_service: and ssh_service:",
        );
        return;
    };
    let place = |name: &str| entries.iter().find(|entry| entry.key == name).map(|entry| entry.place);
    if let (Some(ours), Some(alias)) = (place(INSTANCE_SECTION), place(INSTANCE_ALIAS)) {
        report.mistake(
            ours.max(alias),
            &KeyPath::default(),
            format!("both {INSTANCE_SECTION}: and {INSTANCE_ALIAS}:"),
            "one of them: they are two names of one section",
        );
    }
    check_map(report, &KeyPath::default(), entries, true);
}

/// `is_on` is false below a service that is switched off: there only unknown keys matter.
fn check_map(report: &Report, path: &KeyPath, entries: &[Entry], is_on: bool) {
    for entry in entries {
        let path = path.child(&entry.key);
        let Some(key) = keys::find(&path.table) else {
            report_unknown(report, &path, entry);
            continue;
        };
        match &key.class {
            Class::Supported { kind: Kind::Section, .. } => check_section(report, &path, &entry.value, is_on),
            Class::Supported { kind: Kind::Sections, .. } => check_items(report, &path, &entry.value, is_on),
            Class::Supported { .. } => {}
            Class::Elsewhere { passes, instead } => {
                if is_on && !passes.admits(&entry.value) {
                    let found = passes.describe(&entry.value);
                    let expected = format!("{} ({instead})", passes.expected());
                    report.mistake(entry.place, &path, found, expected);
                }
            }
        }
    }
}

fn check_section(report: &Report, path: &KeyPath, node: &Node, is_on: bool) {
    match &node.value {
        Value::Null => {}
        Value::Map(entries) => {
            let is_service = keys::parent(&path.table).is_empty();
            check_map(report, path, entries, is_on && !(is_service && is_disabled(node)));
        }
        Value::Scalar(_) | Value::List(_) => {
            report.mistake(node.place, path, node.kind(), Kind::Section.expected());
        }
    }
}

fn check_items(report: &Report, path: &KeyPath, node: &Node, is_on: bool) {
    let Value::List(items) = &node.value else {
        if !matches!(node.value, Value::Null) {
            report.mistake(node.place, path, node.kind(), Kind::Sections.expected());
        }
        return;
    };
    for (index, item) in items.iter().enumerate() {
        let path = path.item(index);
        match &item.value {
            Value::Map(entries) => check_map(report, &path, entries, is_on),
            Value::Null | Value::Scalar(_) | Value::List(_) => {
                report.mistake(item.place, &path, item.kind(), Kind::Section.expected());
            }
        }
    }
}

fn report_unknown(report: &Report, path: &KeyPath, entry: &Entry) {
    let suggestion = if report.has_room() { near_miss(&path.table, &entry.key) } else { None };
    let parent = keys::parent(&path.table);
    let expected = if parent.is_empty() {
        "a section of docs/reference/config.md".to_owned()
    } else {
        format!("a key of {}, see docs/reference/config.md", cut(parent))
    };
    report.mistake_with(entry.place, path, "an unknown key", expected, suggestion);
}

/// The key that the writer may have meant: alike in the same section, or the same in another.
fn near_miss(path: &str, written: &str) -> Option<String> {
    let written: String =
        written.chars().take(crate::error::QUOTED_CHARS_MAX).collect::<String>().to_lowercase();
    let parent = keys::parent(path);
    let alike = |key: &&Key| {
        let leaf = keys::leaf(key.path);
        let score = strsim::normalized_damerau_levenshtein(&written, leaf);
        score.max(strsim::jaro_winkler(&written, leaf) * 0.95)
    };
    let neighbour = keys::all()
        .filter(|key| keys::parent(key.path) == parent)
        .map(|key| (alike(&key), keys::leaf(key.path)))
        .filter(|(score, _)| *score >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, leaf)) = neighbour {
        return Some(leaf.to_owned());
    }
    keys::all()
        .filter(|key| matches!(key.class, Class::Supported { .. }))
        .find(|key| keys::leaf(key.path) == written && keys::parent(key.path) != parent)
        .map(|key| key.path.to_owned())
}

/// A YAML 1.1 boolean in any case.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "on" | "true" => Some(true),
        "no" | "n" | "off" | "false" => Some(false),
        _ => None,
    }
}

/// True for a map with `enabled: no`.
fn is_disabled(node: &Node) -> bool {
    let Value::Map(entries) = &node.value else { return false };
    entries.iter().any(|entry| {
        entry.key == "enabled"
            && matches!(&entry.value.value, Value::Scalar(text) if flag(text) == Some(false))
    })
}

impl Passes {
    fn admits(&self, node: &Node) -> bool {
        match (self, &node.value) {
            (_, Value::Null) => true,
            (Self::Disabled, Value::Scalar(text)) => text.is_empty() || flag(text) == Some(false),
            (Self::Disabled, Value::List(items)) => items.is_empty(),
            (Self::Disabled, Value::Map(entries)) => entries.is_empty() || is_disabled(node),
            (Self::OneOf(words), Value::Scalar(text)) => words.iter().any(|word| is_same(word, text)),
            (Self::OneOf(_), Value::List(items)) => {
                !items.is_empty()
                    && items.iter().all(|item| self.admits(item) && !matches!(item.value, Value::Null))
            }
            (Self::OneOf(_), Value::Map(_)) => false,
        }
    }

    /// What the error shows. A value of a key that is not here may be a password: only words are repeated.
    fn describe(&self, node: &Node) -> String {
        match (self, &node.value) {
            (Self::Disabled, Value::Scalar(text)) if flag(text).is_some() => node.describe(),
            (Self::Disabled, Value::Scalar(_)) => "a value".to_owned(),
            (Self::OneOf(_), Value::List(items)) => {
                let wrong = items.iter().find(|item| matches!(item.value, Value::Null) || !self.admits(item));
                wrong.map_or_else(|| node.describe(), Node::describe)
            }
            (Self::Disabled | Self::OneOf(_), _) => node.describe(),
        }
    }

    /// The values that pass, in words.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Disabled => "it absent or switched off".to_owned(),
            Self::OneOf(words) => keys::one_of(words),
        }
    }
}

/// Words are the same in any case, and all spellings of a boolean are one.
pub(crate) fn is_same(word: &str, text: &str) -> bool {
    word.eq_ignore_ascii_case(text) || flag(word).is_some() && flag(word) == flag(text)
}
