//! Reads what the run wrote: no secret in any of it, and no error that nobody expected.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Name of the file, among the logs, in which tests say which errors they provoke.
pub(super) const EXPECTED_ERRORS: &str = "expected-errors";

/// A shorter canary would be found by chance.
const CANARY_BYTES_MIN: usize = 8;

/// What is wrong with the logs and the output. Canaries themselves are not repeated.
pub(super) fn complaints(
    logs: &Path,
    output: &Path,
    canaries: &Path,
    expected_errors: &Path,
) -> Result<Vec<String>> {
    let canaries = read_lines(canaries)?;
    let expected = read_lines(expected_errors)?;
    let mut complaints = Vec::new();
    if canaries.is_empty() {
        println!("note: no test used a canary secret, so none could be found in the output");
    }
    if canaries.iter().any(|canary| canary.len() < CANARY_BYTES_MIN) {
        complaints.push(format!("a canary has less than {CANARY_BYTES_MIN} bytes"));
    }
    let log_files = files_below(logs)?;
    for file in log_files.iter().map(PathBuf::as_path).chain([output]) {
        let text = read_text(file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        complaints.extend(
            leaked(&text, &canaries).map(|line| format!("{name}:{line}: a canary secret was written")),
        );
        if file != output {
            let errors = unexpected_errors(&name, &text, &expected);
            complaints.extend(errors.map(|line| format!("{name}: an error was logged: {line}")));
        }
    }
    Ok(complaints)
}

/// Lines, counted from 1, that hold a canary.
fn leaked<'a>(text: &'a str, canaries: &'a [String]) -> impl Iterator<Item = usize> + 'a {
    let canaries = canaries.iter().filter(|canary| canary.len() >= CANARY_BYTES_MIN);
    let lines = text.lines().enumerate();
    lines
        .filter(move |(_, line)| canaries.clone().any(|c| line.contains(c.as_str())))
        .map(|(index, _)| index + 1)
}

fn unexpected_errors<'a>(
    file: &'a str,
    text: &'a str,
    expected: &'a [String],
) -> impl Iterator<Item = &'a str> + 'a {
    text.lines().filter(|line| is_error(line)).filter(move |line| {
        !expected.iter().any(|entry| match entry.split_once('\t') {
            Some((only_in, part)) => file.starts_with(only_in) && line.contains(part),
            None => line.contains(entry.as_str()),
        })
    })
}

/// An ERROR event in one of the forms of `platform/telemetry`, or a panic.
fn is_error(line: &str) -> bool {
    line.split_whitespace().take(2).any(|word| word == "ERROR")
        || line.contains("\"level\":\"ERROR\"")
        || line.starts_with("thread '") && line.contains(" panicked at ")
}

fn read_lines(file: &Path) -> Result<Vec<String>> {
    let text = read_text(file)?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

fn read_text(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if entry.file_type()?.is_file() && entry.file_name() != EXPECTED_ERRORS {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_a_canary_is_found_wherever_it_stands() {
        let canaries = ["canary-0123".to_owned(), "short".to_owned()];
        let text = "fine\nxcanary-0123x\nshort\n";
        assert_eq!(leaked(text, &canaries).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn errors_are_found_in_every_form() {
        for line in [
            "2026-11-20T16:58:13.750249Z ERROR wayleave_auth: lost",
            "ERROR lost",
            "{\"timestamp\":\"x\",\"level\":\"ERROR\",\"message\":\"lost\"}",
            "thread 'main' (12) panicked at src/lib.rs:1:1:",
        ] {
            assert!(is_error(line), "{line}");
        }
        assert!(!is_error("2026-11-20T16:58:13.750249Z  WARN wayleave_auth: ERROR in a word"));
    }

    #[test]
    fn expected_errors_are_let_through_where_they_are_expected() {
        let text = "T ERROR a: lost the lease\nT ERROR a: disk full\n";
        let expected = ["lease".to_owned(), "other.\tdisk full".to_owned()];
        assert_eq!(unexpected_errors("a.log", text, &expected).count(), 1);
        assert_eq!(unexpected_errors("another.log", text, &expected).count(), 1);
        assert_eq!(unexpected_errors("other.agent.log", text, &expected).count(), 0);
    }
}
