//! Every target on its seeds, its corpus and mutations of both; and every decoder with a target.
//!
//! Without arguments it runs a fixed number of inputs, the same each time. `--seconds N` runs each target so long,
//! `--seed S` from other mutations, and a name chooses targets whose name contains it.

#![expect(clippy::print_stdout, reason = "a test program tells what it ran")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wayleave_fuzz::decoders::{Reached, TABLE, of_sources};
use wayleave_fuzz::{Driver, Finding, Target, all, memory};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Inputs of each target when nobody says how long.
const RUNS: u64 = 5000;
/// Most time of one target then: what a slow machine does not reach in it is left to longer runs.
const TIME_MAX: Duration = Duration::from_secs(5);
/// A thread of its own, so that deep recursion shows as it would in a task of the daemon.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// What to run.
struct Plan {
    seconds: Option<u64>,
    seed: u64,
    filter: String,
}

fn main() -> ExitCode {
    let plan = Plan::of(std::env::args().skip(1));
    if std::env::args().any(|argument| argument == "--list") {
        println!("f_every_decoder_has_a_target: test");
        all().iter().for_each(|target| println!("f_{}: test", target.name));
        return ExitCode::SUCCESS;
    }
    // What is found is told with its input; the hook would tell it in the middle of the table.
    std::panic::set_hook(Box::new(|_| {}));
    let mut targets = all();
    targets.retain(|target| target.name.contains(&plan.filter));
    let count = targets.len() + if plan.filter.is_empty() { 3 } else { 0 };
    println!("running {count} tests");
    let (begin, mut failed) = (Instant::now(), 0);
    let mut tell = |name: &str, outcome: Result<String, String>| match outcome {
        Ok(text) => println!("test f_{name} ... ok {text}"),
        Err(text) => {
            failed += 1;
            println!("test f_{name} ... FAILED\n{text}");
        }
    };
    if plan.filter.is_empty() {
        tell("every_decoder_has_a_target", f_every_decoder_has_a_target());
        tell("memory_is_counted", f_memory_is_counted());
        tell("careless_decoders_are_found", f_careless_decoders_are_found());
    }
    for target in targets {
        let (name, seconds, seed) = (target.name, plan.seconds, plan.seed);
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let running = thread.spawn(move || run(&target, seconds, seed)).unwrap();
        tell(name, running.join().unwrap_or_else(|_| Err("the target's seeds could not be made".to_owned())));
    }
    let (word, passed) = (if failed == 0 { "ok" } else { "FAILED" }, count - failed);
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        begin.elapsed().as_secs_f32()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

impl Plan {
    fn of(arguments: impl Iterator<Item = String>) -> Self {
        let mut plan = Self { seconds: None, seed: 1, filter: String::new() };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seconds" => plan.seconds = Some(arguments.next().unwrap().parse().unwrap()),
                "--seed" => plan.seed = arguments.next().unwrap().parse().unwrap(),
                option if option.starts_with('-') => {}
                name => name.trim_start_matches("f_").clone_into(&mut plan.filter),
            }
        }
        plan
    }
}

fn run(target: &Target, seconds: Option<u64>, seed: u64) -> Result<String, String> {
    let mut driver = Driver::new(target, seed);
    let begin = Instant::now();
    let outcome = driver.run_corpus().and_then(|()| {
        loop {
            let is_over = match seconds {
                Some(seconds) => begin.elapsed() >= Duration::from_secs(seconds),
                None => driver.runs() >= RUNS || begin.elapsed() >= TIME_MAX,
            };
            if is_over {
                return Ok(());
            }
            driver.run_next()?;
        }
    });
    let (runs, held) = (driver.runs(), driver.most_held().div_ceil(1024));
    match outcome {
        Ok(()) => Ok(format!("{runs} inputs in {:.1} s, {held} KiB at most", begin.elapsed().as_secs_f32())),
        Err(finding) => Err(describe(target.name, &finding)),
    }
}

/// What happened, and a file of the input to keep in the corpus once it is mended.
fn describe(target: &str, finding: &Finding) -> String {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&directory).unwrap();
    let hash =
        finding.input.iter().fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let file: PathBuf = directory.join(format!("{target}-{hash:016x}"));
    std::fs::write(&file, &finding.input).unwrap();
    format!(
        "{}\ninput of {} bytes in {}: {}\nput it into tests/fuzz/corpus/{target}/ when you mend it",
        finding.what,
        finding.input.len(),
        file.display(),
        finding
            .input
            .iter()
            .take(200)
            .copied()
            .flat_map(std::ascii::escape_default)
            .map(char::from)
            .collect::<String>()
    )
}

/// A decoder that is new stands in the table, and what stands there exists.
fn f_every_decoder_has_a_target() -> Result<String, String> {
    let found = of_sources();
    let told: BTreeSet<_> =
        TABLE.iter().map(|(path, name, _)| ((*path).to_owned(), (*name).to_owned())).collect();
    let targets: BTreeSet<_> = all().iter().map(|target| target.name).collect();
    let mut complaints = Vec::new();
    for (path, name) in found.difference(&told) {
        complaints
            .push(format!("{name} in {path} has no target: add it to TABLE in tests/fuzz/src/decoders.rs"));
    }
    for (path, name) in told.difference(&found) {
        complaints.push(format!("TABLE names {name} in {path}, which is not there"));
    }
    let unknown = TABLE.iter().filter_map(|(_, _, reached)| match reached {
        Reached::By(target) if !targets.contains(target) => {
            Some(format!("TABLE names the target {target}, which is not there"))
        }
        Reached::By(_) | Reached::Not(_) => None,
    });
    complaints.extend(unknown);
    let reached = TABLE.iter().filter(|(_, _, reached)| matches!(reached, Reached::By(_))).count();
    if complaints.is_empty() {
        Ok(format!("{reached} of {} by a target", TABLE.len()))
    } else {
        Err(complaints.join("\n"))
    }
}

/// A decoder that believes a length and one that does not look where it reads: both must be caught.
fn f_careless_decoders_are_found() -> Result<String, String> {
    let seeds = || vec![vec![0, 0, 0, 2, b'h', b'i']];
    let believing: fn(&[u8]) = |bytes| {
        let Some((length, _)) = bytes.split_first_chunk::<4>() else { return };
        let length = u32::from_be_bytes(*length) & 0x0fff_ffff;
        drop(std::hint::black_box(vec![0_u8; length as usize]));
    };
    let careless: fn(&[u8]) = |bytes| {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return };
        let length = u32::from_be_bytes(*length) as usize;
        std::hint::black_box(&rest[..length]);
    };
    for (run, expected) in [(believing, "bytes held"), (careless, "panic")] {
        let target = Target { name: "careless", memory_bytes_max: 1 << 20, seeds, run };
        let mut driver = Driver::new(&target, 1);
        driver.run_corpus().map_err(|finding| finding.what)?;
        match (0..RUNS).find_map(|_| driver.run_next().err()) {
            Some(finding) if finding.what.contains(expected) => {}
            other => return Err(format!("{expected}: {other:?}")),
        }
    }
    Ok(String::new())
}

/// The cap would hold nothing if the count did not count.
fn f_memory_is_counted() -> Result<String, String> {
    let (kept, held) = memory::most_held(|| vec![7_u8; 3 << 20]);
    drop(kept);
    if (3 << 20..4 << 20).contains(&held) {
        Ok(format!("{held} bytes"))
    } else {
        Err(format!("{held} bytes"))
    }
}
