//! What `way` prints: text for people, JSON and YAML for programs. Failures are not printed here.

use crate::failure::Failure;
use serde::Serialize;
use std::io::{self, Write};
use wayleave_vocab::printable;

/// How a list or a status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables, for people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For files.
    Yaml,
    /// Only names, one a line (`way ls`).
    Names,
}

/// Widest column of a table, in characters; longer cells are not cut, they push the rest of their line.
const COLUMN_CHARS_MAX: usize = 60;

/// Writes text to standard output, with whatever in it would drive a terminal written out: names, labels and messages
/// come from the cluster, and from whoever could write there. A reader that went away ends the process quietly, as it
/// does other tools.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(printable(text).as_bytes())
}

/// Writes bytes of our own to standard output, as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a note for people to standard error, beside what programs read.
pub(crate) fn note(text: &str) {
    // Nobody to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Pretty JSON with a final newline.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))
}

/// YAML with a final newline.
pub(crate) fn to_yaml(value: &impl Serialize) -> Result<String, Failure> {
    let text =
        serde_saphyr::to_string(value).map_err(|e| Failure::failed(format!("cannot write YAML: {e}")))?;
    // What would be written out is the same text in a quoted scalar only, and JSON, which is YAML, has no others.
    if printable(&text) != text {
        return to_json(value);
    }
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

/// Text on one line, that drives no terminal.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// Prints a value in the format that was asked for; `text` makes the form for people.
pub(crate) fn show(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        Format::Text | Format::Names => print(&text()),
        Format::Json => print(&to_json(value)?),
        Format::Yaml => print(&to_yaml(value)?),
    }
}

/// A table with a dashed line below the header. Cells hold no control characters.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let widest =
                cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).min(COLUMN_CHARS_MAX).max(title.chars().count())
        })
        .collect();
    let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut out = String::new();
    line(&mut out, header.iter().copied(), &widths);
    line(&mut out, dashes.iter().map(String::as_str), &widths);
    for row in &cells {
        line(&mut out, row.iter().map(String::as_str), &widths);
    }
    out
}

fn line<'a>(out: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let mut text = String::new();
    for (cell, width) in cells.zip(widths) {
        let pad = width.saturating_sub(cell.chars().count()) + 1;
        text.push_str(cell);
        text.push_str(&" ".repeat(pad));
    }
    out.push_str(text.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_ends_no_line_in_blanks() {
        let rows = vec![
            vec!["web-1".to_owned(), "env=dev".to_owned()],
            vec!["a-long-name".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["Node Name", "Labels"], &rows),
            "Node Name   Labels\n----------- -------\nweb-1       env=dev\na-long-name\n"
        );
    }

    #[test]
    fn m_a_cell_cannot_move_the_cursor() {
        assert_eq!(table(&["A"], &[vec!["x\u{1b}[2J\ny".to_owned()]]), "A\n------------\nx\\u001b[2J y\n");
    }

    #[test]
    fn m_what_programs_read_is_the_same_text_and_drives_no_terminal() {
        for hostile in ["a\u{1b}[2Jb", "\u{9b}2J", "x\u{202e}y", "\u{7f}", "\u{0}", "two\nlines", "plain"] {
            let value = std::collections::BTreeMap::from([("name", hostile)]);
            let json = printable(&to_json(&value).unwrap());
            let yaml = printable(&to_yaml(&value).unwrap());
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(read["name"], hostile, "{json}");
            let read: std::collections::BTreeMap<String, String> = serde_saphyr::from_str(&yaml).unwrap();
            assert_eq!(read["name"], hostile, "{yaml}");
            assert!(!json.chars().chain(yaml.chars()).any(|c| c != '\n' && wayleave_vocab::is_hostile(c)));
        }
    }
}
