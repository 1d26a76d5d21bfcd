//! A document as a tree of scalars, lists and maps, with lines, before it has a meaning.
//!
//! Scalars keep their text: only the reader of a field knows whether `yes` is a word or a boolean. Duplicate keys,
//! tags and merge keys are refused, so that no two readers of one text can see different things.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;
use std::fmt;

/// Largest text in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most scalars, lists and maps in one text, after aliases are resolved.
pub const NODES_MAX: usize = 400_000;
/// Deepest nesting.
pub const DEPTH_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    /// 0 where the source has no lines.
    pub(crate) line: usize,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    /// `plain`: written without quotes, so it may be a number or a boolean.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Tree>),
    Map(Vec<(Key, Tree)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The text is not YAML, or YAML that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) document: usize,
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// Reads every document of a YAML text; empty documents are left out.
pub(crate) fn read_yaml(text: &str) -> Result<Vec<Tree>, SyntaxError> {
    let mut builder = Builder::default();
    if text.len() > TEXT_BYTES_MAX {
        return Err(builder.error(0, format!("the text has {} bytes, at most {TEXT_BYTES_MAX}", text.len())));
    }
    for next in Parser::new_from_str(text) {
        let (event, span) = match next {
            Ok(pair) => pair,
            Err(error) => return Err(builder.error(error.marker().line(), error.info().to_owned())),
        };
        builder.event(event, span.start.line())?;
    }
    Ok(builder.documents)
}

enum Open {
    List { line: usize, anchor: usize, items: Vec<Tree> },
    Map { line: usize, anchor: usize, entries: Vec<(Key, Tree)>, key: Option<Key> },
}

#[derive(Default)]
struct Builder {
    documents: Vec<Tree>,
    begun: usize,
    open: Vec<Open>,
    root: Option<Tree>,
    anchors: HashMap<usize, (Tree, usize)>,
    nodes: usize,
}

impl Builder {
    fn error(&self, line: usize, message: impl Into<String>) -> SyntaxError {
        SyntaxError { document: self.begun.max(1), line, message: message.into() }
    }

    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), SyntaxError> {
        match event {
            Event::DocumentStart(..) => {
                self.begun += 1;
                self.anchors.clear();
            }
            Event::DocumentEnd => {
                let root = self.root.take();
                self.documents.extend(root.filter(|tree| tree.value != Value::Null));
            }
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(self.error(line, "tags (!…) are not accepted here"));
                }
                let plain = style == ScalarStyle::Plain;
                let value = match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    _ => Value::Scalar { text: text.into_owned(), plain },
                };
                self.place(Tree { line, value }, anchor, 1)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(Open::List { line, anchor, items: Vec::new() }, tag.is_some(), line)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.begin(Open::Map { line, anchor, entries: Vec::new(), key: None }, tag.is_some(), line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { line, anchor, items }) => {
                    self.place(Tree { line, value: Value::List(items) }, anchor, 1)?;
                }
                Some(Open::Map { line, anchor, entries, .. }) => {
                    self.place(Tree { line, value: Value::Map(entries) }, anchor, 1)?;
                }
                None => return Err(self.error(line, "a list or map ends that did not begin")),
            },
            Event::Alias(id) => {
                let Some((tree, size)) = self.anchors.get(&id) else {
                    return Err(self.error(line, "this alias (*…) has no anchor (&…) before it"));
                };
                let (tree, size) = (tree.clone(), *size);
                self.place(tree, 0, size)?;
            }
            // Comments and stream marks carry no data; unresolved aliases are an error of the parser already.
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, open: Open, tagged: bool, line: usize) -> Result<(), SyntaxError> {
        if tagged {
            return Err(self.error(line, "tags (!…) are not accepted here"));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(self.error(line, format!("nested deeper than {DEPTH_MAX}")));
        }
        self.open.push(open);
        Ok(())
    }

    fn place(&mut self, tree: Tree, anchor: usize, size: usize) -> Result<(), SyntaxError> {
        let line = tree.line;
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > NODES_MAX {
            return Err(self.error(line, format!("more than {NODES_MAX} values")));
        }
        if anchor != 0 {
            let size = count(&tree);
            self.anchors.insert(anchor, (tree.clone(), size));
        }
        let problem = match self.open.last_mut() {
            None => {
                self.root = Some(tree);
                None
            }
            Some(Open::List { items, .. }) => {
                items.push(tree);
                None
            }
            Some(Open::Map { entries, key, .. }) => match key.take() {
                Some(key) => {
                    entries.push((key, tree));
                    None
                }
                None => match tree.value {
                    Value::Scalar { text, plain } if plain && text == "<<" => {
                        Some("merge keys (<<) are not accepted here".to_owned())
                    }
                    Value::Scalar { text, .. } if entries.iter().any(|(k, _)| k.text == text) => {
                        Some(format!("the key {:?} is given twice", short(&text)))
                    }
                    Value::Scalar { text, .. } => {
                        *key = Some(Key { text, line });
                        None
                    }
                    Value::Null | Value::List(_) | Value::Map(_) => Some("a key must be a word".to_owned()),
                },
            },
        };
        problem.map_or(Ok(()), |message| Err(self.error(line, message)))
    }
}

fn count(tree: &Tree) -> usize {
    match &tree.value {
        Value::Null | Value::Scalar { .. } => 1,
        Value::List(items) => items.iter().map(count).fold(1, usize::saturating_add),
        Value::Map(entries) => entries.iter().map(|(_, v)| count(v)).fold(1, usize::saturating_add),
    }
}

/// The first 64 characters of something given by somebody.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(|value| Self { line: 0, value })
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a resource")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Scalar { text: v.to_string(), plain: true })
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Scalar { text: v.to_string(), plain: true })
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Scalar { text: v.to_string(), plain: true })
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Scalar { text: v.to_string(), plain: true })
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Scalar { text: v.to_owned(), plain: false })
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Key, Tree)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(text) = map.next_key::<String>()? {
            if !seen.insert(text.clone()) {
                return Err(serde::de::Error::custom(format_args!(
                    "the key {:?} is given twice",
                    short(&text)
                )));
            }
            entries.push((Key { text, line: 0 }, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}
