//! Whose turn it is: interactive streams before bulk, in turn within a class, bulk never starved.

use crate::event::Class;
use std::collections::VecDeque;

/// After this many interactive bytes one bulk frame may go, if one waits.
const INTERACTIVE_BYTES_PER_BULK_FRAME: usize = 64 * 1024;

/// The streams that have something to send. Id 0 in the bulk ring is the lane of long control messages.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    interactive: VecDeque<u32>,
    bulk: VecDeque<u32>,
    interactive_bytes: usize,
}

impl Schedule {
    pub(crate) fn push(&mut self, id: u32, class: Class) {
        match class {
            Class::Interactive => self.interactive.push_back(id),
            Class::Bulk => self.bulk.push_back(id),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(u32, Class)> {
        let bulk_is_due = self.interactive_bytes >= INTERACTIVE_BYTES_PER_BULK_FRAME && !self.bulk.is_empty();
        if !bulk_is_due && let Some(id) = self.interactive.pop_front() {
            return Some((id, Class::Interactive));
        }
        self.interactive_bytes = 0;
        self.bulk.pop_front().map(|id| (id, Class::Bulk))
    }

    /// Counts what was sent on the turn that [`Self::pop`] gave.
    pub(crate) fn count(&mut self, class: Class, bytes: usize) {
        if class == Class::Interactive {
            self.interactive_bytes = self.interactive_bytes.saturating_add(bytes);
        }
    }

    pub(crate) fn remove(&mut self, id: u32) {
        self.interactive.retain(|other| *other != id);
        self.bulk.retain(|other| *other != id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        (self.interactive.capacity() + self.bulk.capacity()) * size_of::<u32>()
    }

    /// Gives memory back once nothing is queued.
    pub(crate) fn trim(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactive_goes_first_and_bulk_is_not_starved() {
        let mut schedule = Schedule::default();
        schedule.push(8, Class::Bulk);
        schedule.push(2, Class::Interactive);
        schedule.push(4, Class::Interactive);
        let mut order = Vec::new();
        for _ in 0..8 {
            let (id, class) = schedule.pop().unwrap();
            schedule.count(class, 16 * 1024);
            schedule.push(id, class);
            order.push(id);
        }
        assert_eq!(order, [2, 4, 2, 4, 8, 2, 4, 2]);
    }
}
