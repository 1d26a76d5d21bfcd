//! Every crate and module of some length says first what it is; none is named for being shared.

use super::{Report, SourceFile};
use crate::workspace::Workspace;

/// Modules below this many lines may speak for themselves.
const TRIVIAL_MODULE_LINES: usize = 40;

const FORBIDDEN_STEMS: [&str; 9] =
    ["common", "helper", "helpers", "manager", "misc", "traits", "types", "util", "utils"];

pub(super) fn check(workspace: &Workspace, sources: &[SourceFile], report: &mut Report) {
    let roots: Vec<String> = workspace
        .crates
        .iter()
        .flat_map(|krate| &krate.targets)
        .map(|target| workspace.relative(&target.src_path))
        .collect();
    for source in sources {
        check_opening(source, roots.contains(&source.path), report);
        let stem = source.path.trim_end_matches("/mod.rs").trim_end_matches(".rs").rsplit('/').next();
        if stem.is_some_and(|stem| FORBIDDEN_STEMS.contains(&stem)) {
            report.problem(
                "names",
                &source.path,
                "a module is named for its concept; if it has none, it is two",
            );
        }
    }
}

fn check_opening(source: &SourceFile, is_root: bool, report: &mut Report) {
    if !is_root && source.text.lines().count() < TRIVIAL_MODULE_LINES {
        return;
    }
    if !source.text.starts_with("//!") {
        report.problem(
            "opening",
            format!("{}:1", source.path),
            "open with `//!`: what it is, what it is not",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_problem(text: &str, is_root: bool, expected: bool) {
        let mut report = Report::default();
        check_opening(&SourceFile::of("core/a/src/x.rs", text), is_root, &mut report);
        assert_eq!(!report.problems.is_empty(), expected);
    }

    #[test]
    fn long_modules_and_crates_introduce_themselves() {
        check_problem("fn a() {}\n", false, false);
        check_problem("fn a() {}\n", true, true);
        check_problem(&"fn a() {}\n".repeat(TRIVIAL_MODULE_LINES), false, true);
        check_problem(&format!("//! A.\n{}", "fn a() {}\n".repeat(TRIVIAL_MODULE_LINES)), true, false);
    }
}
