//! What Auth does with an event that comes from a process: each once, only about itself, in order.

use crate::envelope::Envelope;
use std::collections::BTreeMap;
use wayleave_vocab::{ClusterName, HostId};

/// The last sequence that was taken from each process.
#[derive(Debug, Clone)]
pub struct Intake {
    cluster: ClusterName,
    last: BTreeMap<HostId, u64>,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntakeOutcome {
    /// Append it.
    Append,
    /// Append it, and note that so many before it never came.
    AppendAfterGap {
        /// How many.
        missing: u64,
    },
    /// It came before: acknowledge it again.
    Duplicate,
}

/// An event that a process may not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntakeRefusal {
    /// It names another process.
    #[error("host {sender} sent an event of host {named}")]
    OtherHost {
        /// Who sent it.
        sender: HostId,
        /// Whom it names.
        named: HostId,
    },
    /// It names another cluster.
    #[error("the event is of cluster {0}")]
    OtherCluster(ClusterName),
    /// Sequences count from 1.
    #[error("the event has no sequence")]
    NoSequence,
}

impl Intake {
    /// What was taken before, as the backend knows it.
    pub fn new(cluster: ClusterName, last: BTreeMap<HostId, u64>) -> Self {
        Self { cluster, last }
    }

    /// The last sequence taken from a process; 0 when none was.
    pub fn last(&self, host: HostId) -> u64 {
        self.last.get(&host).copied().unwrap_or(0)
    }

    /// An event came from `sender`, whose certificate was verified. Call [`Intake::appended`] when it is stored.
    ///
    /// # Errors
    /// When it names another process or cluster.
    pub fn handle_event(&self, sender: HostId, envelope: &Envelope) -> Result<IntakeOutcome, IntakeRefusal> {
        let origin = &envelope.origin;
        if origin.host_id != sender {
            return Err(IntakeRefusal::OtherHost { sender, named: origin.host_id });
        }
        if origin.cluster != self.cluster {
            return Err(IntakeRefusal::OtherCluster(origin.cluster.clone()));
        }
        if origin.sequence == 0 {
            return Err(IntakeRefusal::NoSequence);
        }
        let last = self.last(sender);
        if origin.sequence <= last {
            return Ok(IntakeOutcome::Duplicate);
        }
        match origin.sequence - last - 1 {
            0 => Ok(IntakeOutcome::Append),
            missing => Ok(IntakeOutcome::AppendAfterGap { missing }),
        }
    }

    /// The event is stored.
    pub fn appended(&mut self, envelope: &Envelope) {
        let last = self.last.entry(envelope.origin.host_id).or_default();
        *last = (*last).max(envelope.origin.sequence);
    }
}
