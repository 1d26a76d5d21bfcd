//! Licence expressions: `MIT OR Apache-2.0`, `(A OR B) AND C WITH D`, and the older `A/B`.

use anyhow::{Result, bail};

/// Whether the expression can be satisfied with licences for which `allowed` holds.
///
/// # Errors
/// When it is no licence expression.
pub(crate) fn is_satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let satisfied = parser.either()?;
    if parser.words.is_empty() { Ok(satisfied) } else { bail!("{expression:?} is no licence expression") }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn either(&mut self) -> Result<bool> {
        let mut satisfied = self.both()?;
        while self.skip("OR") {
            satisfied |= self.both()?;
        }
        Ok(satisfied)
    }

    fn both(&mut self) -> Result<bool> {
        let mut satisfied = self.single()?;
        while self.skip("AND") {
            satisfied &= self.single()?;
        }
        Ok(satisfied)
    }

    fn single(&mut self) -> Result<bool> {
        if self.skip("(") {
            let satisfied = self.either()?;
            return if self.skip(")") { Ok(satisfied) } else { bail!("a bracket is not closed") };
        }
        let name = self.next()?;
        if matches!(name, "OR" | "AND" | "WITH" | ")") {
            bail!("{name:?} where a licence was expected");
        }
        // An exception only adds permissions to the licence that it stands with.
        if self.skip("WITH") {
            self.next()?;
        }
        Ok((self.allowed)(name.trim_end_matches('+')))
    }

    fn next(&mut self) -> Result<&'a str> {
        let Some((first, rest)) = self.words.split_first() else { bail!("the expression ends early") };
        self.words = rest;
        Ok(first)
    }

    fn skip(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: Option<bool>) {
        let allowed = |name: &str| matches!(name, "MIT" | "Apache-2.0" | "ISC");
        assert_eq!(is_satisfied(expression, &allowed).ok(), expected, "{expression}");
    }

    #[test]
    fn expressions_are_decided() {
        check("MIT", Some(true));
        check("GPL-3.0-only", Some(false));
        check("MIT OR GPL-3.0-only", Some(true));
        check("GPL-2.0-only/MIT", Some(true));
        check("MIT AND GPL-3.0-only", Some(false));
        check("GPL-2.0-only AND ISC OR MIT", Some(true));
        check("GPL-2.0-only AND (ISC OR MIT)", Some(false));
        check("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only", Some(true));
        check("ISC AND (Apache-2.0 OR ISC) AND (Apache-2.0 OR ISC OR MIT-0)", Some(true));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND MIT", "MIT WITH"] {
            check(broken, None);
        }
    }
}
