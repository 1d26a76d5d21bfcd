//! How the routes of a proxy lie in the backend: one entry with everything, and behind it a bounded number of entries
//! with changes, all under the proxy's lease. Routes of 15,000 agents are not written anew because one came.
//!
//! A change is written on the condition that the whole entry still is the one it continues, so a publisher that was
//! overtaken writes nothing more. Places of changes are used again after everything was written anew; what an older
//! entry said is known by its sequence.

use crate::route_table::{ProxyTable, RouteUpdateError, ids, stored_update};
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;
use wayleave_api::auth::RouteUpdate;
use wayleave_store::{Item, Revision};
use wayleave_vocab::HostId;

/// Most changes behind an entry with everything.
pub(crate) const CHANGES_MAX: u8 = 64;
/// Changes that name so many agents are written whatever the size of the whole.
const NAMES_MIN: usize = 256;

/// What a publisher knows of its proxy, and how much of that is written.
#[derive(Debug, Default)]
pub(crate) struct RouteLog {
    table: Option<ProxyTable>,
    /// Agents that may stand otherwise than written.
    touched: HashSet<HostId>,
    written: Option<Written>,
    /// Something was taken that is not written.
    is_dirty: bool,
}

/// What this publisher has written.
#[derive(Debug)]
struct Written {
    /// Of the entry with everything.
    revision: Revision,
    sequence: u64,
    changes: u8,
    /// Agents in those changes.
    names: usize,
}

/// The next entry to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogWrite {
    pub(crate) place: Place,
    pub(crate) value: Bytes,
    /// What is written with it.
    pub(crate) sequence: u64,
    names: usize,
}

/// Where an entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Everything,
    Change(u8),
}

impl RouteLog {
    pub(crate) fn apply(&mut self, update: &RouteUpdate) -> Result<(), RouteUpdateError> {
        match &mut self.table {
            Some(table) => {
                let is_continued = table.incarnation.0 == update.incarnation && !update.snapshot;
                table.update(update)?;
                if is_continued {
                    self.touched.extend(ids(&update.added)?.chain(ids(&update.removed)?));
                } else {
                    self.write_everything();
                }
            }
            None => self.table = Some(ProxyTable::new(update)?),
        }
        self.is_dirty = true;
        Ok(())
    }

    /// What is known; none before the first update.
    pub(crate) fn table(&self) -> Option<&ProxyTable> {
        self.table.as_ref()
    }

    /// The revision of the entry with everything, if it is this publisher's.
    pub(crate) fn revision(&self) -> Option<Revision> {
        self.written.as_ref().map(|written| written.revision)
    }

    /// What is to be written now. Nothing while the proxy tells everything anew: should its stream end before the last
    /// part, it begins again.
    pub(crate) fn next(&self) -> Option<LogWrite> {
        let table = self.table.as_ref().filter(|table| self.is_dirty && !table.incomplete)?;
        let (place, update, names) = match &self.written {
            Some(written) if self.is_worth_a_change(written, table) => {
                let update = table.change_since(written.sequence, self.touched.iter());
                (Place::Change(written.changes), update, self.touched.len())
            }
            Some(_) | None => (Place::Everything, table.snapshot(), 0),
        };
        Some(LogWrite { place, value: update.encode_to_vec().into(), sequence: table.sequence, names })
    }

    /// The sequence of a part that was taken and is written with the last part.
    pub(crate) fn take_part(&mut self) -> Option<u64> {
        let part = self.table.as_ref().filter(|table| self.is_dirty && table.incomplete)?;
        self.is_dirty = false;
        Some(part.sequence)
    }

    fn is_worth_a_change(&self, written: &Written, table: &ProxyTable) -> bool {
        let names = written.names + self.touched.len();
        written.changes < CHANGES_MAX && names <= table.hosts.len().max(NAMES_MIN)
    }

    /// The entry is written. `revision` is that of the write.
    pub(crate) fn note_written(&mut self, write: &LogWrite, revision: Revision) {
        match (&mut self.written, write.place) {
            (Some(written), Place::Change(_)) => {
                written.sequence = write.sequence;
                written.changes += 1;
                written.names += write.names;
            }
            (written, _) => {
                *written = Some(Written { revision, sequence: write.sequence, changes: 0, names: 0 });
            }
        }
        self.touched.clear();
        self.is_dirty = false;
    }

    /// What was written is gone, or somebody else's by now: the next entry has everything.
    pub(crate) fn write_everything(&mut self) {
        self.written = None;
        self.is_dirty = self.table.is_some();
    }
}

/// What the entries of one proxy say together; none when the one with everything is missing or damaged.
pub(crate) fn replay(everything: &Item, changes: &[Item]) -> Option<ProxyTable> {
    let mut table = ProxyTable::new(&stored_update(everything)?).ok()?;
    let mut changes: Vec<RouteUpdate> = changes.iter().filter_map(stored_update).collect();
    changes.sort_by_key(|change| change.sequence);
    for change in &changes {
        // A list that was read while somebody wrote ends where it has a gap; the watch brings the rest.
        if continues(&table, change) == Continuation::Next {
            table.update(change).ok()?;
        }
    }
    Some(table)
}

/// How a change stands to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuation {
    Next,
    /// Of another life or a state that is over.
    Old,
    Gap,
}

pub(crate) fn continues(table: &ProxyTable, change: &RouteUpdate) -> Continuation {
    let (at, of) = ((table.incarnation.0, table.sequence), (change.incarnation, change.sequence));
    if of <= at {
        Continuation::Old
    } else if of.0 == at.0 && change.base == at.1 {
        Continuation::Next
    } else {
        Continuation::Gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route_table::tests::{change, everything, id};
    use wayleave_store::Key;

    /// The backend as far as one proxy is in it.
    #[derive(Default)]
    struct Entries {
        everything: Option<Item>,
        changes: std::collections::BTreeMap<u8, Item>,
        revision: u64,
        bytes: usize,
    }

    impl Entries {
        fn write(&mut self, log: &mut RouteLog) -> Option<Place> {
            let write = log.next()?;
            self.revision += 1;
            self.bytes += write.value.len();
            let revision = Revision(self.revision);
            let key = Key::parse("/routes/somebody").unwrap();
            let item = Item { key, value: write.value.clone(), revision, lease: None };
            match write.place {
                Place::Everything => self.everything = Some(item),
                Place::Change(at) => drop(self.changes.insert(at, item)),
            }
            log.note_written(&write, revision);
            Some(write.place)
        }

        fn replayed(&self) -> Option<ProxyTable> {
            let changes: Vec<Item> = self.changes.values().cloned().collect();
            replay(self.everything.as_ref()?, &changes)
        }
    }

    #[test]
    fn what_is_written_is_what_is_read_after_each_write() {
        let (mut log, mut entries) = (RouteLog::default(), Entries::default());
        log.apply(&everything(1, &[])).unwrap();
        assert_eq!(entries.write(&mut log), Some(Place::Everything));
        let mut whole = 0;
        for sequence in 2..2_000_u64 {
            let agent = (sequence % 251) as u8;
            let (added, removed) =
                if sequence % 3 == 0 { (vec![], vec![agent]) } else { (vec![agent], vec![]) };
            log.apply(&change(sequence - 1, sequence, &added, &removed)).unwrap();
            if sequence % 5 == 0 {
                continue;
            }
            whole += usize::from(entries.write(&mut log) == Some(Place::Everything));
            assert_eq!(entries.replayed().as_ref(), log.table());
            assert!(entries.write(&mut log).is_none(), "nothing is written twice");
        }
        assert!((20..40).contains(&whole), "everything is written now and then, not {whole} times");
    }

    #[test]
    fn many_agents_are_not_written_anew_for_one() {
        let (mut log, mut entries) = (RouteLog::default(), Entries::default());
        for sequence in 1..=15_000_u64 {
            let host = HostId::from_random(u128::from(sequence).to_be_bytes());
            let added = vec![host.as_bytes().to_vec()];
            let update = RouteUpdate { added, ..change(sequence - 1, sequence, &[], &[]) };
            log.apply(&update).unwrap();
            entries.write(&mut log);
        }
        assert_eq!(entries.replayed().map(|table| table.hosts.len()), Some(15_000));
        let a_route = 18;
        let quadratic = 15_000 / 2 * 15_000 * a_route;
        assert!(entries.bytes < quadratic / 40, "{} bytes", entries.bytes);
    }

    #[test]
    fn a_publisher_that_was_overtaken_begins_with_everything() {
        let (mut log, mut entries) = (RouteLog::default(), Entries::default());
        log.apply(&everything(1, &[1])).unwrap();
        entries.write(&mut log);
        log.apply(&change(1, 2, &[2], &[])).unwrap();
        assert_eq!(log.next().map(|write| write.place), Some(Place::Change(0)));
        log.write_everything();
        assert_eq!(log.next().map(|write| write.place), Some(Place::Everything));
        entries.write(&mut log);
        // A proxy that tells everything anew in parts is written with the last one, whole.
        let newer = |update: RouteUpdate| RouteUpdate { incarnation: 2, ..update };
        log.apply(&newer(RouteUpdate { incomplete: true, ..change(0, 1, &[3], &[]) })).unwrap();
        assert_eq!(log.next(), None);
        log.apply(&newer(change(1, 2, &[4], &[]))).unwrap();
        assert_eq!(entries.write(&mut log), Some(Place::Everything));
        assert_eq!(entries.replayed().unwrap().hosts, [id(3), id(4)].into());
    }

    #[test]
    fn changes_of_another_life_or_state_are_left_out() {
        let table = crate::route_table::tests::table(5, &[1]);
        assert_eq!(continues(&table, &change(5, 6, &[2], &[])), Continuation::Next);
        assert_eq!(continues(&table, &change(4, 5, &[2], &[])), Continuation::Old);
        assert_eq!(continues(&table, &change(6, 7, &[2], &[])), Continuation::Gap);
        let newer = RouteUpdate { incarnation: 2, ..change(5, 6, &[2], &[]) };
        assert_eq!(continues(&table, &newer), Continuation::Gap);
        let older = RouteUpdate { incarnation: 0, ..change(5, 6, &[2], &[]) };
        assert_eq!(continues(&table, &older), Continuation::Old);
    }
}
