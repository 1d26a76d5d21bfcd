//! What a label value, a login in `deny` or the argument of `regexp.match` may be: a literal, a glob, a regular
//! expression from `^` to `$`. Always about the whole text.

use regex::{Regex, RegexBuilder};

/// Longest pattern in bytes.
const PATTERN_BYTES_MAX: usize = 1024;
/// Memory of one compiled regular expression in bytes.
const REGEX_BYTES_MAX: usize = 256 * 1024;
/// Deepest nesting of a regular expression.
const REGEX_DEPTH_MAX: u32 = 32;

/// A pattern that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than a kilobyte.
    #[error("the pattern has {0} bytes, at most {PATTERN_BYTES_MAX}")]
    TooLong(usize),
    /// No regular expression, or one that is too large.
    #[error("not a regular expression that is accepted: {0}")]
    Regex(String),
}

#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    Any,
    Literal(Box<str>),
    /// The text between the stars: at least two parts, the first at the beginning, the last at the end.
    Glob(Box<[Box<str>]>),
    Regex(Box<Regex>),
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong(text.len()));
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        if is_regex(text) {
            return compile_regex(text).map(|regex| Self::Regex(Box::new(regex)));
        }
        if text.contains('*') {
            return Ok(Self::Glob(text.split('*').map(Box::from).collect()));
        }
        Ok(Self::Literal(text.into()))
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(literal) => **literal == *text,
            Self::Glob(parts) => glob_matches(parts, text),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// True for text from `^` to `$`, which is read as a regular expression.
pub(crate) fn is_regex(text: &str) -> bool {
    text.starts_with('^') && text.ends_with('$')
}

/// Compiles a regular expression within the bounds. Matching takes time linear in the text whatever it says.
pub(crate) fn compile_regex(text: &str) -> Result<Regex, PatternError> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(PatternError::TooLong(text.len()));
    }
    RegexBuilder::new(text)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .nest_limit(REGEX_DEPTH_MAX)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            PatternError::Regex(last.trim().trim_start_matches("error: ").to_owned())
        })
}

/// True if `parts`, with anything between them, make up the whole text.
pub(crate) fn glob_matches<S: AsRef<str>>(parts: &[S], text: &str) -> bool {
    let [first, middle @ .., last] = parts else { return false };
    let Some(rest) = text.strip_prefix(first.as_ref()) else { return false };
    let Some(mut rest) = rest.strip_suffix(last.as_ref()) else { return false };
    for part in middle {
        let Some((_, tail)) = rest.split_once(part.as_ref()) else { return false };
        rest = tail;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, text: &str, expected: bool) {
        assert_eq!(Pattern::parse(pattern).unwrap().matches(text), expected, "{pattern:?} on {text:?}");
    }

    #[test]
    fn patterns_are_about_the_whole_text() {
        check("*", "", true);
        check("prod", "prod", true);
        check("prod", "production", false);
        check("prod*", "production", true);
        check("*-eu-*", "db-eu-1", true);
        check("*-eu-*", "-eu-", true);
        check("a*a", "a", false);
        check("a*b*a", "aba", true);
        check("a*b*b", "ab", false);
        check("^web-[0-9]+$", "web-12", true);
        check("^web-[0-9]+$", "xweb-12", false);
        check("^a|b$", "b", true);
        check("[a]", "a", false);
    }

    #[test]
    fn f_regular_expressions_are_bounded() {
        for bad in [
            "^($",
            "^(a{1000}){1000}$",
            "^((((((((((((((((((((((((((((((((((a))))))))))))))))))))))))))))))))))$",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Pattern::parse(&"a".repeat(1025)).unwrap_err(), PatternError::TooLong(1025));
    }
}
