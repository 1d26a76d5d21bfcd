//! core and wire decide and translate; they never wait, look, or roll dice.

use super::{Report, SourceFile};
use crate::scan::occurrences;

const RULE: &str = "purity";

/// Words that reach outside, and what to do instead.
const EFFECTS: [(&str, &str); 34] = [
    ("async", ASYNC),
    (".await", ASYNC),
    ("tokio", ASYNC),
    ("futures", ASYNC),
    ("TcpStream", IO),
    ("TcpListener", IO),
    ("UdpSocket", IO),
    ("UnixStream", IO),
    ("UnixListener", IO),
    ("UnixDatagram", IO),
    ("ToSocketAddrs", IO),
    ("to_socket_addrs", IO),
    ("std::fs", IO),
    ("std::io::stdin", IO),
    ("std::io::stdout", IO),
    ("std::io::stderr", IO),
    ("std::process", IO),
    ("std::thread", "the shell owns threads"),
    ("thread::spawn", "the shell owns threads"),
    ("std::env", "configuration is an argument"),
    ("env::var", "configuration is an argument"),
    ("SystemTime::now", CLOCK),
    ("Instant::now", CLOCK),
    ("Timestamp::now", CLOCK),
    ("Zoned::now", CLOCK),
    (".elapsed()", CLOCK),
    ("rand::", ENTROPY),
    ("getrandom", ENTROPY),
    ("OsRng", ENTROPY),
    ("SystemRandom", ENTROPY),
    ("RandomState", ENTROPY),
    ("new_v4", ENTROPY),
    ("now_v7", ENTROPY),
    ("unsafe", "unsafe code lives in platform"),
];

const ASYNC: &str = "machines return effects and are driven from outside";
const IO: &str = "effects are returned data";
const CLOCK: &str = "`now` is an argument, always last";
const ENTROPY: &str = "entropy is passed in as bytes";

/// Modules of std that a grouped import may not bring in.
const STD_MODULES: [&str; 4] = ["env", "fs", "process", "thread"];

pub(super) fn check(sources: &[SourceFile], report: &mut Report) {
    for source in sources.iter().filter(|source| source.must_be_pure()) {
        for (word, instead) in EFFECTS {
            for offset in occurrences(&source.scan.code, word).filter(|o| !source.scan.is_test(*o)) {
                report.problem(RULE, source.place(offset), format!("`{word}`: {instead}"));
            }
        }
        for offset in grouped_std_imports(&source.scan.code).filter(|o| !source.scan.is_test(*o)) {
            report.problem(RULE, source.place(offset), IO);
        }
    }
}

/// `use std::{fmt, fs};`
fn grouped_std_imports(code: &str) -> impl Iterator<Item = usize> + '_ {
    occurrences(code, "std::{").filter(|&offset| {
        let group = code[offset..].split(';').next().unwrap_or_default();
        STD_MODULES.iter().any(|module| occurrences(group, module).next().is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_problems(path: &str, text: &str, expected: usize) {
        let mut report = Report::default();
        check(&[SourceFile::of(path, text)], &mut report);
        assert_eq!(report.problems.len(), expected, "{path} {text:?}");
    }

    #[test]
    fn effects_are_found_in_code_and_nowhere_else() {
        check_problems("core/a/src/lib.rs", "fn a() { let t = SystemTime::now(); }", 1);
        check_problems("wire/a/src/lib.rs", "async fn a() { b().await }", 2);
        check_problems("core/a/src/lib.rs", "use std::{fmt, fs};", 1);
        check_problems("core/a/src/lib.rs", "use std::{fmt, net::IpAddr};", 0);
        check_problems("core/a/src/lib.rs", "// async\nfn a() { b(\"tokio unsafe\") }", 0);
        check_problems("core/a/src/lib.rs", "#[cfg(test)]\nmod tests { use std::fs; }", 0);
        check_problems("core/a/tests/b.rs", "use std::fs;", 0);
        check_problems("platform/a/src/lib.rs", "async fn a() {}", 0);
    }
}
