//! Certificate authorities as data and rules: which key signs in which phase of a rotation, what a certificate says and
//! how long it lives, what a pin is, and when a signed policy snapshot is believed.
//!
//! There is no private key and no signature here: `platform/keystore` signs what a template says, and verification is
//! passed in as [`VerifySignature`].

mod digest;
mod gate;
mod pin;
mod rotation;
mod snapshot;
mod succession;
mod template;
mod validity;
mod withdrawal;

pub use digest::{Digest, ParseDigestError};
pub use gate::{
    GateState, HeadOutcome, HeadRefusal, POLICY_STALE_AFTER, SeenHead, SnapshotGate, SnapshotRefusal,
    VerifySignature,
};
pub use pin::{PINS_MAX, ParsePinError, Pin, parse_pins, pins_match};
pub use rotation::{
    RotationError, SignerFor, advance, begin, is_issued_by_signer, next_phases, signer, trusted,
};
pub use snapshot::{
    DecodeSnapshotError, Delta, HEAD_BYTES_MAX, Head, SNAPSHOT_BYTES_MAX, SignedHead, Snapshot, SnapshotParts,
};
pub use succession::{SUCCESSIONS_MAX, SignedSuccession, Succession, SuccessionError, follow};
pub use template::{
    ExtendedUse, SshCertTemplate, SshCertType, SshPermissions, X509Template, openssh_user_template, renew_at,
    ssh_host_template, ssh_publisher_template, ssh_user_template, x509_host_template, x509_user_template,
};
pub use validity::{
    CERTIFICATE_TTL_MAX, CERTIFICATE_TTL_MIN, CLOCK_SKEW, DEFAULT_CERTIFICATE_TTL, Validity, certificate_ttl,
    is_renewal_due,
};
pub use wayleave_resource::{CaKeys, CaType, CertAuthority, CertAuthoritySpec, RotationPhase};
pub use withdrawal::Withdrawal;
