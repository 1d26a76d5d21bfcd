//! The targets, by what they take.

mod documents;
mod net;
mod sftp;
mod ssh;
mod wire;

use crate::Target;

/// Room for what is small, in bytes.
const SMALL: usize = 1024 * 1024;
/// Room for documents: trees, errors with places, compiled patterns.
const DOCUMENT: usize = 8 * 1024 * 1024;
/// Room for connections with their windows and queues.
const CONNECTION: usize = 4 * 1024 * 1024;

/// Every target there is.
pub fn all() -> Vec<Target> {
    [documents::TARGETS, net::TARGETS, sftp::TARGETS, ssh::TARGETS, wire::TARGETS]
        .into_iter()
        .flatten()
        .map(|target| Target { ..*target })
        .collect()
}

fn owned(seeds: &[&[u8]]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.to_vec()).collect()
}

/// The lines of a golden file, each an input.
fn lines(file: &str) -> Vec<Vec<u8>> {
    file.lines().map(|line| line.as_bytes().to_vec()).collect()
}
