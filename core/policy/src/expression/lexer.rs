//! Words, texts and signs of an expression.

use super::parser::ExpressionError;

/// Most tokens of one expression.
const TOKENS_MAX: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Text(String),
    Sign(&'static str),
}

#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) token: Token,
    /// Byte offset.
    pub(super) at: usize,
}

const SIGNS: &[&str] = &["&&", "||", "==", "!=", "!", "(", ")", "[", "]", ",", "."];

pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        if tokens.len() == TOKENS_MAX {
            return Err(ExpressionError::TooMuch { at, limit: "512 words and signs" });
        }
        let (token, tail) = if matches!(first, '"' | '\'' | '`') {
            quoted(rest, first, at)?
        } else if is_word(first) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            (Token::Word(word.to_owned()), tail)
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let Some(sign) = sign else {
                return Err(ExpressionError::Unexpected {
                    at,
                    found: first.to_string(),
                    expected: "an expression",
                });
            };
            (Token::Sign(sign), rest.strip_prefix(*sign).unwrap_or_default())
        };
        tokens.push(Placed { token, at });
        rest = tail;
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Text in quotes. In double and single quotes `\` escapes the quote, itself, `n` and `t`; any other `\` stays, because
/// regular expressions are full of them. In backticks nothing is escaped.
fn quoted(text: &str, quote: char, at: usize) -> Result<(Token, &str), ExpressionError> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((index, c)) = chars.next() {
        if c == quote {
            let tail = text.get(index + c.len_utf8()..).unwrap_or_default();
            return Ok((Token::Text(value), tail));
        }
        if c != '\\' || quote == '`' {
            value.push(c);
            continue;
        }
        match chars.peek().map(|(_, next)| *next) {
            Some('n') => value.push('\n'),
            Some('t') => value.push('\t'),
            Some(next) if next == quote || next == '\\' => value.push(next),
            Some(_) | None => {
                value.push('\\');
                continue;
            }
        }
        chars.next();
    }
    Err(ExpressionError::Unexpected {
        at,
        found: "a quote".to_owned(),
        expected: "text with a quote at its end",
    })
}
