//! The rules of the house: which crate may use which, what core and wire may not do, sizes and shapes.
//!
//! Each rule is a module that adds to a [`Report`]. Problems fail; warnings only show.

mod ban;
mod edge;
mod letter;
mod opening;
mod purity;
mod size;
mod text;

use crate::scan::{Scan, TestModule};
use crate::workspace::{Workspace, tier};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Most warnings of one rule that are printed.
const WARNINGS_SHOWN_MAX: usize = 12;

/// A Rust file of this workspace.
struct SourceFile {
    /// Below the root.
    path: String,
    text: String,
    scan: Scan,
}

impl SourceFile {
    fn tier(&self) -> &str {
        tier(&self.path)
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path, self.scan.line_of(offset))
    }

    /// In a tier where deciding is all that code may do.
    fn must_be_pure(&self) -> bool {
        matches!(self.tier(), "core" | "wire")
    }
}

/// What the rules found.
#[derive(Default)]
struct Report {
    problems: Vec<Finding>,
    warnings: Vec<Finding>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    rule: &'static str,
    place: String,
    message: String,
}

impl Report {
    fn problem(&mut self, rule: &'static str, place: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Finding { rule, place: place.into(), message: message.into() });
    }

    fn warning(&mut self, rule: &'static str, place: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Finding { rule, place: place.into(), message: message.into() });
    }
}

/// Applies every rule and prints what was found and the table of sizes; true when there are no problems.
pub(crate) fn run() -> Result<bool> {
    let workspace = Workspace::load()?;
    let committed = text::committed_files(&workspace)?;
    let sources = read_sources(&workspace, &committed)?;
    let mut report = Report::default();
    edge::check(&workspace, &mut report);
    purity::check(&sources, &mut report);
    ban::check(&sources, &mut report);
    opening::check(&workspace, &sources, &mut report);
    letter::check(&workspace, &sources, &mut report);
    text::check(&workspace, &committed, &sources, &mut report);
    let table = size::check(&workspace, &sources, &mut report);
    print(report, &table)
}

fn print(mut report: Report, table: &str) -> Result<bool> {
    report.problems.sort();
    report.warnings.sort();
    for group in report.warnings.chunk_by(|a, b| a.rule == b.rule) {
        for finding in group.iter().take(WARNINGS_SHOWN_MAX) {
            println!("warning: {}: {}: {}", finding.place, finding.rule, finding.message);
        }
        if let Some(more) = group.len().checked_sub(WARNINGS_SHOWN_MAX).filter(|more| *more > 0) {
            println!("warning: {more} more of {}", group.first().map_or("", |finding| finding.rule));
        }
    }
    for finding in &report.problems {
        println!("error: {}: {}: {}", finding.place, finding.rule, finding.message);
    }
    println!("\n{table}");
    println!("tidy: {} problems, {} warnings", report.problems.len(), report.warnings.len());
    Ok(report.problems.is_empty())
}

fn read_sources(workspace: &Workspace, committed: &[String]) -> Result<Vec<SourceFile>> {
    let rust = committed.iter().filter(|path| path.ends_with(".rs"));
    let mut sources = Vec::new();
    for path in rust {
        let text = std::fs::read_to_string(workspace.workspace_root.join(path))
            .with_context(|| format!("cannot read {path}"))?;
        let scan = Scan::new(&text, is_test_path(path));
        sources.push(SourceFile { path: path.clone(), text, scan });
    }
    mark_test_modules(&mut sources);
    Ok(sources)
}

/// Files that only test targets compile, as far as their path tells.
fn is_test_path(path: &str) -> bool {
    tier(path) == "tests" || path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches"))
}

/// Follows `#[cfg(test)] mod name;` to the files behind it.
fn mark_test_modules(sources: &mut [SourceFile]) {
    let mut test_files = BTreeSet::new();
    for source in sources.iter() {
        let path = Path::new(&source.path);
        let directory = match path.file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "main" | "mod") | None => path.parent().unwrap_or(path).to_owned(),
            Some(_) => path.with_extension(""),
        };
        for module in source.scan.test_modules(&source.text) {
            match module {
                TestModule::Named(name) => {
                    test_files.insert(directory.join(format!("{name}.rs")));
                    test_files.insert(directory.join(name).join("mod.rs"));
                }
                TestModule::At(file) => {
                    test_files.insert(path.parent().unwrap_or(path).join(file));
                }
            }
        }
    }
    for source in sources {
        if test_files.contains(Path::new(&source.path)) {
            source.scan = Scan::new(&source.text, true);
        }
    }
}

#[cfg(test)]
impl SourceFile {
    fn of(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), scan: Scan::new(text, is_test_path(path)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_declared_for_tests_are_tests() {
        let mut sources = [
            SourceFile::of("core/a/src/lib.rs", "#[cfg(test)]\nmod cases;\nmod real;\n"),
            SourceFile::of("core/a/src/cases.rs", "fn a() {}"),
            SourceFile::of("core/a/src/real.rs", "fn a() {}"),
        ];
        mark_test_modules(&mut sources);
        let tests: Vec<bool> = sources.iter().map(|source| source.scan.is_test(0)).collect();
        assert_eq!(tests, [true, true, false]);
    }
}
