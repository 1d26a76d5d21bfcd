//! YAML text as a tree in which every node knows its place. Bounded in bytes, depth and expansion.
//!
//! It knows nothing of keys and types: scalars stay text, and `check` and `section` give them
//! meaning. Aliases are expanded within a budget; merge keys, tags and several documents are
//! refused, because a configuration needs none of them.

use crate::error::{KeyPath, Place, Report, cut};
use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span};
use std::collections::HashMap;

/// Largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of maps and lists.
pub const DEPTH_MAX: usize = 32;
/// Most nodes after aliases are expanded.
pub const NODES_MAX: usize = 65_536;
/// Most bytes of text after aliases are expanded.
pub const TEXT_BYTES_MAX: usize = 2 * FILE_BYTES_MAX;

/// One value of the file and where it begins.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Clone)]
pub(crate) enum Value {
    /// Nothing written, `~` or `null`.
    Null,
    /// Text, a number or a boolean, as written.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn scalar(place: Place, text: &str) -> Self {
        Self { place, value: Value::Scalar(text.to_owned()) }
    }

    /// The node's kind in words, without its content.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The node in words: text in quotes, the rest by its kind.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(text) => format!("\"{}\"", cut(text)),
            Value::Null | Value::List(_) | Value::Map(_) => self.kind().to_owned(),
        }
    }
}

/// Reads the one document of `text`. `None` means that the reason is in the report.
pub(crate) fn parse(text: &str, report: &Report) -> Option<Node> {
    let whole = KeyPath::default();
    if text.len() > FILE_BYTES_MAX {
        let found = format!("a file of {} bytes", text.len());
        report.mistake(Place::START, &whole, found, format!("at most {FILE_BYTES_MAX} bytes"));
        return None;
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = DEPTH_MAX;
    options.block_nesting_limit = DEPTH_MAX;
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let step = match next {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(syntax(&error)),
        };
        if let Err(refusal) = step {
            report.mistake(refusal.place, &whole, refusal.found, refusal.expected);
            return None;
        }
    }
    let root = builder.root.filter(|node| !matches!(node.value, Value::Null));
    if let Some(root) = &root {
        report_duplicates(report, &whole, root);
    } else {
        report.mistake(
            Place::START,
            &whole,
            "an empty file",
            "at least one of auth_service, proxy_service and ssh_service",
        );
    }
    root
}

/// A mistake after which the rest of the file cannot be understood.
struct Refusal {
    place: Place,
    found: String,
    expected: String,
}

impl Refusal {
    fn new(place: Place, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { place, found: found.into(), expected: expected.into() }
    }
}

/// How large a subtree is.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    height: usize,
}

/// A collection that has begun and not ended.
struct Open {
    place: Place,
    anchor: usize,
    size: Size,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Place)> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    spent: Size,
    documents: usize,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Refusal> {
        let place = Place { line: span.start.line(), column: span.start.col().saturating_add(1) };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(place, tag.is_some())?;
                self.scalar(place, &text, style, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_tag(place, tag.is_some())?;
                self.begin(place, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_tag(place, tag.is_some())?;
                self.begin(place, anchor, Content::Map { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(place, anchor),
            Event::DocumentStart(..) => {
                self.documents = self.documents.saturating_add(1);
                if self.documents > 1 {
                    return Err(Refusal::new(place, "a second document", "one document in the file"));
                }
                Ok(())
            }
            // The enum may grow: what is not a node carries nothing for us.
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, place: Place, text: &str, style: ScalarStyle, anchor: usize) -> Result<(), Refusal> {
        let size = Size { nodes: 1, bytes: text.len(), height: 0 };
        self.spend(place, size)?;
        if self.awaits_key() {
            return self.key(place, text);
        }
        let is_null = style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL");
        let value = if is_null { Value::Null } else { Value::Scalar(text.to_owned()) };
        self.finish(Node { place, value }, size, anchor)
    }

    fn key(&mut self, place: Place, text: &str) -> Result<(), Refusal> {
        if text == "<<" {
            return Err(Refusal::new(place, "the merge key <<", "the keys themselves, written out"));
        }
        if let Some(Open { content: Content::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((text.to_owned(), place));
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), Refusal> {
        if self.awaits_key() {
            return Err(Refusal::new(place, "a map or list as a key", "text as a key"));
        }
        let size = Size { nodes: 1, bytes: 0, height: 0 };
        self.spend(place, size)?;
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(place));
        }
        self.open.push(Open { place, anchor, size, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Refusal> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, .. } => Value::Map(entries),
        };
        let size = Size { height: open.size.height.saturating_add(1), ..open.size };
        self.finish(Node { place: open.place, value }, size, open.anchor)
    }

    fn alias(&mut self, place: Place, anchor: usize) -> Result<(), Refusal> {
        if self.awaits_key() {
            return Err(Refusal::new(place, "an alias as a key", "text as a key"));
        }
        let Some((_, size)) = self.anchors.get(&anchor) else {
            return Err(Refusal::new(
                place,
                "an alias inside its own anchor",
                "an anchor that ends before it",
            ));
        };
        let size = *size;
        if self.open.len().saturating_add(size.height) > DEPTH_MAX {
            return Err(too_deep(place));
        }
        self.spend(place, size)?;
        // Spent before it is copied: an alias bomb costs nothing.
        let Some((node, _)) = self.anchors.get(&anchor) else { return Ok(()) };
        let node = Node { place, value: node.value.clone() };
        self.finish(node, size, 0)
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node, size: Size, anchor: usize) -> Result<(), Refusal> {
        if anchor != 0 {
            self.spend(node.place, size)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.size.nodes = parent.size.nodes.saturating_add(size.nodes);
        parent.size.bytes = parent.size.bytes.saturating_add(size.bytes);
        parent.size.height = parent.size.height.max(size.height);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, key } => {
                if let Some((key, place)) = key.take() {
                    parent.size.bytes = parent.size.bytes.saturating_add(key.len());
                    entries.push(Entry { key, place, value: node });
                }
            }
        }
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: Content::Map { key: None, .. }, .. }))
    }

    fn spend(&mut self, place: Place, size: Size) -> Result<(), Refusal> {
        self.spent.nodes = self.spent.nodes.saturating_add(size.nodes);
        self.spent.bytes = self.spent.bytes.saturating_add(size.bytes);
        if self.spent.nodes > NODES_MAX {
            let expected = format!("at most {NODES_MAX} values, aliases expanded");
            return Err(Refusal::new(place, "too many values", expected));
        }
        if self.spent.bytes > TEXT_BYTES_MAX {
            let expected = format!("at most {TEXT_BYTES_MAX} bytes of text, aliases expanded");
            return Err(Refusal::new(place, "too much text", expected));
        }
        Ok(())
    }
}

fn refuse_tag(place: Place, is_tagged: bool) -> Result<(), Refusal> {
    if is_tagged { Err(Refusal::new(place, "a tag (!…)", "a plain value")) } else { Ok(()) }
}

fn too_deep(place: Place) -> Refusal {
    Refusal::new(
        place,
        "nesting that is too deep",
        format!("at most {DEPTH_MAX} maps and lists inside one another"),
    )
}

fn report_duplicates(report: &Report, path: &KeyPath, node: &Node) {
    match &node.value {
        Value::Null | Value::Scalar(_) => {}
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                report_duplicates(report, &path.item(index), item);
            }
        }
        Value::Map(entries) => {
            let mut first_lines: HashMap<&str, usize> = HashMap::new();
            for entry in entries {
                let path = path.child(&entry.key);
                match first_lines.get(entry.key.as_str()) {
                    Some(line) => report.mistake(
                        entry.place,
                        &path,
                        "the key a second time",
                        format!("each key once (it is already on line {line})"),
                    ),
                    None => {
                        first_lines.insert(&entry.key, entry.place.line);
                    }
                }
                report_duplicates(report, &path, &entry.value);
            }
        }
    }
}

/// The parser's complaint in words for people who write configurations.
fn syntax(error: &ScanError) -> Refusal {
    let mark = error.marker();
    let place = Place { line: mark.line().max(1), column: mark.col().saturating_add(1) };
    let (found, expected) = match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabInPlainScalar => ("a tab in the indentation".to_owned(), "spaces"),
        ErrorKind::MappingValueNotAllowed | ErrorKind::MappingKeyNotAllowed => (
            "a key where none can be".to_owned(),
            "the keys of one section each on its own line, indented alike, and values with a colon in quotes",
        ),
        ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::BlockSequenceEntryNotAllowed => (
            "a line that is indented unlike its neighbours".to_owned(),
            "the entries of one section indented by the same number of spaces",
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            ("a line without a colon".to_owned(), "key: value")
        }
        ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => {
            ("a quote that is never closed".to_owned(), "the closing quote")
        }
        ErrorKind::UnclosedFlowCollection { open } => {
            (format!("a {open} that is never closed"), "the closing bracket")
        }
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => (
            "something else where a bracketed list or map goes on".to_owned(),
            "a comma or the closing bracket",
        ),
        ErrorKind::MisplacedFlowCollectionEnd => {
            ("a closing bracket that nothing opened".to_owned(), "brackets in pairs")
        }
        ErrorKind::UnknownAnchor => ("an alias of something not defined".to_owned(), "an anchor before it"),
        ErrorKind::RecursionLimitExceeded => return too_deep(place),
        _ => (format!("invalid YAML ({})", cut(&error.info())), "YAML"),
    };
    Refusal::new(place, found, expected)
}
