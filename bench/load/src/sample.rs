//! Figures of one contender, and taking turns.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What one contender reached, run by run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    pub(crate) samples: Vec<f64>,
}

impl Series {
    /// # Errors
    /// When there is no sample.
    pub(crate) fn new(name: impl Into<String>, unit: &str, samples: Vec<f64>) -> Result<Self> {
        let name = name.into();
        let median = median(&samples).with_context(|| format!("no run of {name}"))?;
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Ok(Self { name, unit: unit.to_owned(), min, median, max, samples })
    }
}

pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper))
}

/// The sample below which this share of all samples is.
pub(crate) fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index).or(sorted.last()).copied()
}

/// Runs every contender once without counting, then `runs` times in turn. The results are in order of contenders.
pub(crate) fn take_turns<C, T>(
    contenders: &[C],
    runs: usize,
    mut run: impl FnMut(&C) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    for contender in contenders {
        run(contender).context("while warming up")?;
    }
    let mut results: Vec<Vec<T>> = contenders.iter().map(|_| Vec::with_capacity(runs)).collect();
    for turn in 0..runs {
        for (contender, result) in contenders.iter().zip(&mut results) {
            result.push(run(contender)?);
        }
        eprint!("\r  run {} of {runs}", turn + 1);
    }
    eprintln!();
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert!(Series::new("x", "ms", Vec::new()).is_err());
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.99), Some(198.0));
        assert_eq!(percentile(&samples, 1.0), Some(199.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn contenders_take_turns() {
        let mut order = String::new();
        let results = take_turns(&['a', 'b'], 2, |contender| {
            order.push(*contender);
            Ok(*contender)
        });
        assert_eq!(order, "ababab", "the first of each does not count");
        assert_eq!(results.unwrap(), [['a', 'a'], ['b', 'b']]);
    }
}
