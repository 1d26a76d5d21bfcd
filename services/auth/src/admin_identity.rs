//! The local administrator: whoever can read `data_dir` on the Auth host is one (`way -c FILE`).
//!
//! Auth writes a short-lived identity there (mode 0600) when it starts and again before it runs out. What it may do is
//! decided like for every other caller; the audit log names it `local-admin@<host>`.

use crate::auth_core::AuthCore;
use crate::authorities::{Issued, SshPermits, SubjectKeys};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use wayleave_api::auth::PublicKeys;
use wayleave_ca::is_renewal_due;
use wayleave_identity::UserPrincipal;
use wayleave_keystore::{CredentialsError, TlsKey, write_private};
use wayleave_runtime::{Shutdown, random_bytes};
use wayleave_ssh::KeyPair;
use wayleave_vocab::{NodeName, Secret, UserName, Wall};

/// Name of the file in `data_dir`: an identity file as `way -i` reads it (`services/client/src/identity_file.rs`).
pub const ADMIN_IDENTITY_FILE: &str = "admin-identity";
/// The version of that format.
const IDENTITY_FILE_VERSION: u32 = 1;
/// How often it is looked whether the identity must be written again.
const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// The identity could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AdminIdentityError {
    /// No keys.
    #[error("the keys of the local administrator cannot be made")]
    Keys(#[source] CredentialsError),
    /// No certificate.
    #[error("the certificate of the local administrator cannot be issued: {0}")]
    Issue(String),
    /// No file.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// True for names that only local administrators have, so that the audit log cannot be misread.
pub(crate) fn is_reserved(name: &UserName) -> bool {
    name.as_str() == "local-admin" || name.as_str().starts_with("local-admin@")
}

/// The local administrator's name on a host.
pub fn local_admin_name(hostname: &NodeName) -> UserName {
    let name = format!("local-admin@{hostname}");
    UserName::parse(name).unwrap_or_else(|_| {
        // A host name may be longer than a user name.
        UserName::parse("local-admin").expect("the constant follows the rule of user names")
    })
}

impl AuthCore {
    /// The principal of the local administrator.
    pub(crate) fn local_admin(&self, not_after: Wall) -> UserPrincipal {
        UserPrincipal {
            name: local_admin_name(&self.config.hostname),
            cluster: self.authorities.cluster().clone(),
            roles: BTreeSet::new(),
            logins: BTreeSet::new(),
            traits: Default::default(),
            local_admin: true,
            not_after,
        }
    }

    /// Writes a fresh identity to `data_dir`. `auth_address` is where this Auth listens.
    pub(crate) fn write_admin_identity(&self, auth_address: &str) -> Result<(), AdminIdentityError> {
        let now = self.clock.wall();
        let not_after = Wall::from_secs(now.after(self.config.lifetimes.local_admin).as_secs());
        let tls = TlsKey::generate().map_err(AdminIdentityError::Keys)?;
        let ssh = KeyPair::from_seed(&random_bytes());
        let public =
            PublicKeys { tls_spki_der: tls.spki_der(), ssh_public_key: ssh.public_key().to_openssh() };
        let principal = self.local_admin(not_after);
        let permits = SshPermits { port_forwarding: false, agent_forwarding: false, x11_forwarding: false };
        let issued = SubjectKeys::parse(Some(&public))
            .and_then(|keys| self.authorities.issue_user(&principal, &keys, permits, now))
            .map_err(|error| AdminIdentityError::Issue(error.to_string()))?;
        let text = self.identity_text(&principal, auth_address, &issued, &tls, &ssh);
        let path = admin_identity_path(&self.config.data_dir);
        write_private(&path, text.expose_secret().as_bytes())
            .map_err(|source| AdminIdentityError::Write { path, source })
    }

    /// The text of the identity file: addresses, TLS key and chain, SSH key and certificate, host authorities.
    fn identity_text(
        &self,
        principal: &UserPrincipal,
        auth_address: &str,
        issued: &Issued,
        tls: &TlsKey,
        ssh: &KeyPair,
    ) -> Secret {
        let (name, cluster) = (&principal.name, &principal.cluster);
        let mut text = format!(
            "# Wayleave identity of {name} in {cluster}. It holds private keys: keep it at mode 0600.\n\
             version: {IDENTITY_FILE_VERSION}\ncluster: {cluster}\nauth: {auth_address}\n"
        );
        let (tls_key, ssh_key) = (tls.to_pem(), ssh.to_openssh("wayleave local admin"));
        let host_ca_pem = self.authorities.host_ca_pem();
        let blocks = [
            tls_key.expose_secret(),
            &issued.tls_chain_pem,
            ssh_key.as_str(),
            &issued.ssh_certificate,
            &host_ca_pem,
        ];
        for block in blocks {
            text.push_str(block.trim_end());
            text.push('\n');
        }
        for key in self.authorities.host_ca_ssh() {
            text.push_str(&format!("@cert-authority * {key}\n"));
        }
        Secret::new(text)
    }
}

/// Where the identity lies.
pub fn admin_identity_path(data_dir: &Path) -> PathBuf {
    data_dir.join(ADMIN_IDENTITY_FILE)
}

/// Writes the identity again when a third of its life has passed and when an authority has rotated, until shutdown.
pub(crate) async fn run(core: Arc<AuthCore>, auth_address: String, shutdown: Shutdown) {
    let mut written = core.clock.wall();
    let mut changes = core.authorities.changes();
    loop {
        let has_rotated = tokio::select! {
            () = shutdown.requested() => return,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(REVIEW_INTERVAL) => false,
        };
        let now = core.clock.wall();
        if !has_rotated && !is_renewal_due(written, core.config.lifetimes.local_admin / 3, now) {
            continue;
        }
        match core.write_admin_identity(&auth_address) {
            Ok(()) => written = now,
            Err(error) => tracing::warn!(%error, "the identity of the local administrator was not renewed"),
        }
    }
}
