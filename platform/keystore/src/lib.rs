//! Keys and X.509: the cluster's X.509 authorities, what a process holds, whom it believes, and TLS made of them.
//!
//! Trust decisions go through webpki only; fields are read from a certificate after it was verified. SSH keys and
//! certificates are `wire/ssh`; who may be issued what is decided in `core/ca` and `services/auth`.

mod authority;
mod credentials;
mod deflated;
mod identity_dir;
mod policy_keeper;
mod policy_signer;
mod private_file;
mod probe;
mod recent;
mod statement;
mod tls;
mod trust;
mod web;

pub use authority::{AuthorityError, X509Authority, X509Request};
pub use credentials::{Credentials, CredentialsError, TlsKey};
pub use deflated::{deflate_policy, inflate_policy};
pub use identity_dir::{IdentityDir, IdentityDirError};
pub use policy_keeper::{PolicyKeeper, PolicyKeeperError};
pub use policy_signer::{PolicySigner, PolicySignerError, verify_policy_signature};
pub use private_file::{read_private, write_private};
pub use probe::{HelloSize, probe_config};
pub use statement::{SignError, SignedStatement, StatementError, is_certified_for};
pub use tls::{
    ClientAuth, ServerName, TlsConfigError, client_config, pinned_client_config, public_client_config,
    server_config,
};
pub use trust::{
    Audience, IdentifyError, Pins, TrustStore, certificate_begins, pin_of_certificate,
    principal_from_certificate,
};
pub use web::{PemPair, WebCertificates, WebCertificatesError, web_server_config};
