//! Words that nobody writes, in any tier.

use super::{Report, SourceFile};
use crate::scan::occurrences;

/// Where tasks are made.
const TASK_CRATE: &str = "platform/runtime/";

const SPAWNS: [&str; 3] = ["tokio::spawn", "tokio::task::spawn", "task::spawn"];
const UNBOUNDED: [&str; 4] =
    ["unbounded_channel", "UnboundedSender", "mpsc::unbounded", "std::sync::mpsc::channel"];
const STUBS: [&str; 2] = ["todo!", "unimplemented!"];
const SLEEPS: [&str; 2] = ["sleep(", "sleep_until("];
/// A function so named may pause between two looks at a condition.
const WAITER_PREFIXES: [&str; 3] = ["wait_", "until_", "poll_until"];

pub(super) fn check(sources: &[SourceFile], report: &mut Report) {
    for source in sources {
        if !source.path.starts_with(TASK_CRATE) {
            find(source, &SPAWNS, "tasks", "tasks have names and owners: use a TaskGroup", report);
        }
        find(source, &UNBOUNDED, "bounds", "a queue without a bound is a leak with a delay", report);
        find(source, &STUBS, "stubs", "what is not there is refused clearly, not left to panic", report);
        find(source, &["#[ignore"], "ignored tests", "a test that does not run shows nothing", report);
        check_sleeps(source, report);
    }
}

fn find(source: &SourceFile, words: &[&str], rule: &'static str, message: &str, report: &mut Report) {
    let mut places: Vec<String> = Vec::new();
    for word in words {
        places.extend(occurrences(&source.scan.code, word).map(|offset| source.place(offset)));
    }
    places.dedup();
    for place in places {
        report.problem(rule, place, message);
    }
}

/// Tests wait for conditions, through a function that says so.
fn check_sleeps(source: &SourceFile, report: &mut Report) {
    let functions = source.scan.functions();
    for word in SLEEPS {
        for offset in occurrences(&source.scan.code, word).filter(|o| source.scan.is_test(*o)) {
            let waits = functions
                .iter()
                .filter(|function| function.range.contains(&offset))
                .any(|function| WAITER_PREFIXES.iter().any(|prefix| function.name.starts_with(prefix)));
            if !waits {
                let message = "a test steps the clock or waits for a condition in a `wait_…` function";
                report.problem("sleeps", source.place(offset), message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_rules(path: &str, text: &str, expected: &[&str]) {
        let mut report = Report::default();
        check(&[SourceFile::of(path, text)], &mut report);
        let rules: Vec<&str> = report.problems.iter().map(|problem| problem.rule).collect();
        assert_eq!(rules, expected, "{path} {text:?}");
    }

    #[test]
    fn banned_words_are_found() {
        check_rules("services/a/src/lib.rs", "fn a() { tokio::spawn(b()); }", &["tasks"]);
        check_rules("platform/runtime/src/lib.rs", "fn a() { tokio::spawn(b()); }", &[]);
        check_rules("services/a/src/lib.rs", "fn a() { mpsc::unbounded_channel(); }", &["bounds"]);
        check_rules("services/a/src/lib.rs", "fn a() { todo!() }", &["stubs"]);
        check_rules("services/a/tests/b.rs", "#[test]\n#[ignore]\nfn a() {}", &["ignored tests"]);
    }

    #[test]
    fn only_waiting_functions_pause_in_tests() {
        check_rules("services/a/tests/b.rs", "fn a() { thread::sleep(x); }", &["sleeps"]);
        check_rules("services/a/tests/b.rs", "fn wait_for_line() { thread::sleep(x); }", &[]);
        check_rules("services/a/src/lib.rs", "fn a() { clock.sleep(x); }", &[]);
    }
}
