//! SECURITY.md says for each letter where it is tested. This keeps the table true: what it names exists and
//! tests that letter, and "not yet" is gone as soon as there is a test.
//!
//! Tests carry the letter in front of their name (`f_arbitrary_bytes_never_panic`). For A the name decides
//! nothing, because English sentences begin with it too.

use super::{Report, SourceFile};
use crate::workspace::Workspace;

const RULE: &str = "security table";
const DOCUMENT: &str = "SECURITY.md";
const NOT_YET: &str = "not yet";

struct Row<'a> {
    line: usize,
    letter: char,
    files: Vec<&'a str>,
}

pub(super) fn check(workspace: &Workspace, sources: &[SourceFile], report: &mut Report) {
    match std::fs::read_to_string(workspace.workspace_root.join(DOCUMENT)) {
        Ok(text) => check_table(&text, sources, report),
        Err(error) => report.problem(RULE, DOCUMENT, error.to_string()),
    }
}

fn check_table(text: &str, sources: &[SourceFile], report: &mut Report) {
    let rows: Vec<Row<'_>> = text.lines().enumerate().filter_map(|(i, line)| row(i + 1, line)).collect();
    for letter in 'A'..='O' {
        if !rows.iter().any(|row| row.letter == letter) {
            report.problem(RULE, DOCUMENT, format!("letter {letter} is missing"));
        }
    }
    for Row { line, letter, files } in rows {
        let place = format!("{DOCUMENT}:{line}");
        let tested: Vec<&str> =
            sources.iter().filter(|source| tests_letter(source, letter)).map(|s| s.path.as_str()).collect();
        if let (true, Some(first)) = (files.is_empty() && letter != 'A', tested.first()) {
            report.problem(RULE, &place, format!("{letter} is tested, in {first} for one"));
        }
        for file in files {
            let exists = sources.iter().any(|source| source.path == file);
            if !exists || letter != 'A' && !tested.contains(&file) {
                report.problem(RULE, &place, format!("{file} holds no test of {letter}"));
            }
        }
    }
}

/// `| F | what must hold | [text](path), … |`, or `not yet` in the last cell.
fn row(line: usize, text: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> =
        text.strip_prefix('|')?.trim_end().strip_suffix('|')?.split('|').map(str::trim).collect();
    let [letter, _, tested] = cells[..] else { return None };
    let mut characters = letter.chars();
    let (Some(letter @ 'A'..='Z'), None) = (characters.next(), characters.next()) else { return None };
    let files = if tested.starts_with(NOT_YET) {
        Vec::new()
    } else {
        tested.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
    };
    Some(Row { line, letter, files })
}

fn tests_letter(source: &SourceFile, letter: char) -> bool {
    let declaration = format!("fn {}_", letter.to_ascii_lowercase());
    source.scan.code.match_indices(&declaration).any(|(offset, _)| source.scan.is_test(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(row: &str) -> usize {
        let sources = [
            SourceFile::of("wire/a/tests/x.rs", "#[test]\nfn f_bounds_hold() {}\nfn k_nobody_else() {}\n"),
            SourceFile::of("wire/a/src/lib.rs", "fn g_is_a_function() {}\n"),
        ];
        let all: String = ('A'..='O')
            .filter(|letter| !row.starts_with(&format!("| {letter} |")))
            .map(|letter| match letter {
                'F' | 'K' => format!("| {letter} | rule | [x](wire/a/tests/x.rs) |\n"),
                _ => format!("| {letter} | rule | not yet |\n"),
            })
            .collect();
        let mut report = Report::default();
        check_table(&format!("{all}{row}\n"), &sources, &mut report);
        report.problems.len()
    }

    #[test]
    fn the_table_says_what_is_true() {
        assert_eq!(problems("| F | rule | [x](wire/a/tests/x.rs) |"), 0);
        assert_eq!(problems("| F | rule | not yet |"), 1);
        assert_eq!(problems("| F | rule | [x](wire/a/tests/gone.rs) |"), 1);
        assert_eq!(problems("| G | rule | [x](wire/a/src/lib.rs) |"), 1);
        assert_eq!(problems("| G | rule | not yet: comes with the proxy |"), 0);
        assert_eq!(problems("| A | rule | [x](wire/a/src/lib.rs) |"), 0);
    }

    #[test]
    fn no_letter_may_be_missing() {
        let mut report = Report::default();
        check_table("| A | rule | not yet |\n", &[], &mut report);
        assert_eq!(report.problems.len(), 14);
    }
}
