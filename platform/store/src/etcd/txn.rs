//! A batch as one transaction of etcd: conditions are comparisons; if one fails, the transaction reads what they are
//! about instead, so that the error says which.

use super::wire::compare::{CompareResult, CompareTarget, TargetUnion};
use super::wire::request_op::Op;
use super::wire::response_op::Answer;
use super::wire::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};
use super::{decode_key, encode_key, header_revision, lease_id};
use crate::backend::{BATCH_OPERATIONS_MAX, Committed, Condition, Operation, Revision};
use crate::error::StoreError;
use crate::key::Key;
use crate::lease::LeaseId;
use crate::plan::{Batch, Current, State};
use std::collections::{BTreeSet, HashMap};

/// The transaction of a batch.
pub(super) fn of(root: &str, batch: &Batch) -> Result<TxnRequest, StoreError> {
    let mut compare: Vec<Compare> =
        batch.conditions().iter().map(|condition| compared(root, condition)).collect();
    let mut looked_at: BTreeSet<&Key> = batch.conditions().iter().map(Condition::key).collect();
    for operation in batch.operations() {
        if let Operation::Replace { key, .. } = operation
            && looked_at.insert(key)
        {
            compare.push(compared(root, &Condition::Exists(key.clone())));
        }
    }
    // A condition that is about a replaced key may be that it is absent: then replacing it fails as well.
    let count = compare.len().max(looked_at.len());
    if count > BATCH_OPERATIONS_MAX {
        let given = u64::try_from(count).unwrap_or(u64::MAX);
        let what = "the batch's number of conditions and replaced keys";
        return Err(StoreError::TooLarge { what, given, max: BATCH_OPERATIONS_MAX as u64 });
    }
    let read = |key: &&Key| {
        let range = RangeRequest { key: encode_key(root, key), keys_only: true, ..RangeRequest::default() };
        RequestOp { op: Some(Op::RequestRange(range)) }
    };
    Ok(TxnRequest {
        compare,
        success: batch.operations().iter().map(|operation| carried_out(root, operation)).collect(),
        failure: looked_at.iter().map(read).collect(),
    })
}

fn compared(root: &str, condition: &Condition) -> Compare {
    let (result, target, union) = match condition {
        Condition::Absent(_) => (CompareResult::Equal, CompareTarget::Version, TargetUnion::Version(0)),
        Condition::Exists(_) => (CompareResult::Greater, CompareTarget::Version, TargetUnion::Version(0)),
        Condition::RevisionIs(_, Revision(revision)) => {
            // An absent key has revision 0 in etcd; here no revision fits it.
            let revision = i64::try_from(*revision).unwrap_or(i64::MAX);
            let revision = if revision == 0 { i64::MAX } else { revision };
            (CompareResult::Equal, CompareTarget::Mod, TargetUnion::ModRevision(revision))
        }
    };
    Compare {
        result: i32::from(result),
        target: i32::from(target),
        key: encode_key(root, condition.key()),
        target_union: Some(union),
    }
}

fn carried_out(root: &str, operation: &Operation) -> RequestOp {
    let key = encode_key(root, operation.key());
    let op = match operation {
        Operation::Put { value, lease, .. } => Op::RequestPut(PutRequest {
            key,
            value: value.to_vec(),
            lease: lease.map(lease_id).unwrap_or_default(),
            ignore_lease: false,
        }),
        Operation::Replace { value, .. } => {
            Op::RequestPut(PutRequest { key, value: value.to_vec(), lease: 0, ignore_lease: true })
        }
        Operation::Delete { .. } => {
            Op::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
        }
    };
    RequestOp { op: Some(op) }
}

/// What a transaction came to.
pub(super) fn outcome(root: &str, batch: &Batch, answer: &TxnResponse) -> Result<Committed, StoreError> {
    let revision = header_revision(answer.header.as_ref());
    let responses = answer.responses.iter().filter_map(|op| op.answer.as_ref());
    if answer.succeeded {
        let deleted = responses.map(|response| match response {
            Answer::ResponseDeleteRange(deleted) => usize::try_from(deleted.deleted).unwrap_or_default(),
            Answer::ResponseRange(_) | Answer::ResponsePut(_) => 0,
        });
        return Ok(Committed { revision, deleted: deleted.sum() });
    }
    let mut seen = Seen::default();
    for response in responses {
        let Answer::ResponseRange(range) = response else { continue };
        for kv in &range.kvs {
            let Some(key) = decode_key(root, &kv.key) else { continue };
            let revision = Revision(u64::try_from(kv.mod_revision).unwrap_or_default());
            let lease = (kv.lease > 0).then(|| LeaseId(u64::try_from(kv.lease).unwrap_or_default()));
            seen.0.insert(key, Current { revision, lease });
        }
    }
    match batch.plan(revision.next(), &mut seen) {
        Err(error) => Err(error),
        Ok(_) => Err(StoreError::Invalid { reason: "etcd refused conditions that hold" }),
    }
}

/// What the keys of the conditions were when one of them failed.
#[derive(Default)]
struct Seen(HashMap<Key, Current>);

impl State for Seen {
    fn current(&mut self, key: &Key) -> Result<Option<Current>, StoreError> {
        Ok(self.0.get(key).copied())
    }

    fn lease_is_live(&self, _lease: LeaseId) -> bool {
        true
    }
}
