//! How large things are, per tier, and which are too large.

use super::{Report, SourceFile};
use crate::scan::{LineKind, occurrences};
use crate::workspace::Workspace;
use std::fmt::Write;

const FILE_LINES_MAX: usize = 1_000;
const FILE_LINES_WARN: usize = 800;
const FILE_LINES_P90_AIM: usize = 400;
const FUNCTION_LINES_MAX: usize = 150;
const FUNCTION_LINES_AIM: usize = 70;
const TEST_PERCENT_MIN: usize = 25;
const TEST_PERCENT_AIM: usize = 40;
/// `expect` outside tests per 1,000 lines of code outside tests.
const EXPECT_PER_1000_MAX: usize = 2;

const TIERS: [&str; 10] =
    ["core", "wire", "api", "platform", "services", "adapters", "bin", "tests", "bench", "xtask"];

/// What was counted in some files.
#[derive(Default)]
struct Count {
    file_lines: Vec<usize>,
    code: usize,
    test_code: usize,
    comments: usize,
    expects: usize,
    unwraps: usize,
    functions: usize,
    long_functions: usize,
    longest_function: usize,
}

/// Adds what is too large to the report, and gives the table.
pub(super) fn check(workspace: &Workspace, sources: &[SourceFile], report: &mut Report) -> String {
    for source in sources {
        check_file(source, report);
    }
    let total = Count::of(sources.iter());
    check_total(&total, report);
    let mut table = String::from(
        "tier      crates files  lines   p90  tests%  comments%  functions  >70  longest  expect/1000  unwrap\n",
    );
    for name in TIERS {
        let crates = workspace
            .crates
            .iter()
            .filter(|krate| crate::workspace::tier(&workspace.directory(krate)) == name);
        let count = Count::of(sources.iter().filter(|source| source.tier() == name));
        table.push_str(&count.row(name, crates.count()));
    }
    table.push_str(&total.row("all", workspace.crates.len()));
    table
}

fn check_file(source: &SourceFile, report: &mut Report) {
    let lines = source.text.lines().count();
    let message = format!("{lines} lines, at most {FILE_LINES_MAX}");
    if lines > FILE_LINES_MAX {
        report.problem("file size", &source.path, message);
    } else if lines > FILE_LINES_WARN {
        report.warning("file size", &source.path, message);
    }
    for function in source.scan.functions() {
        if source.scan.is_test(function.range.start) || function.lines <= FUNCTION_LINES_AIM {
            continue;
        }
        let place = format!("{}:{}", source.path, function.first_line);
        let message = format!("`{}` has {} lines, aim {FUNCTION_LINES_AIM}", function.name, function.lines);
        if function.lines > FUNCTION_LINES_MAX && source.must_be_pure() {
            report.problem("function size", place, message);
        } else {
            report.warning("function size", place, message);
        }
    }
}

fn check_total(total: &Count, report: &mut Report) {
    if total.test_percent() < TEST_PERCENT_MIN {
        let message = format!("{} % of the code, at least {TEST_PERCENT_MIN} %", total.test_percent());
        report.problem("tests", "workspace", message);
    } else if total.test_percent() < TEST_PERCENT_AIM {
        report.warning("tests", "workspace", format!("{} %, aim {TEST_PERCENT_AIM} %", total.test_percent()));
    }
    let product_code = total.code - total.test_code;
    if total.expects * 1_000 > EXPECT_PER_1000_MAX * product_code {
        let message =
            format!("{} in {product_code} lines, at most {EXPECT_PER_1000_MAX} per 1,000", total.expects);
        report.problem("expect", "workspace", message);
    }
    if total.p90() > FILE_LINES_P90_AIM {
        report.warning(
            "file size",
            "workspace",
            format!("p90 {} lines, aim {FILE_LINES_P90_AIM}", total.p90()),
        );
    }
}

impl Count {
    fn of<'a>(sources: impl Iterator<Item = &'a SourceFile>) -> Self {
        let mut count = Self::default();
        for source in sources {
            count.add(source);
        }
        count.file_lines.sort_unstable();
        count
    }

    fn add(&mut self, source: &SourceFile) {
        self.file_lines.push(source.text.lines().count());
        for (kind, is_test) in source.scan.lines() {
            match kind {
                LineKind::Code => {
                    self.code += 1;
                    self.test_code += usize::from(is_test);
                }
                LineKind::Comment => self.comments += 1,
                LineKind::Blank => {}
            }
        }
        let outside_tests = |word| {
            occurrences(&source.scan.code, word).filter(|offset| !source.scan.is_test(*offset)).count()
        };
        self.expects += outside_tests(".expect(") + outside_tests(".expect_err(");
        self.unwraps += outside_tests(".unwrap()");
        for function in source.scan.functions() {
            if !source.scan.is_test(function.range.start) {
                self.functions += 1;
                self.long_functions += usize::from(function.lines > FUNCTION_LINES_AIM);
                self.longest_function = self.longest_function.max(function.lines);
            }
        }
    }

    fn p90(&self) -> usize {
        let index = (self.file_lines.len() * 9 / 10).min(self.file_lines.len().saturating_sub(1));
        self.file_lines.get(index).copied().unwrap_or(0)
    }

    fn test_percent(&self) -> usize {
        percent(self.test_code, self.code)
    }

    fn row(&self, name: &str, crates: usize) -> String {
        let product_code = self.code - self.test_code;
        let tenths = (self.expects * 10_000).checked_div(product_code).unwrap_or(0);
        let mut row = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            row,
            "{name:<9} {crates:>6} {files:>5} {lines:>6} {p90:>5} {tests:>7} {comments:>10} {functions:>10} \
             {long:>4} {longest:>8} {expects:>12} {unwraps:>7}",
            files = self.file_lines.len(),
            lines = self.file_lines.iter().sum::<usize>(),
            p90 = self.p90(),
            tests = self.test_percent(),
            comments = percent(self.comments, self.code + self.comments),
            functions = self.functions,
            long = self.long_functions,
            longest = self.longest_function,
            expects = format!("{}.{}", tenths / 10, tenths % 10),
            unwraps = self.unwraps,
        );
        row
    }
}

fn percent(part: usize, whole: usize) -> usize {
    (part * 100).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tests_and_expects_are_counted() {
        let text = "//! A.\n\nfn a() {\n    b.expect(\"x\");\n}\n#[cfg(test)]\nmod tests {\n    fn c() { d.expect(\"x\"); }\n}\n";
        let count = Count::of([SourceFile::of("core/a/src/lib.rs", text)].iter());
        assert_eq!((count.code, count.test_code, count.comments), (7, 4, 1));
        assert_eq!((count.expects, count.functions, count.longest_function), (1, 1, 3));
        assert_eq!(count.p90(), 9);
    }

    #[test]
    fn what_is_too_large_is_reported() {
        let body = "    let a = 1;\n".repeat(FUNCTION_LINES_MAX);
        let mut report = Report::default();
        for path in ["core/a/src/lib.rs", "services/a/src/lib.rs", "core/a/tests/b.rs"] {
            check_file(&SourceFile::of(path, &format!("fn a() {{\n{body}}}\n")), &mut report);
        }
        check_file(&SourceFile::of("core/a/src/b.rs", &"\n".repeat(FILE_LINES_MAX + 1)), &mut report);
        let rules: Vec<&str> = report.problems.iter().map(|problem| problem.rule).collect();
        assert_eq!(rules, ["function size", "file size"]);
        assert_eq!(report.warnings.len(), 1);
    }
}
