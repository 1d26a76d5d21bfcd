//! Which agents one proxy holds a tunnel of, and how updates change that.

use prost::Message;
use std::collections::HashSet;
use wayleave_api::auth::RouteUpdate;
use wayleave_store::Item;
use wayleave_vocab::{HostId, Incarnation};

/// Most routes of one proxy.
pub(crate) const ROUTES_MAX: usize = 200_000;

/// The routes of one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProxyTable {
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
    pub(crate) hosts: HashSet<HostId>,
    /// The proxy is still writing everything anew: readers may add these to what they know, not replace it.
    pub(crate) incomplete: bool,
}

/// An update that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteUpdateError {
    #[error("an id in the update is not 16 bytes")]
    Id,
    #[error("more than {ROUTES_MAX} routes")]
    TooMany,
    #[error("the update continues sequence {base}, the routes are at {at}")]
    Gap { base: u64, at: u64 },
    #[error("the sequence or incarnation goes back")]
    Backwards,
}

impl ProxyTable {
    /// The table of somebody of whom nothing is known yet.
    pub(crate) fn new(update: &RouteUpdate) -> Result<Self, RouteUpdateError> {
        let mut table = Self {
            incarnation: Incarnation(update.incarnation),
            sequence: 0,
            hosts: HashSet::new(),
            incomplete: false,
        };
        table.change(update)?;
        Ok(table)
    }

    /// Applies an update, or says why not and stays as it is.
    pub(crate) fn update(&mut self, update: &RouteUpdate) -> Result<(), RouteUpdateError> {
        let incarnation = Incarnation(update.incarnation);
        if (self.incarnation, self.sequence) >= (incarnation, update.sequence) {
            return Err(RouteUpdateError::Backwards);
        }
        if incarnation > self.incarnation {
            *self = Self::new(update)?;
            return Ok(());
        }
        self.change(update)
    }

    fn change(&mut self, update: &RouteUpdate) -> Result<(), RouteUpdateError> {
        if update.snapshot {
            self.hosts = ids(&update.host_ids)?.collect();
        } else {
            if update.base > self.sequence {
                return Err(RouteUpdateError::Gap { base: update.base, at: self.sequence });
            }
            let (removed, added) = (ids(&update.removed)?, ids(&update.added)?);
            if self.hosts.len() + update.added.len() > ROUTES_MAX {
                return Err(RouteUpdateError::TooMany);
            }
            for removed in removed {
                self.hosts.remove(&removed);
            }
            self.hosts.extend(added);
        }
        self.sequence = update.sequence;
        self.incomplete = update.incomplete;
        Ok(())
    }

    /// Everything, as an update and as the stored form.
    pub(crate) fn snapshot(&self) -> RouteUpdate {
        let hosts = self.hosts.iter().map(bytes).collect();
        let (host_ids, added) = if self.incomplete { (Vec::new(), hosts) } else { (hosts, Vec::new()) };
        RouteUpdate {
            incarnation: self.incarnation.0,
            sequence: self.sequence,
            snapshot: !self.incomplete,
            host_ids,
            added,
            incomplete: self.incomplete,
            ..RouteUpdate::default()
        }
    }

    /// How these agents stand now, for who knows the table as it was at `base`.
    pub(crate) fn change_since<'a>(
        &self,
        base: u64,
        touched: impl Iterator<Item = &'a HostId>,
    ) -> RouteUpdate {
        let (added, removed): (Vec<_>, Vec<_>) = touched.partition(|host| self.hosts.contains(host));
        RouteUpdate {
            incarnation: self.incarnation.0,
            sequence: self.sequence,
            base,
            added: added.into_iter().map(bytes).collect(),
            removed: removed.into_iter().map(bytes).collect(),
            ..RouteUpdate::default()
        }
    }

    /// What changed since `before`.
    pub(crate) fn update_since(&self, before: Option<&Self>) -> RouteUpdate {
        match before {
            Some(before)
                if before.incarnation == self.incarnation && !before.incomplete && !self.incomplete =>
            {
                self.change_since(before.sequence, self.hosts.symmetric_difference(&before.hosts))
            }
            Some(_) | None => self.snapshot(),
        }
    }
}

/// An update as it is stored; none when the item is no such thing.
pub(crate) fn stored_update(item: &Item) -> Option<RouteUpdate> {
    RouteUpdate::decode(&*item.value).ok()
}

/// The agents of a list.
pub(crate) fn ids(list: &[Vec<u8>]) -> Result<impl Iterator<Item = HostId> + use<>, RouteUpdateError> {
    if list.len() > ROUTES_MAX {
        return Err(RouteUpdateError::TooMany);
    }
    // Ids are version 4 already, so reading them as random keeps every bit.
    let ids: Option<Vec<HostId>> =
        list.iter().map(|id| <[u8; 16]>::try_from(id.as_slice()).ok().map(HostId::from_random)).collect();
    ids.map(Vec::into_iter).ok_or(RouteUpdateError::Id)
}

fn bytes(id: &HostId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn id(n: u8) -> HostId {
        HostId::from_random([n; 16])
    }

    fn bytes_of(ids: &[u8]) -> Vec<Vec<u8>> {
        ids.iter().map(|n| bytes(&id(*n))).collect()
    }

    pub(crate) fn everything(sequence: u64, ids: &[u8]) -> RouteUpdate {
        RouteUpdate {
            incarnation: 1,
            sequence,
            snapshot: true,
            host_ids: bytes_of(ids),
            ..RouteUpdate::default()
        }
    }

    pub(crate) fn change(base: u64, sequence: u64, added: &[u8], removed: &[u8]) -> RouteUpdate {
        RouteUpdate {
            incarnation: 1,
            sequence,
            base,
            added: bytes_of(added),
            removed: bytes_of(removed),
            ..RouteUpdate::default()
        }
    }

    pub(crate) fn table(sequence: u64, ids: &[u8]) -> ProxyTable {
        ProxyTable::new(&everything(sequence, ids)).unwrap()
    }

    fn after(mut table: ProxyTable, update: &RouteUpdate) -> ProxyTable {
        table.update(update).unwrap();
        table
    }

    #[test]
    fn updates_apply_in_order_and_only_in_order() {
        let first = table(1, &[1, 2]);
        let second = after(first.clone(), &change(1, 5, &[3], &[1]));
        assert_eq!(second.hosts, [id(2), id(3)].into());
        let wrong = |before: &ProxyTable, update: &RouteUpdate| {
            let mut table = before.clone();
            let error = table.update(update).unwrap_err();
            assert_eq!(&table, before, "what is refused changes nothing");
            error
        };
        let gap = ProxyTable::new(&change(1, 2, &[1], &[])).unwrap_err();
        assert_eq!(gap, RouteUpdateError::Gap { base: 1, at: 0 });
        assert_eq!(wrong(&first, &change(3, 4, &[1], &[])), RouteUpdateError::Gap { base: 3, at: 1 });
        assert_eq!(wrong(&second, &everything(5, &[1])), RouteUpdateError::Backwards);
        let short = |ids: Vec<Vec<u8>>| wrong(&first, &RouteUpdate { added: ids, ..change(1, 9, &[], &[1]) });
        assert_eq!(short(vec![vec![1; 15]]), RouteUpdateError::Id);
        assert_eq!(short(vec![vec![1; 16]; ROUTES_MAX + 1]), RouteUpdateError::TooMany);
    }

    #[test]
    fn everything_anew_in_parts_is_complete_with_the_last_one() {
        let part = RouteUpdate { incomplete: true, ..change(0, 1, &[1, 2], &[]) };
        let first = ProxyTable::new(&part).unwrap();
        assert!(first.incomplete);
        let last = after(first, &change(1, 2, &[3], &[]));
        assert!(!last.incomplete);
        assert_eq!(last.hosts, [id(1), id(2), id(3)].into());
    }

    #[test]
    fn a_change_in_one_life_is_handed_on_as_one() {
        let first = table(1, &[1, 2]);
        let second = after(first.clone(), &change(1, 7, &[3], &[1]));
        let delta = second.update_since(Some(&first));
        assert!(!delta.snapshot);
        assert_eq!(after(first, &delta), second);
        assert!(second.update_since(None).snapshot);
        let newer = ProxyTable { incarnation: Incarnation(2), ..second.clone() };
        assert!(newer.update_since(Some(&second)).snapshot);
        assert_eq!(after(second, &newer.snapshot()), newer, "a newer life begins with nothing");
    }
}
