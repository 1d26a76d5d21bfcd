//! Runs a target on its seeds, on its corpus, and on mutations of both.

use crate::memory::most_held;
use crate::{Mutator, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Inputs that are mutated further because they made a target hold more than any before.
const KEPT_MAX: usize = 256;

/// An input that a target did not take well.
#[derive(Debug)]
pub struct Finding {
    /// What happened.
    pub what: String,
    /// The input.
    pub input: Vec<u8>,
}

/// A target and what it is run on.
pub struct Driver<'t> {
    target: &'t Target,
    inputs: Vec<Vec<u8>>,
    mutator: Mutator,
    most_held: usize,
    runs: u64,
}

impl<'t> Driver<'t> {
    /// Reads the corpus. The same seed makes the same inputs.
    ///
    /// # Panics
    /// When the corpus cannot be read.
    pub fn new(target: &'t Target, seed: u64) -> Self {
        let mut inputs = (target.seeds)();
        inputs.extend(corpus(target.name));
        inputs.push(Vec::new());
        let name = target.name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte));
        Self { target, inputs, mutator: Mutator::new(name), most_held: 0, runs: 0 }
    }

    /// Inputs run until now.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// The most that one input made the target hold, in bytes.
    pub fn most_held(&self) -> usize {
        self.most_held
    }

    /// Runs the seeds and the corpus.
    ///
    /// # Errors
    /// The first input that was not taken well.
    pub fn run_corpus(&mut self) -> Result<(), Finding> {
        for input in self.inputs.clone() {
            self.run(input)?;
        }
        Ok(())
    }

    /// Runs one mutation.
    ///
    /// # Errors
    /// The input if it was not taken well.
    pub fn run_next(&mut self) -> Result<(), Finding> {
        let input = self.mutator.mutate(&self.inputs);
        self.run(input)
    }

    fn run(&mut self, input: Vec<u8>) -> Result<(), Finding> {
        self.runs += 1;
        let run = || catch_unwind(AssertUnwindSafe(|| (self.target.run)(&input)));
        let (outcome, held) = most_held(run);
        if let Err(panic) = outcome {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            return Err(Finding { what: format!("panic: {}", text.unwrap_or_default()), input });
        }
        if held > self.target.memory_bytes_max {
            let what = format!("{held} bytes held, at most {} may be", self.target.memory_bytes_max);
            return Err(Finding { what, input });
        }
        if held > self.most_held {
            self.most_held = held;
            if self.inputs.len() < KEPT_MAX {
                self.inputs.push(input);
            }
        }
        Ok(())
    }
}

/// Where inputs are kept that were found or made by hand.
fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(directory(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}
