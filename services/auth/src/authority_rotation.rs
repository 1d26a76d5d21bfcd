//! Rotating an authority: one step of its rotation for each call, in force everywhere without a restart.
//!
//! Which steps there are and who signs in which phase is decided by `core/ca`. A step writes the private keys and the
//! public part in one batch; every Auth Service takes it over from there ([`Authorities::follow`]), agents and proxies
//! by the signed policy.

use crate::audit_events::{Author, written};
use crate::auth_core::AuthCore;
use crate::authorities::{Authorities, LoadError, Successions};
use crate::authority_keys::{Authority, Generation, RotateError};
use crate::join::HostRecord;
use crate::keys;
use crate::mirror::Mirror;
use crate::records::{Records, Stored, decode, put};
use crate::request_error::RequestError;
use std::collections::BTreeMap;
use wayleave_api::auth::{RotateAuthorityRequest, RotateAuthorityResponse};
use wayleave_ca::{SUCCESSIONS_MAX, SignedSuccession, SignerFor, Succession, next_phases};
use wayleave_keystore::PolicySigner;
use wayleave_resource::{CaType, Kind, Resource, RotationPhase};
use wayleave_store::{Condition, StoreError};
use wayleave_vocab::{NodeName, Wall};

/// Most processes that a refusal names.
const BEHIND_NAMED_MAX: usize = 10;

impl AuthCore {
    /// Takes the next step of a rotation, or the one that is named.
    pub(crate) async fn rotate_authority(
        &self,
        request: &RotateAuthorityRequest,
        by: &Author,
    ) -> Result<RotateAuthorityResponse, RequestError> {
        let ca_type: CaType = request.r#type.parse().map_err(|e| RequestError::Invalid(format!("{e}")))?;
        let wanted = match request.phase.as_str() {
            "" => None,
            word => Some(parse_phase(word)?),
        };
        // The step is taken from what is stored, not from what this service last heard.
        self.follow_authorities().await.map_err(|e| RequestError::Broken(e.to_string()))?;
        let held = self.authorities.held();
        let now = self.clock.wall();
        let (operations, public) = match ca_type {
            CaType::User => {
                let next = step(&held.user, wanted, now)?;
                (next.operations().to_vec(), next.resource())
            }
            CaType::Host => {
                let next = step(&held.host, wanted, now)?;
                if next.spec().phase == RotationPhase::Standby && !request.force {
                    self.nobody_is_left_behind(now).await?;
                }
                (next.operations().to_vec(), next.resource())
            }
            CaType::Policy => {
                let next = step(&held.policy, wanted, now)?;
                let mut operations = next.operations().to_vec();
                if let Some(links) = successions_after(&held.policy, &next, &held.successions, now) {
                    operations.push(put(keys::policy_successions(), &links));
                }
                (operations, next.resource())
            }
            CaType::Openssh => {
                let next = step(&held.openssh, wanted, now)?;
                (next.operations().to_vec(), next.resource())
            }
            CaType::DbServer | CaType::DbClient | CaType::Jwt => {
                return Err(RequestError::Invalid(format!(
                    "the {ca_type} authority does not rotate in this release"
                )));
            }
        };
        let spec = public.spec.clone();
        let resource = Resource::from(public);
        let key = keys::resource(Kind::CertAuthority, ca_type.as_str())
            .ok_or_else(|| RequestError::Broken("the authority has no name".to_owned()))?;
        let at = self.mirror.get(Kind::CertAuthority, ca_type.as_str()).map(|mirrored| mirrored.revision);
        let condition =
            at.map_or_else(|| Condition::Absent(key.clone()), |at| Condition::RevisionIs(key.clone(), at));
        let committed = self
            .commit_audited(vec![condition], operations, vec![written(&resource, false, by)])
            .await
            .map_err(|error| match error {
                StoreError::Conflict { .. } | StoreError::AlreadyExists { .. } => RequestError::Conflict(
                    format!("the {ca_type} authority was changed by somebody else just now: look at it and try again"),
                ),
                other => RequestError::store("rotate the authority")(other),
            })?;
        self.mirror.seen(committed.revision).await;
        self.follow_authorities().await.map_err(|e| RequestError::Broken(e.to_string()))?;
        tracing::info!(%ca_type, phase = ?spec.phase, "the rotation of an authority took a step");
        Ok(RotateAuthorityResponse {
            authority: crate::rpc_admin::ca_status(&resource),
            next_phases: next_phases(spec.phase).iter().map(|phase| phase_word(*phase).to_owned()).collect(),
        })
    }

    /// Refuses the step that ends trust in a host CA key while processes hold certificates of it: they could not even
    /// renew them any more.
    async fn nobody_is_left_behind(&self, now: Wall) -> Result<(), RequestError> {
        let (items, _) =
            self.records.items(&keys::hosts()).await.map_err(RequestError::store("read the processes"))?;
        let signer = self.authorities.host_signer_pin();
        let mut newest: BTreeMap<NodeName, HostRecord> = BTreeMap::new();
        for item in items {
            // A machine that joined anew left its former self behind.
            let Ok(record) = decode::<HostRecord>(&item) else { continue };
            let record = record.value;
            let known = newest.entry(record.hostname.clone()).or_insert_with(|| record.clone());
            if known.renewed_at < record.renewed_at {
                *known = record;
            }
        }
        let is_behind = |record: &&HostRecord| {
            record.signed_by != signer && record.renewed_at.after(self.config.lifetimes.host) > now
        };
        let behind: Vec<String> =
            newest.values().filter(is_behind).map(|record| record.hostname.to_string()).collect();
        if behind.is_empty() {
            return Ok(());
        }
        let named: Vec<&str> = behind.iter().take(BEHIND_NAMED_MAX).map(String::as_str).collect();
        let more = behind.len().saturating_sub(named.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(RequestError::Conflict(format!(
            "{} processes hold certificates of the key that goes: {}{more}. They renew by themselves within seconds \
             while they are connected; try again then. With --force they are left behind and must join anew",
            behind.len(),
            named.join(", ")
        )))
    }

    /// Takes over what has changed.
    pub(crate) async fn follow_authorities(&self) -> Result<(), LoadError> {
        follow(&self.authorities, &self.records, &self.mirror).await
    }
}

/// Takes over authorities whose public parts in the mirror differ from what is held.
pub(crate) async fn follow(
    authorities: &Authorities,
    records: &Records,
    mirror: &Mirror,
) -> Result<(), LoadError> {
    let mut public = Vec::new();
    for mirrored in mirror.all(Kind::CertAuthority) {
        if let Resource::CertAuthority(authority) = &mirrored.resource {
            public.push(authority.spec.clone());
        }
    }
    authorities.follow(records, public).await
}

/// The stored succession of policy keys; none before the first rotation.
pub(crate) async fn read_successions(records: &Records) -> Result<Successions, RequestError> {
    let stored: Option<Stored<Successions>> = records.read(&keys::policy_successions()).await?;
    Ok(stored.map(|stored| stored.value).unwrap_or_default())
}

fn step<K: Generation>(
    authority: &Authority<K>,
    to: Option<RotationPhase>,
    now: Wall,
) -> Result<Authority<K>, RequestError> {
    let phase = authority.spec().phase;
    let to = to.or_else(|| next_phases(phase).first().copied()).unwrap_or(RotationPhase::Init);
    let next = if to == RotationPhase::Init { authority.begin(now) } else { authority.advance(to) };
    next.map_err(|error| match error {
        RotateError::Step(error) => RequestError::Invalid(format!(
            "{error}. The {} authority is in phase {}",
            authority.spec().ca_type,
            phase_word(phase)
        )),
        RotateError::Keys(error) => RequestError::Broken(error.to_string()),
    })
}

/// The succession after a step that changes who signs policy: the key that goes vouches for the one that comes, and a
/// step back takes that word back. `None`: nothing changes.
fn successions_after(
    from: &Authority<PolicySigner>,
    to: &Authority<PolicySigner>,
    known: &Successions,
    now: Wall,
) -> Option<Successions> {
    let (previous, next) = (from.signer(SignerFor::Servers), to.signer(SignerFor::Servers));
    if previous.public_key_pem() == next.public_key_pem() {
        return None;
    }
    let mut links = known.clone();
    if to.spec().phase == RotationPhase::Rollback {
        links.0.pop();
        return Some(links);
    }
    let bytes = Succession {
        cluster: from.spec().cluster.clone(),
        previous: previous.public_key_pem(),
        next: next.public_key_pem(),
        time: now,
    }
    .encode();
    let signature = previous.sign(&SignedSuccession::message(&bytes));
    links.0.push((bytes, signature));
    let extra = links.0.len().saturating_sub(SUCCESSIONS_MAX);
    links.0.drain(..extra);
    Some(links)
}

pub(crate) fn phase_word(phase: RotationPhase) -> &'static str {
    match phase {
        RotationPhase::Standby => "standby",
        RotationPhase::Init => "init",
        RotationPhase::UpdateClients => "update_clients",
        RotationPhase::UpdateServers => "update_servers",
        RotationPhase::Rollback => "rollback",
    }
}

fn parse_phase(word: &str) -> Result<RotationPhase, RequestError> {
    let all = [
        RotationPhase::Standby,
        RotationPhase::Init,
        RotationPhase::UpdateClients,
        RotationPhase::UpdateServers,
        RotationPhase::Rollback,
    ];
    all.into_iter().find(|phase| phase_word(*phase) == word).ok_or_else(|| {
        RequestError::Invalid(format!(
            "{:?} is no phase of a rotation; there are {}",
            word.chars().take(32).collect::<String>(),
            all.map(phase_word).join(", ")
        ))
    })
}
