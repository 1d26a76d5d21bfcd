//! What committed text may not say, in whatever language: paths of one machine, private registries, notes to
//! self, and words that promise instead of doing.

use super::{Report, SourceFile};
use crate::process::output_of;
use crate::scan::occurrences;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::Command;

/// This file spells out what it forbids.
const LIST_ITSELF: &str = "xtask/src/tidy/text.rs";

/// Paths that exist on somebody's machine only.
const MACHINE_PATHS: [&str; 3] = ["/work/", "/root/", "/tmp/bash_jobs"];

const FORBIDDEN_WORDS: [&str; 12] = [
    "fixme",
    "under construction",
    "lorem ipsum",
    "not yet implemented",
    "claude",
    "anthropic",
    "chatgpt",
    "openai",
    "copilot",
    "ai-generated",
    "language model",
    "<<<<<<<",
];

const PUBLIC_CRATES: &str = "registry+https://github.com/rust-lang/crates.io-index";
const PUBLIC_NPM: &str = "https://registry.npmjs.org/";

/// Files that are committed or would be, below the root.
pub(super) fn committed_files(workspace: &Workspace) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.current_dir(&workspace.workspace_root);
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = output_of(&mut command)?;
    let paths = listed.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    let paths = paths.map(|path| String::from_utf8_lossy(path).into_owned());
    Ok(paths.filter(|path| workspace.workspace_root.join(path).is_file()).collect())
}

pub(super) fn check(
    workspace: &Workspace,
    committed: &[String],
    sources: &[SourceFile],
    report: &mut Report,
) {
    for source in sources.iter().filter(|source| source.path != LIST_ITSELF) {
        check_words(&source.path, &source.text, report);
        check_notes(&source.path, &source.scan.comments, report);
    }
    for path in committed.iter().filter(|path| !path.ends_with(".rs")) {
        let Ok(text) = std::fs::read_to_string(workspace.workspace_root.join(path)) else { continue };
        match path.rsplit('/').next().unwrap_or(path) {
            "Cargo.lock" => check_sources(path, &text, "source = \"", PUBLIC_CRATES, report),
            "package-lock.json" => check_sources(path, &text, "\"resolved\": \"", PUBLIC_NPM, report),
            ".npmrc" | "pip.conf" => report.problem("registries", path, "a registry is set on the machine"),
            _ => {
                check_words(path, &text, report);
                check_notes(path, &text, report);
            }
        }
    }
}

fn check_words(path: &str, text: &str, report: &mut Report) {
    for (index, line) in text.lines().enumerate() {
        let place = || format!("{path}:{}", index + 1);
        for machine_path in MACHINE_PATHS {
            if line.match_indices(machine_path).any(|(offset, _)| begins_a_path(line, offset)) {
                report.problem("machine paths", place(), format!("{machine_path} exists on one machine"));
            }
        }
        let lower = line.to_lowercase();
        for word in FORBIDDEN_WORDS {
            if occurrences(&lower, word).next().is_some() {
                report.problem("words", place(), format!("`{word}` has no place in committed text"));
            }
        }
    }
}

/// Tells the start of an absolute path from the middle of a longer one or of an address.
fn begins_a_path(line: &str, offset: usize) -> bool {
    let before = line[..offset].chars().next_back();
    !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '}' | '/'))
}

/// `TODO(#12)` names who waits for it; every other form is forgotten.
fn check_notes(path: &str, text: &str, report: &mut Report) {
    for (index, line) in text.lines().enumerate() {
        for offset in occurrences(line, "TODO") {
            let issue = line[offset..].strip_prefix("TODO(#").and_then(|rest| rest.split_once(')'));
            if issue.is_none_or(|(number, _)| number.parse::<u32>().is_err()) {
                let message = "a note names its issue, as in TODO(#12), or is deleted";
                report.problem("notes", format!("{path}:{}", index + 1), message);
            }
        }
    }
}

fn check_sources(path: &str, text: &str, mark: &str, public: &str, report: &mut Report) {
    for (index, line) in text.lines().enumerate() {
        if let Some((_, source)) = line.split_once(mark)
            && !source.starts_with(public)
        {
            report.problem("registries", format!("{path}:{}", index + 1), format!("not from {public}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_line(line: &str, expected: &[&str]) {
        let mut report = Report::default();
        check_words("a.md", line, &mut report);
        check_notes("a.md", line, &mut report);
        let rules: Vec<&str> = report.problems.iter().map(|problem| problem.rule).collect();
        assert_eq!(rules, expected, "{line}");
    }

    #[test]
    fn machine_paths_are_told_from_others() {
        check_line("see /work/main/x", &["machine paths"]);
        check_line("\"/root/.ssh\"", &["machine paths"]);
        check_line("https://example.com/work/x and net/work/x", &[]);
    }

    #[test]
    fn notes_name_their_issue() {
        check_line("TODO(#12): later", &[]);
        check_line("TODO: later", &["notes"]);
        check_line("TODO(me)", &["notes"]);
        check_line("FIXME", &["words"]);
    }

    #[test]
    fn lock_files_name_public_registries() {
        let mut report = Report::default();
        let lock = format!("source = \"{PUBLIC_CRATES}\"\nsource = \"registry+https://mirror.example/\"\n");
        check_sources("Cargo.lock", &lock, "source = \"", PUBLIC_CRATES, &mut report);
        assert_eq!(report.problems.iter().map(|p| p.place.as_str()).collect::<Vec<_>>(), ["Cargo.lock:2"]);
    }
}
