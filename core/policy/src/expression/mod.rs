//! Expressions in roles: over labels (`node_labels_expression`), over resources (`where`), and inside `{{…}}`.
//!
//! One grammar and one evaluator; a [`Dialect`] says which names exist. Expressions are parsed and type-checked once,
//! when a role is compiled. They have no loops, no assignments and no effects, and their length, depth and work are
//! bounded, so that what an administrator writes cannot stall a decision.

mod evaluate;
mod lexer;
mod parser;

pub(crate) use evaluate::Scope;
pub use parser::ExpressionError;

use crate::pattern::Pattern;
use regex::Regex;

/// Longest expression in bytes.
pub(crate) const EXPRESSION_BYTES_MAX: usize = 4096;
/// Deepest nesting.
pub(crate) const EXPRESSION_DEPTH_MAX: usize = 32;
/// Steps of one evaluation; a comparison of two texts is one step.
pub(crate) const FUEL: u32 = 50_000;

/// Which names an expression may use, and what it yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `labels` and `user`; yields true or false.
    Labels,
    /// `user` and `resource`; yields true or false.
    Where,
    /// `internal`, `external` and `user.metadata.name`; yields texts.
    Template,
}

/// The type of a part of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Bool,
    Text,
    List,
}

/// A parsed and type-checked expression.
#[derive(Debug, Clone)]
pub(crate) struct Expression {
    root: Node,
}

/// The parts of an expression; each has the type that its parent wants.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Text(Box<str>),
    UserName,
    UserRoles,
    Trait(Box<str>),
    Label(Box<str>),
    ResourceName,
    ResourceKind,
    ResourceLabel(Box<str>),
    Set(Vec<Node>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Equal(Box<Node>, Box<Node>),
    Contains(Box<Node>, Box<Node>),
    ContainsAny(Box<Node>, Box<Node>),
    ContainsAll(Box<Node>, Box<Node>),
    RegexpMatch(Box<Node>, Pattern),
    RegexpReplace(Box<Node>, Box<Regex>, Box<str>),
    EmailLocal(Box<Node>),
    Upper(Box<Node>),
    Lower(Box<Node>),
    LabelsMatching(Pattern),
}

impl Expression {
    /// Parses and checks.
    ///
    /// # Errors
    /// When the text is no expression of the dialect, with the position.
    pub(crate) fn parse(text: &str, dialect: Dialect) -> Result<Self, ExpressionError> {
        parser::parse(text, dialect).map(|root| Self { root })
    }

    /// The trait, if the expression is nothing but one.
    pub(crate) fn as_trait(&self) -> Option<&str> {
        match &self.root {
            Node::Trait(name) => Some(name),
            _ => None,
        }
    }
}
