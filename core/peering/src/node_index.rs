//! Names of nodes. Several records may share a name; those that live come first.

use crate::table::RouteState;
use std::collections::{BTreeMap, BTreeSet};
use wayleave_vocab::{HostId, NodeName};

/// Most nodes in the index.
pub const NODES_MAX: usize = 500_000;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// This node.
    One(HostId),
    /// Several nodes with a route of the best kind share the name.
    Ambiguous(Vec<HostId>),
    /// Nodes of this name are registered, and none has a route.
    NoneLive(Vec<HostId>),
    /// Nothing has this name.
    Unknown,
}

/// A record that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeIndexError {
    /// Over [`NODES_MAX`].
    #[error("more than {NODES_MAX} nodes")]
    TooMany,
}

/// Names to host ids. Letter case makes no difference, as in DNS.
#[derive(Debug, Default)]
pub struct NodeIndex {
    by_name: BTreeMap<String, BTreeSet<HostId>>,
    names: BTreeMap<HostId, NodeName>,
}

impl NodeIndex {
    /// Adds a node, or changes its name.
    ///
    /// # Errors
    /// [`NodeIndexError::TooMany`].
    pub fn insert(&mut self, id: HostId, name: NodeName) -> Result<(), NodeIndexError> {
        if !self.names.contains_key(&id) && self.names.len() >= NODES_MAX {
            return Err(NodeIndexError::TooMany);
        }
        self.remove(id);
        self.by_name.entry(canonical(&name)).or_default().insert(id);
        self.names.insert(id, name);
        Ok(())
    }

    /// Removes a node; one that is not there is left alone.
    pub fn remove(&mut self, id: HostId) {
        let Some(name) = self.names.remove(&id) else { return };
        let key = canonical(&name);
        if let Some(ids) = self.by_name.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_name.remove(&key);
            }
        }
    }

    /// The name of a node.
    pub fn name(&self, id: HostId) -> Option<&NodeName> {
        self.names.get(&id)
    }

    /// Finds a node by its host id in text or by its name. `state` tells the best route to a node, own tunnels
    /// included. A host id goes before a name that looks like one.
    pub fn resolve(&self, name: &NodeName, state: impl Fn(HostId) -> RouteState) -> Resolution {
        if let Ok(id) = name.as_str().parse::<HostId>()
            && self.names.contains_key(&id)
        {
            return Resolution::One(id);
        }
        let Some(ids) = self.by_name.get(&canonical(name)) else { return Resolution::Unknown };
        for wanted in [RouteState::Fresh, RouteState::Suspect] {
            let live: Vec<HostId> = ids.iter().copied().filter(|id| state(*id) == wanted).collect();
            match live.as_slice() {
                [] => {}
                [id] => return Resolution::One(*id),
                [..] => return Resolution::Ambiguous(live),
            }
        }
        match ids.first() {
            Some(id) if ids.len() == 1 => Resolution::One(*id),
            Some(_) | None => Resolution::NoneLive(ids.iter().copied().collect()),
        }
    }
}

fn canonical(name: &NodeName) -> String {
    name.as_str().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> HostId {
        HostId::from_random([n; 16])
    }

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    /// Nodes 1 to 3 are all called web; what `wanted` resolves to with these route states.
    fn check(states: [RouteState; 3], wanted: &str, expected: Resolution) {
        let mut index = NodeIndex::default();
        for n in 1..=3 {
            index.insert(id(n), name(if n == 2 { "WEB" } else { "web" })).unwrap();
        }
        let state = |id: HostId| states[usize::from(id.as_bytes()[0]) - 1];
        assert_eq!(index.resolve(&name(wanted), state), expected);
    }

    #[test]
    fn a_name_resolves_among_the_living_first() {
        use RouteState::{Fresh, None, Suspect};
        check([None, Fresh, None], "web", Resolution::One(id(2)));
        check([Suspect, Fresh, Suspect], "Web", Resolution::One(id(2)));
        check([None, None, Suspect], "web", Resolution::One(id(3)));
        check([Fresh, None, Fresh], "web", Resolution::Ambiguous(vec![id(1), id(3)]));
        check([None, None, None], "web", Resolution::NoneLive(vec![id(1), id(2), id(3)]));
        check([Fresh, Fresh, Fresh], &id(2).to_string(), Resolution::One(id(2)));
        check([Fresh, Fresh, Fresh], "db", Resolution::Unknown);
    }

    #[test]
    fn a_renamed_or_removed_node_leaves_its_old_name() {
        let mut index = NodeIndex::default();
        index.insert(id(1), name("old")).unwrap();
        index.insert(id(1), name("new")).unwrap();
        let live = |_| RouteState::Fresh;
        assert_eq!(index.resolve(&name("old"), live), Resolution::Unknown);
        assert_eq!(index.resolve(&name("new"), live), Resolution::One(id(1)));
        index.remove(id(1));
        assert_eq!(index.resolve(&name("new"), live), Resolution::Unknown);
    }
}
