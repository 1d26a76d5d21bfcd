//! A light reading of Rust source: what is code, what is comment, what is text, what belongs to tests, where
//! functions begin and end. It knows the lexical rules only; a macro that writes unbalanced braces would
//! mislead it, and rustc would not compile such a file anyway.

use std::ops::Range;

/// One file, read.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The source with comments blanked and the inside of literals replaced by `_`; every byte stays in place.
    pub(crate) code: String,
    /// The comments alone; every byte stays in place.
    pub(crate) comments: String,
    /// Byte ranges of items that exist for tests only.
    test_ranges: Vec<Range<usize>>,
    line_starts: Vec<usize>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) range: Range<usize>,
    pub(crate) first_line: usize,
    pub(crate) lines: usize,
}

/// Where a module for tests is found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TestModule<'a> {
    /// By its name, where modules of the declaring file are.
    Named(&'a str),
    /// In a file beside the declaring one.
    At(&'a str),
}

/// What a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    Code,
    Comment,
    Blank,
}

impl Scan {
    /// Reads a source; `whole_file_is_test` for what only a test target compiles.
    pub(crate) fn new(text: &str, whole_file_is_test: bool) -> Self {
        let (code, comments) = split(text.as_bytes());
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        let line_starts = line_starts.collect();
        let test_ranges = if whole_file_is_test || code.contains("#![cfg(test)]") {
            std::iter::once(0..text.len()).collect()
        } else {
            test_items(&code)
        };
        Self { code, comments, test_ranges, line_starts }
    }

    /// The line of a byte, counted from 1.
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset)
    }

    pub(crate) fn is_test(&self, offset: usize) -> bool {
        self.test_ranges.iter().any(|range| range.contains(&offset))
    }

    /// Every line: what it holds, and whether it belongs to tests.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (LineKind, bool)> + '_ {
        self.code.split('\n').zip(self.comments.split('\n')).enumerate().map(|(index, (code, comment))| {
            let kind = match (code.trim().is_empty(), comment.trim().is_empty()) {
                (false, _) => LineKind::Code,
                (true, false) => LineKind::Comment,
                (true, true) => LineKind::Blank,
            };
            (kind, self.is_test(self.line_starts.get(index).copied().unwrap_or(0)))
        })
    }

    /// Functions with a body, in order; one inside another counts in both.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for offset in occurrences(&self.code, "fn") {
            let after = self.code[offset + 2..].trim_start();
            let name: String = after.chars().take_while(|c| is_word(*c)).collect();
            if name.is_empty() {
                continue;
            }
            let Some(range) = item_range(&self.code, offset) else { continue };
            if !self.code[..range.end].ends_with('}') {
                continue;
            }
            let first_line = self.line_of(offset);
            let lines = self.line_of(range.end - 1) - first_line + 1;
            found.push(Function { name, range, first_line, lines });
        }
        found
    }

    /// Modules that are declared for tests in a file of their own (`#[cfg(test)] mod name;`): their names, or
    /// the file of a `path` attribute. `text` is the source that was scanned.
    pub(crate) fn test_modules<'a>(&self, text: &'a str) -> Vec<TestModule<'a>> {
        let declared = self.test_ranges.iter().filter_map(|range| text.get(range.clone()));
        declared
            .filter_map(|item| {
                let (attributes, name) = item.trim_end().strip_suffix(';')?.rsplit_once("mod ")?;
                let path = attributes.split_once("path = \"").and_then(|(_, rest)| rest.split_once('"'));
                Some(path.map_or(TestModule::Named(name.trim()), |(path, _)| TestModule::At(path)))
            })
            .collect()
    }
}

/// Where `pattern` stands in `code` as whole words.
pub(crate) fn occurrences<'a>(code: &'a str, pattern: &'a str) -> impl Iterator<Item = usize> + 'a {
    let word_first = pattern.chars().next().is_some_and(is_word);
    let word_last = pattern.chars().next_back().is_some_and(is_word);
    code.match_indices(pattern).map(|(offset, _)| offset).filter(move |&offset| {
        let before = code[..offset].chars().next_back().is_some_and(is_word);
        let after = code[offset + pattern.len()..].chars().next().is_some_and(is_word);
        !(word_first && before || word_last && after)
    })
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    let marks = ["#[cfg(test)]", "#[cfg(all(test", "#[test]", "#[tokio::test"];
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for mark in marks {
        for (offset, _) in code.match_indices(mark) {
            let end = item_range(code, offset).map_or(code.len(), |range| range.end);
            ranges.push(offset..end);
        }
    }
    ranges
}

/// From an attribute or keyword to the end of its item: the closing brace, or the semicolon before any brace.
fn item_range(code: &str, start: usize) -> Option<Range<usize>> {
    let mut depth = 0_i32;
    let mut braces = 0_i32;
    let is_use = starts_with_use(&code[start..]);
    for (index, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces == 0 && !is_use && depth == 0 {
                    return Some(start..index + 1);
                }
                if braces < 0 {
                    return None;
                }
            }
            b';' if depth == 0 && braces == 0 => return Some(start..index + 1),
            _ => {}
        }
    }
    None
}

/// Whether the item behind any attributes is a `use`, whose braces are not its end.
fn starts_with_use(code: &str) -> bool {
    let mut rest = code.trim_start();
    while rest.starts_with("#[") {
        let mut depth = 0_i32;
        let end = rest.bytes().position(|b| {
            depth += i32::from(b == b'[') - i32::from(b == b']');
            b == b']' && depth == 0
        });
        let Some(end) = end else { return false };
        rest = rest[end + 1..].trim_start();
    }
    let rest =
        rest.strip_prefix("pub").map_or(rest, |r| r.trim_start().trim_start_matches("(crate)").trim_start());
    rest.starts_with("use ")
}

/// Separates code from comments, byte by byte, each with the other blanked out.
fn split(text: &[u8]) -> (String, String) {
    let mut masks = Masks { code: Vec::with_capacity(text.len()), comments: Vec::with_capacity(text.len()) };
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let token = next_token(rest, at.checked_sub(1).and_then(|before| text.get(before)).copied());
        let (length, kind) = token;
        masks.take(&rest[..length], kind);
        at += length;
    }
    // Only whole characters are copied and every other byte is ASCII.
    (String::from_utf8_lossy(&masks.code).into_owned(), String::from_utf8_lossy(&masks.comments).into_owned())
}

#[derive(Clone, Copy)]
enum Token {
    Code,
    Comment,
    /// A literal: so many bytes of it at each end are its quotes.
    Literal {
        opening: usize,
        closing: usize,
    },
}

struct Masks {
    code: Vec<u8>,
    comments: Vec<u8>,
}

impl Masks {
    fn take(&mut self, bytes: &[u8], token: Token) {
        for (index, &byte) in bytes.iter().enumerate() {
            let blank = if byte == b'\n' { b'\n' } else { b' ' };
            let (code, comment) = match token {
                Token::Code => (byte, blank),
                Token::Comment => (blank, byte),
                Token::Literal { opening, closing } => {
                    let quote = index < opening || index >= bytes.len().saturating_sub(closing);
                    (if quote || byte == b'\n' { byte } else { b'_' }, blank)
                }
            };
            self.code.push(code);
            self.comments.push(comment);
        }
    }
}

/// The length and kind of what begins here. `rest` is not empty.
fn next_token(rest: &[u8], before: Option<u8>) -> (usize, Token) {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if rest.starts_with(b"//") {
        let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        return (end, Token::Comment);
    }
    if rest.starts_with(b"/*") {
        return (block_comment_bytes(rest), Token::Comment);
    }
    if let Some(raw) = raw_string(rest).filter(|_| !in_word) {
        return raw;
    }
    match rest.first() {
        Some(b'"') => (quoted_bytes(rest, b'"'), Token::Literal { opening: 1, closing: 1 }),
        Some(b'\'') if is_character_literal(rest) => {
            (quoted_bytes(rest, b'\''), Token::Literal { opening: 1, closing: 1 })
        }
        _ => (1, Token::Code),
    }
}

fn block_comment_bytes(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, also of bytes and C strings.
fn raw_string(rest: &[u8]) -> Option<(usize, Token)> {
    let prefix = usize::from(matches!(rest.first(), Some(b'b' | b'c')));
    let after_r = rest.get(prefix..)?.strip_prefix(b"r")?;
    let hashes = after_r.iter().take_while(|&&b| b == b'#').count();
    let body = after_r.get(hashes..)?.strip_prefix(b"\"")?;
    let closing = [b"\"".to_vec(), vec![b'#'; hashes]].concat();
    let opening = prefix + 1 + closing.len();
    let end = body.windows(closing.len()).position(|window| window == closing);
    let length = end.map_or(rest.len(), |end| opening + end + closing.len());
    Some((length, Token::Literal { opening, closing: closing.len() }))
}

fn quoted_bytes(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_character_literal(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(&first) => {
            let bytes = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                0xf0.. => 4,
            };
            rest.get(1 + bytes) == Some(&b'\'')
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_code(source: &str, expected: &str) {
        let scan = Scan::new(source, false);
        assert_eq!(scan.code, expected, "{source:?}");
        assert_eq!(scan.comments.len(), source.len());
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        check_code("a // b\nc", "a     \nc");
        check_code("a /* b /* c */ d */ e", "a                   e");
        check_code(r#"x("a \" // b") y"#, r#"x("_________") y"#);
        check_code(r##"r#"a " b"# c"##, r##"r#"_____"# c"##);
        check_code("br\"a\\\" c", "br\"__\" c");
        check_code("'{' '\\'' 'a 'ä' b'x'", "'_' '__' 'a '__' b'_'");
        check_code("r#type for\"x\"", "r#type for\"_\"");
    }

    #[test]
    fn functions_are_measured_from_keyword_to_brace() {
        let source =
            "fn a() {}\ntrait T { fn none(&self); }\npub fn b<T: Fn(u8) -> [u8; 2]>(\n) {\n  if x { }\n}\n";
        let functions = Scan::new(source, false).functions();
        let seen: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.first_line, f.lines)).collect();
        assert_eq!(seen, [("a", 1, 1), ("b", 3, 4)]);
    }

    #[test]
    fn test_items_are_told_from_others() {
        let source = "fn a() {}\n#[cfg(test)]\nuse x::{y};\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n\
                      #[cfg(test)]\nmod apart;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\n";
        let scan = Scan::new(source, false);
        let tested: Vec<bool> = scan.functions().iter().map(|f| scan.is_test(f.range.start)).collect();
        assert_eq!(tested, [false, true, false]);
        assert_eq!(scan.test_modules(source), [TestModule::Named("apart"), TestModule::At("b_tests.rs")]);
        let kinds: Vec<bool> = scan.lines().map(|(_, test)| test).take(11).collect();
        assert_eq!(kinds, [false, true, true, true, true, true, true, false, true, true, true]);
    }

    #[test]
    fn words_are_found_whole() {
        assert_eq!(occurrences("tokio tokio_util x.tokio", "tokio").collect::<Vec<_>>(), [0, 19]);
        assert_eq!(occurrences("a.await b.awaiting", ".await").collect::<Vec<_>>(), [1]);
    }
}
