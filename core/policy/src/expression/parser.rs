//! A Pratt parser that checks types and names as it goes.

use super::lexer::{Placed, Token, tokens};
use super::{Dialect, EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX, Node, Type};
use crate::pattern::{Pattern, PatternError, compile_regex};

/// Longest replacement in bytes.
const REPLACEMENT_BYTES_MAX: usize = 256;
/// What `{{internal.…}}` may name.
const INTERNAL: &[&str] = &[
    "logins",
    "windows_logins",
    "linux_desktop_logins",
    "kubernetes_groups",
    "kubernetes_users",
    "db_names",
    "db_users",
    "db_roles",
    "aws_role_arns",
    "azure_identities",
    "gcp_service_accounts",
    "jwt",
];
const FUNCTIONS: &[&str] = &[
    "contains",
    "contains_any",
    "contains_all",
    "equals",
    "regexp.match",
    "regexp.replace",
    "email.local",
    "strings.upper",
    "strings.lower",
    "labels_matching",
    "set",
];

/// Why a text is no expression. `at` is a byte offset in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Too long, too deep or too many parts.
    #[error("at {at}: too much: at most {limit}")]
    TooMuch {
        /// Where.
        at: usize,
        /// The bound.
        limit: &'static str,
    },
    /// Something else belongs here.
    #[error("at {at}: expected {expected}, found {found}")]
    Unexpected {
        /// Where.
        at: usize,
        /// What is there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A name or function that does not exist in this kind of expression.
    #[error("at {at}: {name:?} is not known here; there are {known}")]
    UnknownName {
        /// Where.
        at: usize,
        /// The name.
        name: String,
        /// What exists.
        known: String,
    },
    /// A value of one type where another is wanted.
    #[error("at {at}: expected {expected}, found {found}")]
    WrongType {
        /// Where.
        at: usize,
        /// The type found.
        found: &'static str,
        /// The type wanted.
        expected: &'static str,
    },
    /// A regular expression or pattern that is refused.
    #[error("at {at}: {source}")]
    Pattern {
        /// Where.
        at: usize,
        /// What is wrong with it.
        source: PatternError,
    },
}

pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Node, ExpressionError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(ExpressionError::TooMuch { at: EXPRESSION_BYTES_MAX, limit: "4096 bytes" });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, end: text.len(), dialect, depth: 0 };
    let root = parser.expression(0)?;
    if let Some(extra) = parser.peek() {
        return Err(ExpressionError::Unexpected {
            at: extra.at,
            found: describe(Some(&extra.token)),
            expected: "the end",
        });
    }
    match (dialect, root.kind) {
        (Dialect::Labels | Dialect::Where, Type::Bool) | (Dialect::Template, Type::Text | Type::List) => {
            Ok(root.node)
        }
        (Dialect::Labels | Dialect::Where, Type::Text | Type::List) => Err(root.wrong("true or false")),
        (Dialect::Template, Type::Bool) => Err(root.wrong("a text")),
    }
}

/// A part with its type and place.
struct Typed {
    node: Node,
    kind: Type,
    at: usize,
}

impl Typed {
    fn wrong(&self, expected: &'static str) -> ExpressionError {
        ExpressionError::WrongType { at: self.at, found: name_of(self.kind), expected }
    }

    fn want(self, kind: Type) -> Result<Box<Node>, ExpressionError> {
        if self.kind == kind { Ok(Box::new(self.node)) } else { Err(self.wrong(name_of(kind))) }
    }

    /// Text stands for a list of one.
    fn want_texts(self) -> Result<Box<Node>, ExpressionError> {
        match self.kind {
            Type::Text | Type::List => Ok(Box::new(self.node)),
            Type::Bool => Err(self.wrong("a text or a list of texts")),
        }
    }

    fn constant(self) -> Result<(Box<str>, usize), ExpressionError> {
        match self.node {
            Node::Text(text) => Ok((text, self.at)),
            _ => Err(self.wrong("text in quotes")),
        }
    }
}

fn name_of(kind: Type) -> &'static str {
    match kind {
        Type::Bool => "true or false",
        Type::Text => "a text",
        Type::List => "a list of texts",
    }
}

fn describe(token: Option<&Token>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Word(word)) => format!("{word:?}"),
        Some(Token::Text(_)) => "text in quotes".to_owned(),
        Some(Token::Sign(sign)) => format!("{sign:?}"),
    }
}

struct Parser {
    tokens: Vec<Placed>,
    next: usize,
    end: usize,
    dialect: Dialect,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Placed> {
        self.tokens.get(self.next)
    }

    fn at(&self) -> usize {
        self.peek().map_or(self.end, |placed| placed.at)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Placed { token: Token::Sign(s), .. }) if *s == sign);
        self.next += usize::from(found);
        found
    }

    fn unexpected(&self, expected: &'static str) -> ExpressionError {
        ExpressionError::Unexpected {
            at: self.at(),
            found: describe(self.peek().map(|p| &p.token)),
            expected,
        }
    }

    fn require_sign(&mut self, sign: &str, expected: &'static str) -> Result<(), ExpressionError> {
        if self.take_sign(sign) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Everything that binds at least as strongly as `power`: `||` 1, `&&` 2, `==` and `!=` 3.
    fn expression(&mut self, power: u8) -> Result<Typed, ExpressionError> {
        self.depth += 1;
        if self.depth > EXPRESSION_DEPTH_MAX {
            return Err(ExpressionError::TooMuch { at: self.at(), limit: "32 levels" });
        }
        let mut left = self.prefix()?;
        // Chains (a && b && c …) grow to the left: they count as depth too, because evaluation and drop recurse.
        let mut links = 0;
        while let Some((sign, binding)) = self.operator().filter(|(_, binding)| *binding > power) {
            links += 1;
            if self.depth + links > EXPRESSION_DEPTH_MAX * 4 {
                return Err(ExpressionError::TooMuch { at: self.at(), limit: "96 operators in a row" });
            }
            self.next += 1;
            let right = self.expression(binding)?;
            left = join(sign, left, right)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operator(&self) -> Option<(&'static str, u8)> {
        match self.peek()?.token {
            Token::Sign("||") => Some(("||", 1)),
            Token::Sign("&&") => Some(("&&", 2)),
            Token::Sign("==") => Some(("==", 3)),
            Token::Sign("!=") => Some(("!=", 3)),
            Token::Sign(_) | Token::Word(_) | Token::Text(_) => None,
        }
    }

    fn prefix(&mut self) -> Result<Typed, ExpressionError> {
        let at = self.at();
        if self.take_sign("!") {
            // Binds more strongly than any operator.
            let inner = self.expression(u8::MAX)?.want(Type::Bool)?;
            return Ok(Typed { node: Node::Not(inner), kind: Type::Bool, at });
        }
        if self.take_sign("(") {
            let inner = self.expression(0)?;
            self.require_sign(")", "a closing parenthesis")?;
            return Ok(inner);
        }
        match self.peek().map(|placed| placed.token.clone()) {
            Some(Token::Text(text)) => {
                self.next += 1;
                Ok(Typed { node: Node::Text(text.into()), kind: Type::Text, at })
            }
            Some(Token::Word(word)) => {
                self.next += 1;
                self.named(word, at)
            }
            Some(Token::Sign(_)) | None => Err(self.unexpected("an expression")),
        }
    }

    fn named(&mut self, first: String, at: usize) -> Result<Typed, ExpressionError> {
        let mut path = vec![first];
        while self.take_sign(".") {
            match self.peek().map(|placed| placed.token.clone()) {
                Some(Token::Word(word)) => {
                    self.next += 1;
                    path.push(word);
                }
                Some(Token::Text(_) | Token::Sign(_)) | None => return Err(self.unexpected("a name")),
            }
        }
        if self.take_sign("(") {
            let arguments = self.arguments()?;
            return call(&path.join("."), arguments, self.dialect, at);
        }
        if self.take_sign("[") {
            let (key, _) = self.expression(0)?.constant()?;
            self.require_sign("]", "a closing bracket")?;
            path.push(key.into());
            return variable(&path, true, self.dialect, at);
        }
        variable(&path, false, self.dialect, at)
    }

    fn arguments(&mut self) -> Result<Vec<Typed>, ExpressionError> {
        let mut arguments = Vec::new();
        if self.take_sign(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.expression(0)?);
            if self.take_sign(")") {
                return Ok(arguments);
            }
            self.require_sign(",", "a comma or a closing parenthesis")?;
        }
    }
}

fn join(sign: &str, left: Typed, right: Typed) -> Result<Typed, ExpressionError> {
    let at = left.at;
    let node = match sign {
        "||" => Node::Or(left.want(Type::Bool)?, right.want(Type::Bool)?),
        "&&" => Node::And(left.want(Type::Bool)?, right.want(Type::Bool)?),
        "==" => equal(left, right)?,
        _ => Node::Not(Box::new(equal(left, right)?)),
    };
    Ok(Typed { node, kind: Type::Bool, at })
}

fn equal(left: Typed, right: Typed) -> Result<Node, ExpressionError> {
    let kind = left.kind;
    Ok(Node::Equal(left.want(kind)?, right.want(kind)?))
}

fn variable(path: &[String], indexed: bool, dialect: Dialect, at: usize) -> Result<Typed, ExpressionError> {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let found = match (dialect, words.as_slice()) {
        (_, ["user", "metadata", "name"]) if !indexed => Some((Node::UserName, Type::Text)),
        (Dialect::Labels | Dialect::Where, ["user", "spec", "roles"]) if !indexed => {
            Some((Node::UserRoles, Type::List))
        }
        (Dialect::Labels | Dialect::Where, ["user", "spec", "traits", name]) => {
            Some((Node::Trait((*name).into()), Type::List))
        }
        (Dialect::Labels, ["labels", key]) => Some((Node::Label((*key).into()), Type::Text)),
        (Dialect::Where, ["resource", "metadata", "name"]) if !indexed => {
            Some((Node::ResourceName, Type::Text))
        }
        (Dialect::Where, ["resource", "kind"]) if !indexed => Some((Node::ResourceKind, Type::Text)),
        (Dialect::Where, ["resource", "metadata", "labels", key]) => {
            Some((Node::ResourceLabel((*key).into()), Type::Text))
        }
        (Dialect::Template, ["internal", name]) if INTERNAL.contains(name) => {
            Some((Node::Trait((*name).into()), Type::List))
        }
        (Dialect::Template, ["external", name]) => Some((Node::Trait((*name).into()), Type::List)),
        _ => None,
    };
    let Some((node, kind)) = found else {
        return Err(ExpressionError::UnknownName { at, name: words.join("."), known: known_names(dialect) });
    };
    Ok(Typed { node, kind, at })
}

fn known_names(dialect: Dialect) -> String {
    match dialect {
        Dialect::Labels => {
            r#"labels["key"], user.metadata.name, user.spec.traits["name"], user.spec.roles"#.to_owned()
        }
        Dialect::Where => concat!(
            "resource.metadata.name, resource.metadata.labels[\"key\"], resource.kind, user.metadata.name, ",
            "user.spec.traits[\"name\"], user.spec.roles"
        )
        .to_owned(),
        Dialect::Template => {
            format!(
                r#"user.metadata.name, external.name, external["name"], internal.{}"#,
                INTERNAL.join(", internal.")
            )
        }
    }
}

fn call(name: &str, arguments: Vec<Typed>, dialect: Dialect, at: usize) -> Result<Typed, ExpressionError> {
    let given = arguments.len();
    let allowed = match dialect {
        Dialect::Labels => true,
        Dialect::Where => name != "labels_matching",
        Dialect::Template => matches!(name, "email.local" | "regexp.replace"),
    };
    if !allowed || !FUNCTIONS.contains(&name) {
        let known = match dialect {
            Dialect::Labels | Dialect::Where => FUNCTIONS.join(", "),
            Dialect::Template => "email.local, regexp.replace".to_owned(),
        };
        return Err(ExpressionError::UnknownName { at, name: format!("{name}()"), known });
    }
    if name == "set" {
        let nodes: Result<Vec<Node>, _> =
            arguments.into_iter().map(|a| a.want(Type::Text).map(|n| *n)).collect();
        return Ok(Typed { node: Node::Set(nodes?), kind: Type::List, at });
    }
    let wrong = |expected| ExpressionError::Unexpected { at, found: format!("{given} arguments"), expected };
    let mut arguments = arguments.into_iter();
    let (first, second, third, more) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next());
    match (name, first, second, third, more) {
        ("contains", Some(list), Some(item), None, None) => {
            Ok(truth(Node::Contains(list.want_texts()?, item.want(Type::Text)?), at))
        }
        ("contains_any", Some(list), Some(items), None, None) => {
            Ok(truth(Node::ContainsAny(list.want_texts()?, items.want_texts()?), at))
        }
        ("contains_all", Some(list), Some(items), None, None) => {
            Ok(truth(Node::ContainsAll(list.want_texts()?, items.want_texts()?), at))
        }
        ("equals", Some(left), Some(right), None, None) => Ok(truth(equal(left, right)?, at)),
        ("regexp.match", Some(texts), Some(pattern), None, None) => {
            let (pattern, place) = pattern.constant()?;
            let pattern =
                Pattern::parse(&pattern).map_err(|source| ExpressionError::Pattern { at: place, source })?;
            Ok(truth(Node::RegexpMatch(texts.want_texts()?, pattern), at))
        }
        ("regexp.replace", Some(texts), Some(pattern), Some(replacement), None) => {
            replace(texts, pattern, replacement, at)
        }
        ("email.local", Some(inner), None, None, None) => mapped(inner, Node::EmailLocal, at),
        ("strings.upper", Some(inner), None, None, None) => mapped(inner, Node::Upper, at),
        ("strings.lower", Some(inner), None, None, None) => mapped(inner, Node::Lower, at),
        ("labels_matching", Some(pattern), None, None, None) => {
            let (pattern, place) = pattern.constant()?;
            let pattern =
                Pattern::parse(&pattern).map_err(|source| ExpressionError::Pattern { at: place, source })?;
            Ok(Typed { node: Node::LabelsMatching(pattern), kind: Type::List, at })
        }
        ("regexp.replace", ..) => Err(wrong("three arguments")),
        ("email.local" | "strings.upper" | "strings.lower" | "labels_matching", ..) => {
            Err(wrong("one argument"))
        }
        _ => Err(wrong("two arguments")),
    }
}

fn truth(node: Node, at: usize) -> Typed {
    Typed { node, kind: Type::Bool, at }
}

fn mapped(inner: Typed, build: fn(Box<Node>) -> Node, at: usize) -> Result<Typed, ExpressionError> {
    let kind = inner.kind;
    Ok(Typed { node: build(inner.want_texts()?), kind, at })
}

fn replace(texts: Typed, pattern: Typed, replacement: Typed, at: usize) -> Result<Typed, ExpressionError> {
    let (pattern, place) = pattern.constant()?;
    let regex = compile_regex(&pattern).map_err(|source| ExpressionError::Pattern { at: place, source })?;
    let (replacement, place) = replacement.constant()?;
    if replacement.len() > REPLACEMENT_BYTES_MAX {
        return Err(ExpressionError::TooMuch { at: place, limit: "256 bytes of replacement" });
    }
    let node = Node::RegexpReplace(texts.want_texts()?, Box::new(regex), replacement);
    Ok(Typed { node, kind: Type::List, at })
}
