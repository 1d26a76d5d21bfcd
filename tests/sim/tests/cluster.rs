//! Clusters of ten thousand seeds, with and without bugs.
//!
//! `WAYLEAVE_SIM_SEED=n` runs one seed alone; `WAYLEAVE_SIM_SEEDS=n` runs the first n.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use wayleave_sim::{Coverage, Mutation, run};

/// Seeds of an ordinary run.
const SEEDS: u64 = 10_000;
/// A bug must be caught by one of the first seeds.
const MUTATION_SEEDS: u64 = 1500;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn kept_seeds() -> Vec<u64> {
    include_str!("seeds.txt")
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Runs work items in as many threads as there are processors; each item is one thread's alone.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    work(item);
                }
            });
        }
    });
}

#[test]
fn every_seed_keeps_the_invariants() {
    let seeds: Vec<u64> = match number_from("WAYLEAVE_SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            kept_seeds().into_iter().chain(0..number_from("WAYLEAVE_SIM_SEEDS").unwrap_or(SEEDS)).collect()
        }
    };
    let failures = Mutex::new(Vec::new());
    let coverage = Mutex::new(Coverage::default());
    let events = AtomicU64::new(0);
    in_parallel(&seeds, |seed| {
        let report = run(*seed, None);
        events.fetch_add(report.events, Ordering::Relaxed);
        coverage.lock().unwrap_or_else(PoisonError::into_inner).add(&report.coverage);
        if let Some(violation) = report.violation {
            failures.lock().unwrap_or_else(PoisonError::into_inner).push((*seed, violation));
        }
    });
    let coverage = coverage.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} seeds, {} events\n{coverage}", seeds.len(), events.into_inner());
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort();
    for (seed, violation) in failures.iter().take(20) {
        println!("WAYLEAVE_SIM_SEED={seed} cargo test -p wayleave-sim   # {violation}");
    }
    assert!(failures.is_empty(), "{} of {} seeds failed", failures.len(), seeds.len());
    if seeds.len() as u64 >= SEEDS {
        assert_eq!(coverage.missing(), Vec::<String>::new(), "this never happened, so it was not tested");
    }
}

#[test]
fn every_bug_is_caught_by_some_seed() {
    let missed = Mutex::new(Vec::new());
    in_parallel(&Mutation::ALL, |mutation| {
        let caught = (0..MUTATION_SEEDS).find_map(|seed| Some((seed, run(seed, Some(*mutation)).violation?)));
        match caught {
            Some((seed, violation)) => println!("{mutation:?}: seed {seed}: {violation}"),
            None => missed.lock().unwrap_or_else(PoisonError::into_inner).push(*mutation),
        }
    });
    let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(missed.is_empty(), "not caught by {MUTATION_SEEDS} seeds: {missed:?}");
}

#[test]
fn a_seed_always_gives_the_same_run() {
    for seed in 0..5 {
        let (one, two) = (run(seed, None), run(seed, None));
        assert_eq!((one.events, one.coverage.to_string()), (two.events, two.coverage.to_string()));
    }
}
