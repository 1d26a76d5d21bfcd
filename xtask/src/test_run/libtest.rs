//! Counts what the test harness prints.

use std::fmt::Write;

/// Most suites in the table; the slowest come first.
const SUITES_SHOWN_MAX: usize = 15;

/// What the lines so far said.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) suites: Vec<Suite>,
    /// Processes that tests started and did not end.
    pub(super) left_processes: Vec<String>,
    next_suite: String,
    announced: Option<u32>,
    in_output_of_passed: bool,
}

/// One test program, or the examples in one crate's documentation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Suite {
    name: String,
    passed: u32,
    failed: u32,
    ignored: u32,
    seconds: f32,
}

impl Tally {
    /// Reads a line; false when it is output of a test that passed, which nobody wants on the terminal.
    pub(super) fn take(&mut self, line: &str) -> bool {
        if let Some(suite) = self.announced.and_then(|tests| Suite::parse(line, tests)) {
            self.suites.push(Suite { name: std::mem::take(&mut self.next_suite), ..suite });
            self.announced = None;
            self.in_output_of_passed = false;
            return true;
        }
        if self.announced.is_some() {
            match line {
                "successes:" => self.in_output_of_passed = true,
                "failures:" => self.in_output_of_passed = false,
                _ => {}
            }
            return !self.in_output_of_passed;
        }
        if let Some(name) = suite_name(line) {
            self.next_suite = name;
        } else if let Some(rest) = line.strip_prefix("running ") {
            self.announced = rest.split(' ').next().and_then(|number| number.parse().ok());
        }
        true
    }

    pub(super) fn passed(&self) -> u32 {
        self.suites.iter().map(|suite| suite.passed).sum()
    }

    pub(super) fn failed(&self) -> usize {
        let failed: u32 = self.suites.iter().map(|suite| suite.failed).sum();
        failed as usize
    }

    /// What is wrong although no test says so.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self
            .left_processes
            .iter()
            .map(|process| format!("a test left a process behind: {process}"))
            .collect();
        if self.passed() == 0 && self.failed() == 0 {
            complaints.push("no test ran".into());
        }
        if let Some(tests) = self.announced {
            complaints.push(format!("{} ended before it told about its {tests} tests", self.next_suite));
        }
        let ignored: u32 = self.suites.iter().map(|suite| suite.ignored).sum();
        if ignored > 0 {
            complaints.push(format!("{ignored} tests or documented examples were ignored"));
        }
        complaints
    }

    /// The slowest suites.
    pub(super) fn table(&self) -> String {
        let mut suites: Vec<&Suite> = self.suites.iter().collect();
        suites.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let mut table = String::from("seconds  passed  failed  suite\n");
        for suite in suites.iter().take(SUITES_SHOWN_MAX) {
            let Suite { name, passed, failed, seconds, .. } = suite;
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{seconds:>7.2}  {passed:>6}  {failed:>6}  {name}");
        }
        table
    }
}

impl Suite {
    /// The closing line of a suite, if its numbers add up to the tests that it announced: a test may print
    /// such a line too.
    fn parse(line: &str, announced: u32) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut suite = Self::default();
        let mut measured = 0;
        for part in counts.split("; ") {
            if let Some(seconds) = part.strip_prefix("finished in ") {
                suite.seconds = seconds.strip_suffix('s')?.parse().ok()?;
                continue;
            }
            let (number, what) = part.split_once(' ')?;
            let number: u32 = number.parse().ok()?;
            match what {
                "passed" => suite.passed = number,
                "failed" => suite.failed = number,
                "ignored" => suite.ignored = number,
                "measured" => measured = number,
                "filtered out" => {}
                _ => return None,
            }
        }
        (suite.passed + suite.failed + suite.ignored + measured == announced).then_some(suite)
    }
}

/// `     Running unittests src/lib.rs (target/debug/deps/wayleave_dial-0123)`, `   Doc-tests wayleave_dial`
fn suite_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (source, program) = line.strip_prefix("Running ")?.split_once(" (")?;
    let program = program.trim_end_matches(')').rsplit('/').next()?;
    let program = program.rsplit_once('-').map_or(program, |(name, _)| name);
    Some(if source.starts_with("unittests") { program.to_owned() } else { source.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
   Compiling a v0.1.0
     Running unittests src/lib.rs (target/debug/deps/wayleave_a-0123abcd)

running 2 tests
test x ... ok
test y ... FAILED

successes:

---- x stdout ----
test result: ok. 70 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.99s
noise

successes:
    x

failures:

---- y stdout ----
reason

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.25s

     Running tests/b.rs (target/debug/deps/b-0123)

running 1 test
test z ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s

   Doc-tests wayleave_a

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn tally(text: &str) -> (Tally, String) {
        let mut tally = Tally::default();
        let shown =
            text.lines().filter(|line| tally.take(line)).fold(String::new(), |all, line| all + line + "\n");
        (tally, shown)
    }

    #[test]
    fn suites_are_counted_and_named() {
        let (tally, _) = tally(RUN);
        assert_eq!((tally.passed(), tally.failed()), (2, 1));
        let names: Vec<&str> = tally.suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(names, ["wayleave_a", "tests/b.rs", "wayleave_a (documentation)"]);
        assert!(tally.complaints().is_empty());
        let table = tally.table();
        assert!(table.lines().nth(1).is_some_and(|line| line.ends_with("tests/b.rs")), "{table}");
    }

    #[test]
    fn output_of_passed_tests_is_hidden_and_of_failed_ones_shown() {
        let (_, shown) = tally(RUN);
        assert!(
            !shown.contains("noise") && shown.contains("reason") && shown.contains("Compiling"),
            "{shown}"
        );
    }

    #[test]
    fn a_run_without_tests_or_without_an_end_is_a_failure() {
        assert_eq!(tally("").0.complaints(), ["no test ran"]);
        let (cut, _) = tally("     Running tests/b.rs (b-1)\n\nrunning 1 test\n");
        assert_eq!(cut.complaints().len(), 2);
        let ignored = "running 1 test\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0s";
        assert_eq!(tally(ignored).0.complaints().len(), 2);
    }
}
