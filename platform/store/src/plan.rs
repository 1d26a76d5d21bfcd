//! What a batch comes to, decided in one place for all backends, without touching any data.

use crate::backend::{BATCH_OPERATIONS_MAX, Bounds, Condition, Item, Operation, Revision};
use crate::error::StoreError;
use crate::history::Event;
use crate::key::Key;
use crate::lease::LeaseId;
use std::collections::HashSet;

/// Conditions and operations within their bounds.
#[derive(Debug)]
pub(crate) struct Batch {
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
}

/// Where a key stands before the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Current {
    pub(crate) revision: Revision,
    pub(crate) lease: Option<LeaseId>,
}

/// The state a batch is decided on.
pub(crate) trait State {
    /// Where a key stands; `Err` if it cannot be read.
    fn current(&mut self, key: &Key) -> Result<Option<Current>, StoreError>;
    /// Whether keys can be tied to this lease now.
    fn lease_is_live(&self, lease: LeaseId) -> bool;
}

/// The events of a batch that may be carried out; none if it changes nothing.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) events: Vec<Event>,
    pub(crate) deleted: usize,
}

impl Batch {
    pub(crate) fn new(conditions: Vec<Condition>, operations: Vec<Operation>) -> Result<Self, StoreError> {
        Self::within(Bounds::default(), conditions, operations)
    }

    pub(crate) fn within(
        bounds: Bounds,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
    ) -> Result<Self, StoreError> {
        within("the batch's number of conditions", conditions.len(), BATCH_OPERATIONS_MAX)?;
        within("the batch's number of operations", operations.len(), BATCH_OPERATIONS_MAX)?;
        let mut keys = HashSet::with_capacity(operations.len());
        let mut bytes = 0_usize;
        for operation in &operations {
            within("the value in bytes", operation.value_bytes(), bounds.value_bytes_max)?;
            bytes = bytes.saturating_add(operation.value_bytes());
            if !keys.insert(operation.key()) {
                return Err(StoreError::Invalid { reason: "a batch touches a key once only" });
            }
        }
        within("the batch's values in bytes", bytes, bounds.batch_bytes_max)?;
        Ok(Self { conditions, operations })
    }

    /// What it weighs in a queue, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.operations.iter().map(Operation::value_bytes).fold(0, usize::saturating_add)
    }

    /// The keys that it looks at or touches; some may come twice.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.conditions.iter().map(Condition::key).chain(self.operations.iter().map(Operation::key))
    }

    pub(crate) fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    pub(crate) fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Decides on the state before the batch; the events carry `revision`.
    pub(crate) fn plan(&self, revision: Revision, state: &mut impl State) -> Result<Plan, StoreError> {
        for condition in &self.conditions {
            check(condition, state)?;
        }
        let mut plan = Plan { events: Vec::with_capacity(self.operations.len()), deleted: 0 };
        for operation in &self.operations {
            match operation {
                Operation::Put { key, value, lease } => {
                    if let Some(lease) = *lease
                        && !state.lease_is_live(lease)
                    {
                        return Err(StoreError::LeaseNotFound { lease });
                    }
                    let item = Item { key: key.clone(), value: value.clone(), revision, lease: *lease };
                    plan.events.push(Event::Put(item));
                }
                Operation::Replace { key, value } => {
                    let Some(Current { lease, .. }) = state.current(key)? else {
                        return Err(StoreError::NotFound { key: key.clone() });
                    };
                    let item = Item { key: key.clone(), value: value.clone(), revision, lease };
                    plan.events.push(Event::Put(item));
                }
                Operation::Delete { key } => {
                    if state.current(key)?.is_some() {
                        plan.deleted = plan.deleted.saturating_add(1);
                        plan.events.push(Event::Delete { key: key.clone(), revision });
                    }
                }
            }
        }
        Ok(plan)
    }
}

fn check(condition: &Condition, state: &mut impl State) -> Result<(), StoreError> {
    match condition {
        Condition::Absent(key) => match state.current(key)? {
            None => Ok(()),
            Some(Current { revision, .. }) => Err(StoreError::AlreadyExists { key: key.clone(), revision }),
        },
        Condition::Exists(key) => match state.current(key)? {
            Some(_) => Ok(()),
            None => Err(StoreError::NotFound { key: key.clone() }),
        },
        Condition::RevisionIs(key, expected) => match state.current(key)? {
            None => Err(StoreError::NotFound { key: key.clone() }),
            Some(Current { revision, .. }) if revision == *expected => Ok(()),
            Some(Current { revision: actual, .. }) => {
                Err(StoreError::Conflict { key: key.clone(), expected: *expected, actual })
            }
        },
    }
}

fn within(what: &'static str, given: usize, max: usize) -> Result<(), StoreError> {
    if given <= max {
        return Ok(());
    }
    let wide = |n| u64::try_from(n).unwrap_or(u64::MAX);
    Err(StoreError::TooLarge { what, given: wide(given), max: wide(max) })
}
