//! Rotation of an authority's keys, phase by phase, with a way back.
//!
//! ```text
//! standby -> init -> update_clients -> update_servers -> standby      (with the new key)
//!              \____________\_________________\-> rollback -> standby  (with the old key)
//! ```
//! In every phase both keys are trusted; what changes is which of them signs for whom. Each function takes the public
//! authority and returns the next one; Auth stores it by compare-and-swap, so two rotations cannot cross.

use wayleave_resource::{CaKeys, CertAuthoritySpec, RotationPhase};

/// For whom a certificate is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignerFor {
    /// Somebody who calls: users.
    Clients,
    /// Somebody who is called: hosts.
    Servers,
}

/// A step that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The phases do not follow each other.
    #[error("no step from {from:?} to {to:?}; from there: {allowed:?}")]
    NoSuchStep {
        /// Where the rotation stands.
        from: RotationPhase,
        /// Where it was to go.
        to: RotationPhase,
        /// Where it can go.
        allowed: &'static [RotationPhase],
    },
    /// The new keys are the old ones, or there are none.
    #[error("a rotation needs new keys")]
    SameKeys,
    /// The authority does not have the keys that its phase needs.
    #[error("the authority has {active} active and {trusted} trusted keys in phase {phase:?}")]
    Inconsistent {
        /// The phase.
        phase: RotationPhase,
        /// Keys that sign.
        active: usize,
        /// Keys that are only trusted.
        trusted: usize,
    },
}

/// Where a rotation can go.
pub fn next_phases(phase: RotationPhase) -> &'static [RotationPhase] {
    match phase {
        RotationPhase::Standby => &[RotationPhase::Init],
        RotationPhase::Init => &[RotationPhase::UpdateClients, RotationPhase::Rollback],
        RotationPhase::UpdateClients => &[RotationPhase::UpdateServers, RotationPhase::Rollback],
        RotationPhase::UpdateServers => &[RotationPhase::Standby, RotationPhase::Rollback],
        RotationPhase::Rollback => &[RotationPhase::Standby],
    }
}

/// Begins a rotation: the new keys are trusted, nothing is signed with them.
///
/// # Errors
/// When a rotation is under way, or the new keys are the old ones.
pub fn begin(authority: &CertAuthoritySpec, new: CaKeys) -> Result<CertAuthoritySpec, RotationError> {
    step(authority, RotationPhase::Init)?;
    let (old, _) = keys(authority)?;
    if new == *old || new == CaKeys::default() {
        return Err(RotationError::SameKeys);
    }
    Ok(CertAuthoritySpec {
        phase: RotationPhase::Init,
        active: vec![old.clone()],
        trusted: vec![new],
        ..authority.clone()
    })
}

/// Takes the next step of a rotation that has begun.
///
/// # Errors
/// When the phases do not follow each other, or the keys do not fit the phase.
pub fn advance(authority: &CertAuthoritySpec, to: RotationPhase) -> Result<CertAuthoritySpec, RotationError> {
    step(authority, to)?;
    let (first, second) = keys(authority)?;
    // In init and rollback the old key signs, after that the new one.
    let (old, new) = match authority.phase {
        RotationPhase::Init | RotationPhase::Rollback | RotationPhase::Standby => (first, second),
        RotationPhase::UpdateClients | RotationPhase::UpdateServers => (second.unwrap_or(first), Some(first)),
    };
    let Some(new) = new else { return Err(inconsistent(authority)) };
    let (active, trusted) = match (authority.phase, to) {
        (RotationPhase::Rollback, RotationPhase::Standby) => (old, None),
        (_, RotationPhase::Standby) => (new, None),
        (_, RotationPhase::UpdateClients | RotationPhase::UpdateServers) => (new, Some(old)),
        (_, RotationPhase::Rollback) => (old, Some(new)),
        // Only `begin` leads there: it brings the new keys.
        (from, RotationPhase::Init) => return Err(no_step(from, to)),
    };
    Ok(CertAuthoritySpec {
        phase: to,
        active: vec![active.clone()],
        trusted: trusted.cloned().into_iter().collect(),
        ..authority.clone()
    })
}

/// The key that signs now.
///
/// # Errors
/// When the keys do not fit the phase.
pub fn signer(authority: &CertAuthoritySpec, for_whom: SignerFor) -> Result<&CaKeys, RotationError> {
    let (first, second) = keys(authority)?;
    match (authority.phase, for_whom) {
        (RotationPhase::UpdateClients, SignerFor::Servers) => second.ok_or_else(|| inconsistent(authority)),
        (
            RotationPhase::Standby
            | RotationPhase::Init
            | RotationPhase::UpdateClients
            | RotationPhase::UpdateServers
            | RotationPhase::Rollback,
            SignerFor::Clients | SignerFor::Servers,
        ) => Ok(first),
    }
}

/// Every key that is trusted now.
pub fn trusted(authority: &CertAuthoritySpec) -> impl Iterator<Item = &CaKeys> {
    authority.active.iter().chain(&authority.trusted)
}

/// True if a chain (leaf first, its authority last, PEM) was issued by the keys that sign now. A process whose own was not
/// renews it, so that the old keys can go.
pub fn is_issued_by_signer(chain_pem: &str, authority: &CertAuthoritySpec, for_whom: SignerFor) -> bool {
    let Ok(keys) = signer(authority, for_whom) else { return true };
    let Some(certificate) = &keys.x509_certificate_pem else { return true };
    chain_pem.trim_end().ends_with(certificate.trim_end())
}

fn step(authority: &CertAuthoritySpec, to: RotationPhase) -> Result<(), RotationError> {
    if next_phases(authority.phase).contains(&to) { Ok(()) } else { Err(no_step(authority.phase, to)) }
}

fn no_step(from: RotationPhase, to: RotationPhase) -> RotationError {
    RotationError::NoSuchStep { from, to, allowed: next_phases(from) }
}

fn keys(authority: &CertAuthoritySpec) -> Result<(&CaKeys, Option<&CaKeys>), RotationError> {
    let rotates = authority.phase != RotationPhase::Standby;
    match (authority.active.as_slice(), authority.trusted.as_slice()) {
        ([first], [second]) if rotates => Ok((first, Some(second))),
        ([first], _) if !rotates => Ok((first, None)),
        (_, _) => Err(inconsistent(authority)),
    }
}

fn inconsistent(authority: &CertAuthoritySpec) -> RotationError {
    RotationError::Inconsistent {
        phase: authority.phase,
        active: authority.active.len(),
        trusted: authority.trusted.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_resource::CaType;
    use wayleave_vocab::ClusterName;

    fn keys_of(name: &str) -> CaKeys {
        CaKeys { ssh_public_key: Some(name.to_owned()), ..CaKeys::default() }
    }

    fn standby(name: &str) -> CertAuthoritySpec {
        CertAuthoritySpec {
            ca_type: CaType::User,
            cluster: ClusterName::parse("demo").unwrap(),
            phase: RotationPhase::Standby,
            active: vec![keys_of(name)],
            trusted: vec![],
        }
    }

    fn check(authority: &CertAuthoritySpec, clients: &str, servers: &str, all: &[&str]) {
        assert_eq!(signer(authority, SignerFor::Clients), Ok(&keys_of(clients)), "{authority:?}");
        assert_eq!(signer(authority, SignerFor::Servers), Ok(&keys_of(servers)), "{authority:?}");
        let mut names: Vec<String> =
            trusted(authority).filter_map(|keys| keys.ssh_public_key.clone()).collect();
        names.sort();
        assert_eq!(names, all);
    }

    #[test]
    fn a_rotation_goes_through_its_phases() {
        let authority = standby("a");
        check(&authority, "a", "a", &["a"]);
        let authority = begin(&authority, keys_of("b")).unwrap();
        check(&authority, "a", "a", &["a", "b"]);
        let authority = advance(&authority, RotationPhase::UpdateClients).unwrap();
        check(&authority, "b", "a", &["a", "b"]);
        let authority = advance(&authority, RotationPhase::UpdateServers).unwrap();
        check(&authority, "b", "b", &["a", "b"]);
        let authority = advance(&authority, RotationPhase::Standby).unwrap();
        check(&authority, "b", "b", &["b"]);
    }

    #[test]
    fn every_phase_has_a_way_back() {
        for phases in [
            &[][..],
            &[RotationPhase::UpdateClients][..],
            &[RotationPhase::UpdateClients, RotationPhase::UpdateServers][..],
        ] {
            let mut authority = begin(&standby("a"), keys_of("b")).unwrap();
            for phase in phases {
                authority = advance(&authority, *phase).unwrap();
            }
            authority = advance(&authority, RotationPhase::Rollback).unwrap();
            check(&authority, "a", "a", &["a", "b"]);
            check(&advance(&authority, RotationPhase::Standby).unwrap(), "a", "a", &["a"]);
        }
    }

    #[test]
    fn a_chain_is_renewed_when_other_keys_sign() {
        let certified = |name: &str| CaKeys {
            x509_certificate_pem: Some(format!("-----BEGIN-----\n{name}\n-----END-----\n")),
            ..CaKeys::default()
        };
        let old = CertAuthoritySpec { active: vec![certified("a")], ..standby("a") };
        let chain = "-----BEGIN-----\nleaf\n-----END-----\n-----BEGIN-----\na\n-----END-----";
        let is_current =
            |authority: &CertAuthoritySpec| is_issued_by_signer(chain, authority, SignerFor::Servers);
        let mut authority = begin(&old, certified("b")).unwrap();
        assert!(is_current(&old) && is_current(&authority));
        authority = advance(&authority, RotationPhase::UpdateClients).unwrap();
        assert!(is_current(&authority));
        authority = advance(&authority, RotationPhase::UpdateServers).unwrap();
        assert!(!is_current(&authority));
        assert!(is_current(&advance(&authority, RotationPhase::Rollback).unwrap()));
    }

    #[test]
    fn steps_that_skip_are_refused() {
        let authority = begin(&standby("a"), keys_of("b")).unwrap();
        for to in [RotationPhase::Standby, RotationPhase::UpdateServers, RotationPhase::Init] {
            assert!(matches!(advance(&authority, to), Err(RotationError::NoSuchStep { .. })), "{to:?}");
        }
        assert!(matches!(begin(&authority, keys_of("c")), Err(RotationError::NoSuchStep { .. })));
        assert_eq!(begin(&standby("a"), keys_of("a")), Err(RotationError::SameKeys));
        assert!(matches!(
            advance(&standby("a"), RotationPhase::Init),
            Err(RotationError::Inconsistent { .. } | RotationError::NoSuchStep { .. })
        ));
    }
}
