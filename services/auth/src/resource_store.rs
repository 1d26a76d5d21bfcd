//! Writing resources: what must hold besides the caller's right to write, and the audit event in the same batch.

use crate::admin_identity::is_reserved;
use crate::audit_events::{Author, deleted, written};
use crate::auth_core::AuthCore;
use crate::keys;
use crate::records::decode_resource;
use crate::request_error::RequestError;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wayleave_policy::{CompiledRole, widens_own_role, widens_own_user};
use wayleave_resource::{
    Kind, Lock, LockSpec, LockTarget, Metadata, Resource, Role, User, UserStatus, WithdrawnRole,
};
use wayleave_store::{Condition, Item, Operation, Revision, StoreError};
use wayleave_vocab::{ResourceName, RoleName, UserName, Wall};

/// Most roles of one user that certificates may still name and that count no more.
const WITHDRAWN_ROLES_MAX: usize = 256;
/// A certificate may be issued while a role is being taken away.
const WITHDRAWAL_SLACK: Duration = Duration::from_secs(60);
/// Room that one of them takes in a snapshot, at most.
const WITHDRAWAL_BYTES: usize = 1024;

/// How often a write is tried again when somebody else wrote at the same time.
const ATTEMPTS_MAX: usize = 4;

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteMode {
    /// Nothing of that name.
    Create,
    /// Whatever is there, or the revision that the resource names.
    Upsert,
}

/// The operation that writes a resource in its stored form.
pub(crate) fn put_operation(resource: &Resource) -> Operation {
    let key = keys::resource(resource.kind(), resource.name().as_str())
        .expect("resource names have no slash and are shorter than a key");
    Operation::Put { key, value: resource.to_stored_json().into_bytes().into(), lease: None }
}

/// Conditions and operations of a write, together with the resource as it will be stored.
struct Planned {
    resource: Resource,
    conditions: Vec<Condition>,
    created: bool,
}

impl AuthCore {
    /// Writes a resource for `by`, who has been found to be allowed to. Answers what is stored now.
    pub(crate) async fn write_resource(
        &self,
        resource: Resource,
        mode: WriteMode,
        by: &Author,
    ) -> Result<Resource, RequestError> {
        self.check_writable(&resource)?;
        self.snapshots.check_room(resource.to_stored_json().len())?;
        for _ in 0..ATTEMPTS_MAX {
            let planned = self.plan(resource.clone(), mode, by).await?;
            let event = written(&planned.resource, planned.created, by);
            let operations = vec![put_operation(&planned.resource)];
            match self.commit_audited(planned.conditions, operations, vec![event]).await {
                Ok(committed) => {
                    self.mirror.seen(committed.revision).await;
                    return Ok(with_revision(planned.resource, committed.revision));
                }
                Err(
                    StoreError::AlreadyExists { .. }
                    | StoreError::Conflict { .. }
                    | StoreError::NotFound { .. },
                ) if resource.metadata().revision.is_none() && mode == WriteMode::Upsert => {}
                Err(error) => return Err(describe(error, &resource)),
            }
        }
        Err(RequestError::Conflict(format!("{} is being written by others, try again", title(&resource))))
    }

    /// What every write must hold to, whoever writes.
    pub(crate) fn check_writable(&self, resource: &Resource) -> Result<(), RequestError> {
        match resource {
            Resource::Token(_) => Err(RequestError::Invalid(
                "a token needs a secret, which is no part of the resource: use `way tokens add`".to_owned(),
            )),
            Resource::Node(_) | Resource::Proxy(_) | Resource::CertAuthority(_) => {
                Err(RequestError::Invalid(format!(
                    "a {} is written by the process that it describes, not by people",
                    resource.kind()
                )))
            }
            Resource::Role(role) => check_role(role),
            Resource::User(user) if is_reserved(&user.name) => {
                Err(RequestError::Invalid(format!("{} is the name of a local administrator", user.name)))
            }
            Resource::User(_)
            | Resource::Lock(_)
            | Resource::ClusterNetworkingConfig(_)
            | Resource::ClusterAuthPreference(_) => Ok(()),
        }
    }

    async fn plan(
        &self,
        mut resource: Resource,
        mode: WriteMode,
        by: &Author,
    ) -> Result<Planned, RequestError> {
        let now = self.clock.wall();
        let (kind, name) = (resource.kind(), resource.name());
        let key = keys::resource(kind, name.as_str())
            .ok_or_else(|| RequestError::Invalid(format!("{name} cannot be the name of a {kind}")))?;
        let before = self.records.backend().get(&key).await.map_err(RequestError::store("read"))?;
        let mut conditions = match (&before, mode) {
            (Some(_), WriteMode::Create) => {
                return Err(RequestError::AlreadyExists(format!(
                    "{} exists already: use `way create --force` or `way edit` to change it",
                    title(&resource)
                )));
            }
            (None, _) => vec![Condition::Absent(key)],
            (Some(item), WriteMode::Upsert) => vec![Condition::RevisionIs(key, item.revision)],
        };
        check_expected(&resource, before.as_ref())?;
        let stored = before.as_ref().and_then(decode_resource);
        complete(&mut resource, stored.as_ref(), &by.user, now);
        check_own_write(&resource, stored.as_ref(), by, &self.roles_of_author(&resource, by).await?)?;
        if let Resource::User(user) = &mut resource {
            conditions.extend(self.roles_exist(user)?);
            if let Some(Resource::User(stored)) = &stored {
                withdraw_roles(user, stored, now, self.config.lifetimes.user_max)?;
                let more = user.status.withdrawn_roles.len().saturating_mul(WITHDRAWAL_BYTES);
                self.snapshots.check_room(more)?;
            }
        }
        Ok(Planned { resource, conditions, created: before.is_none() })
    }

    /// The roles that whoever writes a role acts with, and those that he was given since he logged in: they are his at
    /// the next login.
    async fn roles_of_author(
        &self,
        resource: &Resource,
        by: &Author,
    ) -> Result<BTreeSet<RoleName>, RequestError> {
        let mut roles = by.roles.clone();
        if !matches!(resource, Resource::Role(_)) || by.local_admin {
            return Ok(roles);
        }
        let Some(key) = keys::resource(Kind::User, by.user.as_str()) else { return Ok(roles) };
        // The mirror may be behind another Auth instance, where the role was given.
        let item = self.records.backend().get(&key).await.map_err(RequestError::store("read"))?;
        if let Some(Resource::User(user)) = item.as_ref().and_then(decode_resource) {
            roles.extend(user.spec.roles);
        }
        Ok(roles)
    }

    /// The conditions under which every role of a user exists.
    pub(crate) fn roles_exist(&self, user: &User) -> Result<Vec<Condition>, RequestError> {
        let missing: Vec<&RoleName> = user
            .spec
            .roles
            .iter()
            .filter(|role| self.mirror.get(Kind::Role, role.as_str()).is_none())
            .collect();
        if let Some(role) = missing.first() {
            return Err(RequestError::Invalid(format!(
                "there is no role {role}: see `way get roles`, or create it first"
            )));
        }
        let key = |role: &RoleName| keys::resource(Kind::Role, role.as_str()).map(Condition::Exists);
        Ok(user.spec.roles.iter().filter_map(key).collect())
    }

    /// Deletes a resource for `by`, who has been found to be allowed to.
    pub(crate) async fn delete_resource(
        &self,
        kind: Kind,
        name: &str,
        by: &Author,
    ) -> Result<(), RequestError> {
        let not_found = || RequestError::NotFound(format!("there is no {kind} {name}"));
        let key = keys::resource(kind, name).ok_or_else(not_found)?;
        let item = self.records.backend().get(&key).await.map_err(RequestError::store("read"))?;
        let item = item.ok_or_else(not_found)?;
        self.check_deletable(kind, name)?;
        let mut operations = vec![Operation::Delete { key: key.clone() }];
        operations.extend(self.goes_with(kind, name));
        if kind == Kind::Token {
            operations.extend(self.published_with(name));
        }
        let mut events = vec![deleted(kind, name, by)];
        if let (Kind::User, Ok(user)) = (kind, UserName::parse(name)) {
            let lock = Resource::Lock(self.lock_of_removed_user(&user, by));
            operations.push(put_operation(&lock));
            events.push(written(&lock, true, by));
        }
        let condition = Condition::RevisionIs(key, item.revision);
        let committed = self
            .commit_audited(vec![condition], operations, events)
            .await
            .map_err(RequestError::store("delete"))?;
        self.mirror.seen(committed.revision).await;
        Ok(())
    }

    /// Agents know no users, only certificates: a lock keeps a removed user out until the last of his has run out.
    fn lock_of_removed_user(&self, user: &UserName, by: &Author) -> Lock {
        let now = self.clock.wall();
        Lock {
            name: removed_user_lock(user),
            metadata: Metadata::default(),
            spec: LockSpec {
                target: LockTarget::User(user.clone()),
                message: "the user was removed".to_owned(),
                expires: Some(now.after(self.config.lifetimes.user_max)),
                created_at: Some(now),
                created_by: Some(by.user.clone()),
            },
        }
    }

    fn check_deletable(&self, kind: Kind, name: &str) -> Result<(), RequestError> {
        match kind {
            Kind::ClusterNetworkingConfig | Kind::ClusterAuthPreference => Err(RequestError::Invalid(
                format!("there is always one {kind}: change it with `way edit {kind}`"),
            )),
            Kind::CertAuthority => {
                Err(RequestError::Invalid("certificate authorities are not deleted".to_owned()))
            }
            Kind::Role => match self.holders_of(name).as_slice() {
                [] => Ok(()),
                [first, rest @ ..] => Err(RequestError::Conflict(format!(
                    "the role {name} is held by {first}{}: take it from them first",
                    if rest.is_empty() { String::new() } else { format!(" and {} others", rest.len()) }
                ))),
            },
            Kind::User | Kind::Token | Kind::Lock | Kind::Node | Kind::Proxy => Ok(()),
        }
    }

    fn holders_of(&self, role: &str) -> Vec<UserName> {
        let holds = |resource: &Resource| match resource {
            Resource::User(user) if user.spec.roles.iter().any(|held| held.as_str() == role) => {
                Some(user.name.clone())
            }
            _ => None,
        };
        self.mirror.all(Kind::User).iter().filter_map(|mirrored| holds(&mirrored.resource)).collect()
    }

    /// Secrets that belong to a resource and go with it.
    pub(crate) fn goes_with(&self, kind: Kind, name: &str) -> Vec<Operation> {
        let delete = |key| vec![Operation::Delete { key }];
        match kind {
            Kind::User => {
                UserName::parse(name).map(|name| delete(keys::user_secret(&name))).unwrap_or_default()
            }
            Kind::Token => wayleave_vocab::TokenName::parse(name)
                .map(|name| delete(keys::token_secret(&name)))
                .unwrap_or_default(),
            Kind::Role
            | Kind::Lock
            | Kind::Node
            | Kind::Proxy
            | Kind::CertAuthority
            | Kind::ClusterNetworkingConfig
            | Kind::ClusterAuthPreference => Vec::new(),
        }
    }
}

/// Agents know no users, only certificates: what is taken away is noted until the last certificate with it has run out,
/// and what is given back counts again.
fn withdraw_roles(
    user: &mut User,
    before: &User,
    now: Wall,
    certificate_max: Duration,
) -> Result<(), RequestError> {
    let until = now.after(certificate_max).after(WITHDRAWAL_SLACK);
    let mut withdrawn: BTreeMap<RoleName, Wall> = BTreeMap::new();
    let noted = before.status.withdrawn_roles.iter().filter(|entry| now < entry.until);
    withdrawn.extend(noted.map(|entry| (entry.role.clone(), entry.until)));
    withdrawn.extend(before.spec.roles.iter().map(|role| (role.clone(), until)));
    withdrawn.retain(|role, _| !user.spec.roles.contains(role));
    if withdrawn.len() > WITHDRAWN_ROLES_MAX {
        return Err(RequestError::Invalid(format!(
            "more than {WITHDRAWN_ROLES_MAX} roles were taken from {0} while certificates with them are valid: lock \
             {0} out by `way locks add --user {0}` instead",
            user.name
        )));
    }
    let entry = |(role, until)| WithdrawnRole { role, until };
    user.status.withdrawn_roles = withdrawn.into_iter().map(entry).collect();
    Ok(())
}

/// Name of the lock that stands for a user who was removed.
pub(crate) fn removed_user_lock(user: &UserName) -> ResourceName {
    let name: String = format!("removed-user-{user}").chars().take(ResourceName::BYTES_MAX).collect();
    ResourceName::parse(name).expect("a prefix and the alphabet of user names make a resource name")
}

/// A role that cannot be enforced is refused with everything that is wrong with it.
fn check_role(role: &Role) -> Result<(), RequestError> {
    CompiledRole::compile(role).map(|_| ()).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        RequestError::Invalid(lines.join("\n"))
    })
}

/// Refuses a write of a revision that is no longer the stored one.
fn check_expected(resource: &Resource, before: Option<&Item>) -> Result<(), RequestError> {
    let Some(expected) = &resource.metadata().revision else { return Ok(()) };
    let actual = before.map(|item| item.revision.to_string());
    match actual {
        Some(actual) if actual == *expected => Ok(()),
        Some(_) | None => Err(RequestError::Conflict(format!(
            "{} was changed meanwhile (its metadata.revision is not {expected}): read it again",
            title(resource)
        ))),
    }
}

/// Nobody's own write widens what he may do: a role that he holds, or his own user. The local administrator may.
fn check_own_write(
    resource: &Resource,
    stored: Option<&Resource>,
    by: &Author,
    roles: &BTreeSet<RoleName>,
) -> Result<(), RequestError> {
    if by.local_admin {
        return Ok(());
    }
    let widening = match (resource, stored) {
        (Resource::Role(new), Some(Resource::Role(old))) if roles.contains(&new.name) => {
            widens_own_role(old, new)
        }
        (Resource::User(new), Some(Resource::User(old))) if new.name == by.user => widens_own_user(old, new),
        _ => Ok(()),
    };
    widening.map_err(|widening| RequestError::denied(widening.to_string()))
}

/// Fills in what the cluster notes itself; what the writer says about that does not count.
fn complete(resource: &mut Resource, stored: Option<&Resource>, by: &UserName, now: Wall) {
    match resource {
        Resource::User(user) => {
            user.status = match stored {
                Some(Resource::User(stored)) => stored.status.clone(),
                _ => UserStatus {
                    created_by: Some(by.clone()),
                    created_at: Some(now),
                    ..UserStatus::default()
                },
            };
        }
        Resource::Lock(lock) => {
            lock.spec.created_at = Some(now);
            lock.spec.created_by = Some(by.clone());
        }
        Resource::Role(_)
        | Resource::Token(_)
        | Resource::Node(_)
        | Resource::Proxy(_)
        | Resource::CertAuthority(_)
        | Resource::ClusterNetworkingConfig(_)
        | Resource::ClusterAuthPreference(_) => {}
    }
}

fn with_revision(mut resource: Resource, revision: Revision) -> Resource {
    resource.metadata_mut().revision = Some(revision.to_string());
    resource
}

/// `role admins`, for messages.
pub(crate) fn title(resource: &Resource) -> String {
    format!("{} {}", resource.kind(), resource.name())
}

fn describe(error: StoreError, resource: &Resource) -> RequestError {
    match error {
        StoreError::AlreadyExists { .. } => {
            RequestError::AlreadyExists(format!("{} exists already", title(resource)))
        }
        StoreError::Conflict { .. } | StoreError::NotFound { .. } => {
            RequestError::Conflict(format!("{} was changed meanwhile: read it again", title(resource)))
        }
        other => RequestError::store("write the resource")(other),
    }
}
