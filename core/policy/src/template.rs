//! Texts of roles that may contain one `{{…}}`: `{{internal.logins}}`, `dev-{{email.local(external.email)}}`.
//!
//! A trait that the user lacks yields nothing, and the entry is dropped. What a trait says is taken literally: a star
//! or a `^` in it is a star or a `^`, so that nobody widens a role by what his identity provider says about him.

use crate::expression::{Dialect, Expression, ExpressionError, Scope};

/// Most texts that one template may yield.
const EXPANSIONS_MAX: usize = 1024;

/// Why a text with braces is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The braces do not pair.
    #[error("the braces of {{{{…}}}} do not pair")]
    Braces,
    /// More than one `{{…}}`.
    #[error("only one {{{{…}}}} in a text")]
    Several,
    /// What is between the braces.
    #[error("between the braces: {0}")]
    Expression(#[from] ExpressionError),
}

/// A text that is known, or that depends on the user.
#[derive(Debug, Clone)]
pub(crate) enum Template {
    Literal(Box<str>),
    Expanded { prefix: Box<str>, expression: Box<Expression>, suffix: Box<str> },
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// When braces do not pair, or the expression between them is none.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let Some((prefix, rest)) = text.split_once("{{") else {
            if text.contains("}}") {
                return Err(TemplateError::Braces);
            }
            return Ok(Self::Literal(text.into()));
        };
        let end = closing(rest).ok_or(TemplateError::Braces)?;
        let (Some(inner), Some(suffix)) = (rest.get(..end), rest.get(end + 2..)) else {
            return Err(TemplateError::Braces);
        };
        if prefix.contains("}}") {
            return Err(TemplateError::Braces);
        }
        if suffix.contains("{{") || suffix.contains("}}") {
            return Err(TemplateError::Several);
        }
        let expression = Box::new(Expression::parse(inner, Dialect::Template)?);
        Ok(Self::Expanded { prefix: prefix.into(), expression, suffix: suffix.into() })
    }

    /// The texts for one user.
    pub(crate) fn expand(&self, scope: &Scope<'_>) -> Vec<String> {
        match self {
            Self::Literal(text) => vec![text.to_string()],
            Self::Expanded { prefix, expression, suffix } => values(expression, scope)
                .into_iter()
                .map(|value| format!("{prefix}{value}{suffix}"))
                .collect(),
        }
    }

    /// True if one of the texts is this one.
    pub(crate) fn yields(&self, text: &str, scope: &Scope<'_>) -> bool {
        match self {
            Self::Literal(literal) => **literal == *text,
            Self::Expanded { prefix, expression, suffix } => {
                let rest = text.strip_prefix(&**prefix).and_then(|rest| rest.strip_suffix(&**suffix));
                let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { return false };
                match expression.as_trait().and_then(|name| scope.subject.traits.get(name)) {
                    Some(values) => values.iter().take(EXPANSIONS_MAX).any(|value| value == rest),
                    None => values(expression, scope).iter().any(|value| value == rest),
                }
            }
        }
    }
}

/// The values of the expression for one user, without empty ones; none when it cannot be answered.
pub(crate) fn values(expression: &Expression, scope: &Scope<'_>) -> Vec<String> {
    let mut values = expression.texts(scope).unwrap_or_default();
    values.retain(|value| !value.is_empty());
    values.truncate(EXPANSIONS_MAX);
    values
}

/// Where the `}}` outside of quotes is.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match quote {
            Some(open) if escaped || (c == '\\' && open != '`') => escaped = !escaped,
            Some(open) => quote = (c != open).then_some(open),
            None if matches!(c, '"' | '\'' | '`') => quote = Some(c),
            None if c == '}' && text.get(index..).is_some_and(|rest| rest.starts_with("}}")) => {
                return Some(index);
            }
            None => {}
        }
    }
    None
}
