//! Users are created with an invitation, and reset with one. An invitation is good once, for an hour unless asked
//! otherwise; its token is a public half, under which it is found, and a secret half, of which the hash is kept.

use crate::admin_identity::is_reserved;
use crate::audit_events::{Author, CredentialAction, credentials, login, user_certificates, written};
use crate::auth_core::AuthCore;
use crate::authorities::SubjectKeys;
use crate::keys;
use crate::one_time_code::TotpSecret;
use crate::password::{HashError, check_rules};
use crate::presence::DIRECT_ADDRESS;
use crate::records::{Stored, put};
use crate::request_error::RequestError;
use crate::resource_store::{put_operation, removed_user_lock};
use crate::token_secret::{SecretHash, generate};
use crate::tokens::lifetime;
use crate::user_secrets::{UserSecrets, replace};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use wayleave_api::auth::{
    AcceptInviteRequest, BeginInviteResponse, CreateUserRequest, InviteResponse, ResetUserRequest,
    TraitValues, UserCertificates,
};
use wayleave_resource::{Kind, Metadata, Proxy, Resource, SecondFactor, User, UserSpec, UserStatus};
use wayleave_runtime::random_bytes;
use wayleave_store::{Condition, Operation, StoreError};
use wayleave_vocab::{Login, RoleName, Secret, Traits, UserName, Wall};

const INVITE_TTL_MIN: Duration = Duration::from_secs(60);
/// Hexadecimal digits of the public half of an invitation's token.
const INVITE_ID_CHARS: usize = 16;
/// What is told to whoever presents an invitation that does not count, whatever the reason.
const INVITE_REFUSED: &str =
    "the invitation is not valid or has expired: ask an administrator for a new one (`way users reset`)";

/// An open invitation, as stored. Never `Debug`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InviteRecord {
    pub(crate) user: UserName,
    secret: SecretHash,
    totp: TotpSecret,
    reset: bool,
    pub(crate) expires: Wall,
}

impl AuthCore {
    /// A new user and the invitation, for `by`, who has been found to be allowed to.
    pub(crate) async fn create_user(
        &self,
        request: CreateUserRequest,
        by: &Author,
    ) -> Result<InviteResponse, RequestError> {
        let now = self.clock.wall();
        let lifetimes = &self.config.lifetimes;
        let ttl = lifetime(
            request.invite_ttl_ms,
            lifetimes.invite_default,
            INVITE_TTL_MIN,
            lifetimes.invite_max,
            "an invitation",
        )?;
        let user = parse_user(request, &by.user, now)?;
        self.check_not_removed(&user.name, now)?;
        let mut conditions = self.roles_exist(&user)?;
        let key = keys::resource(Kind::User, user.name.as_str())
            .ok_or_else(|| RequestError::Invalid(format!("{} cannot be the name of a user", user.name)))?;
        conditions.push(Condition::Absent(key));
        let (token, id, invite) = new_invite(&user.name, false, now.after(ttl));
        let secrets = UserSecrets { invite: Some(id.clone()), ..UserSecrets::default() };
        let name = user.name.clone();
        let resource = Resource::User(user);
        let mut operations = vec![put_operation(&resource), put(keys::user_secret(&name), &secrets)];
        operations.extend(keys::invite(&id).map(|key| put(key, &invite)));
        let events = vec![written(&resource, true, by), credentials(&name, CredentialAction::Invite, by)];
        let committed =
            self.commit_audited(conditions, operations, events).await.map_err(|error| match error {
                StoreError::AlreadyExists { .. } => RequestError::AlreadyExists(format!(
                    "there is a user {name} already: `way users reset {name}` makes a new invitation"
                )),
                other => RequestError::store("create the user")(other),
            })?;
        self.mirror.seen(committed.revision).await;
        Ok(self.invite_response(&name, &token, invite.expires))
    }

    /// A new user must not be entered with certificates of a former one of his name.
    fn check_not_removed(&self, name: &UserName, now: Wall) -> Result<(), RequestError> {
        let lock = removed_user_lock(name);
        let in_force = self.mirror.get(Kind::Lock, lock.as_str()).is_some_and(
            |mirrored| matches!(&mirrored.resource, Resource::Lock(lock) if lock.spec.is_in_force(now)),
        );
        if !in_force {
            return Ok(());
        }
        Err(RequestError::AlreadyExists(format!(
            "a user {name} was removed a short while ago and may still hold certificates: choose another name, or take \
             the lock away with `way locks rm {lock}` if it is the same person"
        )))
    }

    /// Takes password and second factor away and makes a new invitation.
    pub(crate) async fn reset_user(
        &self,
        request: ResetUserRequest,
        by: &Author,
    ) -> Result<InviteResponse, RequestError> {
        let now = self.clock.wall();
        let lifetimes = &self.config.lifetimes;
        let ttl = lifetime(
            request.invite_ttl_ms,
            lifetimes.reset_default,
            INVITE_TTL_MIN,
            lifetimes.reset_max,
            "a reset",
        )?;
        let name = UserName::parse(request.name.as_str())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let mut user = self.user(&name)?;
        let before = self.user_secrets(&name).await?;
        let (token, id, invite) = new_invite(&name, true, now.after(ttl));
        let secrets = UserSecrets { invite: Some(id.clone()), ..UserSecrets::default() };
        let (condition, write) = replace(&name, &secrets, before.as_ref().map(|stored| stored.revision));
        let mut operations = vec![write];
        operations.extend(keys::invite(&id).map(|key| put(key, &invite)));
        let old = before.and_then(|stored| stored.value.invite).and_then(|id| keys::invite(&id));
        operations.extend(old.map(|key| Operation::Delete { key }));
        let mut conditions = vec![condition];
        if user.status.locked_until.take().is_some() {
            let key = keys::resource(Kind::User, name.as_str());
            let read = self.mirror.get(Kind::User, name.as_str());
            conditions.extend(key.zip(read).map(|(key, read)| Condition::RevisionIs(key, read.revision)));
            operations.push(put_operation(&Resource::User(user)));
        }
        let event = credentials(&name, CredentialAction::Reset, by);
        self.commit_audited(conditions, operations, vec![event])
            .await
            .map_err(RequestError::store("reset the user"))?;
        Ok(self.invite_response(&name, &token, invite.expires))
    }

    fn invite_response(&self, user: &UserName, token: &Secret, expires: Wall) -> InviteResponse {
        let token = token.expose_secret().to_owned();
        let url = self
            .public_address()
            .map_or_else(String::new, |address| format!("https://{address}/web/invite/{token}"));
        InviteResponse {
            user: user.to_string(),
            invite_token: token,
            expires_ms: expires.as_ms(),
            url,
            ca_pins: self.authorities.pins(),
        }
    }

    /// Where people reach the cluster: a public address, else a proxy by its own.
    fn public_address(&self) -> Option<String> {
        let proxies = self.mirror.all(Kind::Proxy);
        let find = |of: fn(&Proxy) -> Option<String>| {
            proxies.iter().find_map(|mirrored| match &mirrored.resource {
                Resource::Proxy(proxy) => of(proxy),
                _ => None,
            })
        };
        find(|proxy| proxy.spec.public_addrs.first().map(ToString::to_string))
            .or_else(|| find(|proxy| proxy.metadata.labels.get(DIRECT_ADDRESS).map(ToOwned::to_owned)))
    }

    /// What the invitation asks of its holder.
    pub(crate) async fn begin_invite(&self, token: &str) -> Result<BeginInviteResponse, RequestError> {
        let (_, stored) = self.open_invite(token).await?;
        let invite = stored.value;
        let totp_uri = match self.mirror.policy().preference.second_factor {
            SecondFactor::Otp => invite.totp.uri(self.authorities.cluster().as_str(), invite.user.as_str()),
            SecondFactor::Off => String::new(),
        };
        Ok(BeginInviteResponse { user: invite.user.to_string(), totp_uri, reset: invite.reset })
    }

    /// Sets password and second factor, ends the invitation and logs in.
    pub(crate) async fn accept_invite(
        &self,
        request: AcceptInviteRequest,
        client: SocketAddr,
    ) -> Result<UserCertificates, RequestError> {
        let (id, stored) = self.open_invite(&request.invite_token).await?;
        let invite = stored.value;
        SubjectKeys::parse(request.keys.as_ref())?;
        let password = Secret::new(request.password);
        check_rules(&password, invite.user.as_str())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let step = match self.mirror.policy().preference.second_factor {
            SecondFactor::Off => None,
            SecondFactor::Otp => {
                Some(invite.totp.accept(&request.totp_code, None, self.clock.wall()).ok_or_else(|| {
                    RequestError::Invalid(
                        "the one-time code is wrong: check the clock and try the next one".to_owned(),
                    )
                })?)
            }
        };
        let user = self.user(&invite.user)?;
        let before = self.user_secrets(&invite.user).await?;
        // One that was made for an earlier user of this name is not good for this one.
        if before.as_ref().and_then(|stored| stored.value.invite.as_ref()) != Some(&id) {
            return Err(invite_refused());
        }
        let password = self.passwords.hash(password).await.map_err(hash_failed)?;
        let secrets = UserSecrets {
            password: Some(password),
            totp: step.map(|_| invite.totp),
            last_totp_step: step,
            ..UserSecrets::default()
        };
        let (certificates, principal) =
            self.issue_user(&user, request.keys.as_ref(), request.ttl_ms, None)?;
        let by = Author::of(&principal, client);
        let (condition, write) =
            replace(&invite.user, &secrets, before.as_ref().map(|stored| stored.revision));
        let key = keys::invite(&id).ok_or_else(invite_refused)?;
        // The invitation must still be the one that was read: it is good once.
        let conditions = vec![condition, Condition::RevisionIs(key.clone(), stored.revision)];
        let events = vec![
            credentials(&invite.user, CredentialAction::PasswordSet, &by),
            login(Some(&invite.user), client, None),
            user_certificates(&principal),
        ];
        self.commit_audited(conditions, vec![write, Operation::Delete { key }], events).await.map_err(
            |error| match error {
                StoreError::NotFound { .. }
                | StoreError::Conflict { .. }
                | StoreError::AlreadyExists { .. } => invite_refused(),
                other => RequestError::store("accept the invitation")(other),
            },
        )?;
        Ok(certificates)
    }

    /// The invitation of a token, if it counts. Costs the same if it does not.
    async fn open_invite(&self, token: &str) -> Result<(String, Stored<InviteRecord>), RequestError> {
        let (id, secret) = token.split_at_checked(INVITE_ID_CHARS).unwrap_or(("", token));
        let secret = Secret::new(secret.to_owned());
        let stored = match keys::invite(id) {
            Some(key) => self.records.read::<InviteRecord>(&key).await?,
            None => None,
        };
        let matches = match &stored {
            Some(stored) => stored.value.secret.matches(&secret),
            None => {
                let _ = self.no_secret.matches(&secret);
                false
            }
        };
        match stored {
            Some(stored) if matches && self.clock.wall() < stored.value.expires => {
                Ok((id.to_owned(), stored))
            }
            Some(_) | None => Err(invite_refused()),
        }
    }
}

pub(crate) fn hash_failed(error: HashError) -> RequestError {
    match error {
        HashError::Busy => RequestError::Busy(error.to_string()),
        HashError::Failed(reason) => RequestError::Broken(reason),
    }
}

fn invite_refused() -> RequestError {
    RequestError::denied(INVITE_REFUSED)
}

/// The token that is shown, its public half, and the record.
fn new_invite(user: &UserName, reset: bool, expires: Wall) -> (Secret, String, InviteRecord) {
    let id = data_encoding::HEXLOWER.encode(&random_bytes::<{ INVITE_ID_CHARS / 2 }>());
    let secret = generate();
    let token = Secret::new(format!("{id}{}", secret.expose_secret()));
    let record = InviteRecord {
        user: user.clone(),
        secret: SecretHash::of(&secret),
        totp: TotpSecret::generate(),
        reset,
        expires,
    };
    (token, id, record)
}

fn parse_user(request: CreateUserRequest, by: &UserName, now: Wall) -> Result<User, RequestError> {
    let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
    let name = UserName::parse(request.name).map_err(|e| invalid(&e))?;
    if is_reserved(&name) {
        return Err(RequestError::Invalid(format!("{name} is the name of a local administrator")));
    }
    let roles = request.roles.into_iter().map(RoleName::parse).collect::<Result<_, _>>();
    let roles: std::collections::BTreeSet<RoleName> = roles.map_err(|e| invalid(&e))?;
    let mut traits = parse_traits(request.traits);
    if !request.logins.is_empty() {
        for login in &request.logins {
            Login::parse(login.as_str()).map_err(|e| invalid(&e))?;
        }
        traits.entry("logins".to_owned()).or_default().extend(request.logins);
    }
    let user = User {
        name,
        metadata: Metadata::default(),
        spec: UserSpec { roles, traits },
        status: UserStatus { created_by: Some(by.clone()), created_at: Some(now), ..UserStatus::default() },
    };
    // Reading the stored form back applies every rule of the resource.
    let text = Resource::User(user).to_stored_json();
    match Resource::parse_json(&text) {
        Ok(Resource::User(user)) => Ok(user),
        Ok(_) => Err(RequestError::Broken("a user was read back as something else".to_owned())),
        Err(errors) => Err(invalid(&errors)),
    }
}

fn parse_traits(traits: HashMap<String, TraitValues>) -> Traits {
    traits.into_iter().map(|(name, values)| (name, values.values)).collect()
}
