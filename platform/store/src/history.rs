//! What has happened lately: the changes that a watch can still be told.

use crate::backend::{Item, Revision};
use crate::key::Key;
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_vocab::Wall;

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written; the item as it was then.
    Put(Item),
    /// The key was deleted, by an operation or by the end of its lease.
    Delete {
        /// Which key.
        key: Key,
        /// The change that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The key it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Its weight in the history, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put(item) => item.key.as_str().len().saturating_add(item.value.len()),
            Self::Delete { key, .. } => key.as_str().len(),
        }
    }
}

/// The events of one revision: an atomic batch arrives whole. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Resume a watch from here to get everything behind this change.
    pub revision: Revision,
    /// The events at and below the watched prefix, in the order of the batch.
    pub events: Vec<Event>,
}

impl Change {
    pub(crate) fn bytes(&self) -> usize {
        self.events.iter().map(Event::bytes).fold(0, usize::saturating_add)
    }
}

/// How much history is kept for watches to resume from; whichever bound is reached first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Most changes.
    pub changes_max: usize,
    /// Most bytes of keys and values.
    pub bytes_max: usize,
    /// Greatest age.
    pub age_max: Duration,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { changes_max: 65_536, bytes_max: 256 << 20, age_max: Duration::from_secs(6 * 3600) }
    }
}

/// When a change was made and what it weighs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) revision: Revision,
    pub(crate) at: Wall,
    pub(crate) bytes: usize,
}

/// Decides what must be forgotten.
#[derive(Debug)]
pub(crate) struct Retention {
    limits: HistoryLimits,
    marks: VecDeque<Mark>,
    bytes: usize,
}

impl Retention {
    pub(crate) fn new(limits: HistoryLimits) -> Self {
        Self { limits, marks: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, mark: Mark) {
        self.bytes = self.bytes.saturating_add(mark.bytes);
        self.marks.push_back(mark);
    }

    /// The highest revision that has to go, if any, looking at `steps_max` changes at most, when
    /// `added` further changes are about to be pushed.
    pub(crate) fn due(&self, added: &[Mark], steps_max: usize, now: Wall) -> Option<Revision> {
        let mut count = self.marks.len().saturating_add(added.len());
        let mut bytes = added.iter().fold(self.bytes, |sum, mark| sum.saturating_add(mark.bytes));
        let oldest_kept = now.before(self.limits.age_max);
        let mut due = None;
        for mark in self.marks.iter().chain(added).take(steps_max) {
            let fits = count <= self.limits.changes_max && bytes <= self.limits.bytes_max;
            if fits && mark.at >= oldest_kept {
                break;
            }
            due = Some(mark.revision);
            count = count.saturating_sub(1);
            bytes = bytes.saturating_sub(mark.bytes);
        }
        due
    }

    /// Forgets everything up to a revision, itself included.
    pub(crate) fn forget(&mut self, upto: Revision) {
        while let Some(mark) = self.marks.pop_front_if(|mark| mark.revision <= upto) {
            self.bytes = self.bytes.saturating_sub(mark.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Wall = Wall::from_secs(1_700_000_000);

    /// Ten changes of 100 bytes, one each minute; what goes when the last has been made.
    fn check(limits: HistoryLimits, expected: Option<u64>) {
        let mut retention = Retention::new(limits);
        let mark =
            |n| Mark { revision: Revision(n), at: START.after(Duration::from_secs(60 * n)), bytes: 100 };
        (1..10).for_each(|n| retention.push(mark(n)));
        let now = mark(10).at;
        let due = retention.due(&[mark(10)], usize::MAX, now);
        assert_eq!(due, expected.map(Revision));
        assert_eq!(retention.due(&[mark(10)], 2, now), expected.map(|due| Revision(due.min(2))));
        retention.push(mark(10));
        if let Some(due) = due {
            retention.forget(due);
        }
        assert_eq!(retention.due(&[], usize::MAX, now), None, "once is enough");
    }

    #[test]
    fn the_bound_that_is_reached_first_counts() {
        let wide = HistoryLimits::default();
        check(wide.clone(), None);
        check(HistoryLimits { changes_max: 4, ..wide.clone() }, Some(6));
        check(HistoryLimits { bytes_max: 350, ..wide.clone() }, Some(7));
        check(HistoryLimits { age_max: Duration::from_secs(90), ..wide.clone() }, Some(8));
        check(HistoryLimits { changes_max: 0, ..wide }, Some(10));
    }
}
