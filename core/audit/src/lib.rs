//! Audit events: what happened, typed and coded; the hash chain that shows tampering; who may send what.
//!
//! An [`Event`] is put into an [`Envelope`] where it happens, written to the local journal (`platform/store`) before its
//! effect is acknowledged, and forwarded. Auth takes it in ([`Intake`]) and appends it to the [`Chain`]. Nothing here
//! writes, signs or sends. Audit events are not logs, and secrets are not part of any event.

mod budget;
mod chain;
mod envelope;
mod event;
mod intake;
mod sender;
mod text;

pub use budget::{EventBudget, EventBudgets, OverBudget};
pub use chain::{
    Chain, ChainEntry, ChainFault, ChainHash, ChainVerifier, Checkpoint, ENTRY_BYTES_MAX,
    ParseChainHashError, SignedCheckpoint, Verified, VerifyCheckpoint, verify_chain,
};
pub use envelope::{DecodeEnvelopeError, ENVELOPE_BYTES_MAX, Envelope, Origin};
pub use event::{
    Actor, AppRef, CertKind, Change, ChangedKind, DisconnectReason, Event, Outcome, PortAction,
    ResumptionAction, SessionRef, SftpAction, SftpActionKind, SftpTotals, Subject, Traffic,
};
pub use intake::{Intake, IntakeOutcome, IntakeRefusal};
pub use sender::{SenderRefusal, check_sender};
pub use text::{LIST_MAX, TEXT_BYTES_MAX, Text, bounded_list};
