//! Evaluates a checked expression over one user and one resource.

use super::{Expression, FUEL, Node};
use crate::Subject;
use std::borrow::Cow;
use wayleave_vocab::Labels;

/// Longest text that an expression may produce, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What an expression may see.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) subject: Subject<'a>,
    /// The node's labels, or the resource's; absent when the question is about no one resource.
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) resource_name: Option<&'a str>,
    pub(crate) resource_kind: Option<&'a str>,
}

/// Why there is no answer. The asker treats it as not allowed, and as denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The expression is about a resource, and there is none.
    NoResource,
    /// Too much work.
    OutOfFuel,
}

/// What a part yields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Bool(bool),
    Text(Cow<'a, str>),
    List(Cow<'a, [String]>),
}

impl Expression {
    /// The answer of an expression that yields true or false.
    pub(crate) fn holds(&self, scope: &Scope<'_>) -> Result<bool, Unanswered> {
        let mut run = Run { scope, fuel: FUEL };
        run.truth(&self.root)
    }

    /// The texts of an expression that yields texts.
    pub(crate) fn texts(&self, scope: &Scope<'_>) -> Result<Vec<String>, Unanswered> {
        let mut run = Run { scope, fuel: FUEL };
        Ok(run.texts(&self.root)?.into_owned())
    }
}

struct Run<'s, 'a> {
    scope: &'s Scope<'a>,
    fuel: u32,
}

impl<'a> Run<'_, 'a> {
    fn burn(&mut self, steps: usize) -> Result<(), Unanswered> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.fuel = self.fuel.checked_sub(steps).ok_or(Unanswered::OutOfFuel)?;
        Ok(())
    }

    fn truth(&mut self, node: &'a Node) -> Result<bool, Unanswered> {
        match self.value(node)? {
            Value::Bool(truth) => Ok(truth),
            // The parser checked the types.
            Value::Text(_) | Value::List(_) => Ok(false),
        }
    }

    fn text(&mut self, node: &'a Node) -> Result<Cow<'a, str>, Unanswered> {
        match self.value(node)? {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::List(_) => Ok(Cow::Borrowed("")),
        }
    }

    fn texts(&mut self, node: &'a Node) -> Result<Cow<'a, [String]>, Unanswered> {
        match self.value(node)? {
            Value::List(list) => Ok(list),
            Value::Text(text) => Ok(Cow::Owned(vec![text.into_owned()])),
            Value::Bool(_) => Ok(Cow::Borrowed(&[])),
        }
    }

    fn value(&mut self, node: &'a Node) -> Result<Value<'a>, Unanswered> {
        self.burn(1)?;
        Ok(match node {
            Node::Text(text) => Value::Text(Cow::Borrowed(text)),
            Node::UserName => Value::Text(Cow::Borrowed(self.scope.subject.name.as_str())),
            Node::UserRoles => Value::List(
                self.scope.subject.roles.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
            ),
            Node::Trait(name) => Value::List(Cow::Borrowed(
                self.scope.subject.traits.get(&**name).map(Vec::as_slice).unwrap_or_default(),
            )),
            Node::Label(key) | Node::ResourceLabel(key) => {
                let labels = self.scope.labels.ok_or(Unanswered::NoResource)?;
                Value::Text(Cow::Borrowed(labels.get(key).unwrap_or_default()))
            }
            Node::ResourceName => {
                Value::Text(Cow::Borrowed(self.scope.resource_name.ok_or(Unanswered::NoResource)?))
            }
            Node::ResourceKind => {
                Value::Text(Cow::Borrowed(self.scope.resource_kind.ok_or(Unanswered::NoResource)?))
            }
            Node::Set(items) => {
                let items: Result<Vec<String>, _> =
                    items.iter().map(|item| self.text(item).map(Cow::into_owned)).collect();
                Value::List(items?.into())
            }
            Node::Not(_)
            | Node::And(..)
            | Node::Or(..)
            | Node::Equal(..)
            | Node::Contains(..)
            | Node::ContainsAny(..)
            | Node::ContainsAll(..)
            | Node::RegexpMatch(..) => Value::Bool(self.judge(node)?),
            Node::RegexpReplace(..) | Node::LabelsMatching(_) => Value::List(self.derive(node)?.into()),
            Node::EmailLocal(inner) => {
                self.map(inner, |text| text.split_once('@').map(|(local, _)| local.to_owned()))?
            }
            Node::Upper(inner) => self.map(inner, |text| Some(text.to_uppercase()))?,
            Node::Lower(inner) => self.map(inner, |text| Some(text.to_lowercase()))?,
        })
    }

    /// `&&` and `||` with an unanswerable side: answered when the other side decides alone, whatever the order.
    fn judge(&mut self, node: &'a Node) -> Result<bool, Unanswered> {
        Ok(match node {
            Node::Not(inner) => !self.truth(inner)?,
            Node::And(left, right) => {
                let (left, right) = (self.truth(left), self.truth(right));
                decide(left, right, false)?
            }
            Node::Or(left, right) => {
                let (left, right) = (self.truth(left), self.truth(right));
                decide(left, right, true)?
            }
            Node::Equal(left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                match (&left, &right) {
                    (Value::List(left), Value::List(right)) => {
                        self.burn(left.len().saturating_mul(right.len()))?;
                        left.iter().all(|item| right.contains(item))
                            && right.iter().all(|item| left.contains(item))
                    }
                    (Value::Bool(_) | Value::Text(_) | Value::List(_), _) => left == right,
                }
            }
            Node::Contains(list, item) => {
                let (list, item) = (self.texts(list)?, self.text(item)?);
                self.burn(list.len())?;
                list.iter().any(|entry| *entry == item)
            }
            Node::ContainsAny(list, items) => {
                let (list, items) = (self.texts(list)?, self.texts(items)?);
                self.burn(list.len().saturating_mul(items.len()))?;
                items.iter().any(|item| list.contains(item))
            }
            Node::ContainsAll(list, items) => {
                let (list, items) = (self.texts(list)?, self.texts(items)?);
                self.burn(list.len().saturating_mul(items.len()))?;
                // Nothing wanted is not everything found: a user without the trait does not pass.
                !items.is_empty() && items.iter().all(|item| list.contains(item))
            }
            Node::RegexpMatch(texts, pattern) => {
                let texts = self.texts(texts)?;
                self.burn(texts.iter().map(String::len).fold(0, usize::saturating_add))?;
                texts.iter().any(|text| pattern.matches(text))
            }
            _ => false,
        })
    }

    fn derive(&mut self, node: &'a Node) -> Result<Vec<String>, Unanswered> {
        match node {
            Node::RegexpReplace(texts, regex, replacement) => {
                let texts = self.texts(texts)?;
                let mut replaced = Vec::with_capacity(texts.len());
                for text in texts.iter() {
                    self.burn(text.len())?;
                    // What does not match yields nothing.
                    if text.len() <= TEXT_BYTES_MAX && regex.is_match(text) {
                        let new = regex.replace_all(text, &**replacement);
                        self.burn(new.len())?;
                        replaced.push(new.into_owned());
                    }
                }
                replaced.retain(|text| text.len() <= TEXT_BYTES_MAX);
                Ok(replaced)
            }
            Node::LabelsMatching(pattern) => {
                let labels = self.scope.labels.ok_or(Unanswered::NoResource)?;
                let found: Vec<String> = labels
                    .iter()
                    .filter(|(key, _)| pattern.matches(key))
                    .map(|(_, value)| value.to_owned())
                    .collect();
                self.burn(found.len())?;
                Ok(found)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn map(
        &mut self,
        inner: &'a Node,
        change: impl Fn(&str) -> Option<String>,
    ) -> Result<Value<'a>, Unanswered> {
        Ok(match self.value(inner)? {
            Value::Text(text) => {
                self.burn(text.len())?;
                Value::Text(change(&text).unwrap_or_default().into())
            }
            Value::List(list) => {
                self.burn(list.iter().map(String::len).fold(0, usize::saturating_add))?;
                Value::List(list.iter().filter_map(|text| change(text)).collect::<Vec<_>>().into())
            }
            Value::Bool(truth) => Value::Bool(truth),
        })
    }
}

/// `dominant` on either side decides; otherwise both must be answered.
fn decide(
    left: Result<bool, Unanswered>,
    right: Result<bool, Unanswered>,
    dominant: bool,
) -> Result<bool, Unanswered> {
    match (left, right) {
        (Err(Unanswered::OutOfFuel), _) | (_, Err(Unanswered::OutOfFuel)) => Err(Unanswered::OutOfFuel),
        (Ok(side), _) | (_, Ok(side)) if side == dominant => Ok(dominant),
        (Err(unanswered), _) | (_, Err(unanswered)) => Err(unanswered),
        (Ok(_), Ok(_)) => Ok(!dominant),
    }
}
