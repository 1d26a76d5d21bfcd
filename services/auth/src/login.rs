//! Login with password and one-time code.
//!
//! Whoever fails is told the same, whether the user does not exist, is locked after too many failures, or gave a wrong
//! password or code; and it takes as long.

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::authorities::SubjectKeys;
use crate::keys;
use crate::records::Stored;
use crate::request_error::RequestError;
use crate::resource_store::put_operation;
use crate::user_secrets::{Attempt, UserSecrets, replace};
use crate::users::hash_failed;
use std::net::SocketAddr;
use wayleave_api::auth::{LoginRequest, UserCertificates};
use wayleave_resource::{Kind, Resource, SecondFactor, User};
use wayleave_store::Condition;
use wayleave_vocab::{Secret, UserName};

/// What is told to whoever fails, whatever the reason.
const LOGIN_REFUSED: &str = "wrong user name, password or one-time code (each code is good once; after 5 failures \
     within 30 minutes a user is locked for 30 minutes)";

impl AuthCore {
    pub(crate) async fn login(
        &self,
        request: LoginRequest,
        client: SocketAddr,
    ) -> Result<UserCertificates, RequestError> {
        SubjectKeys::parse(request.keys.as_ref())?;
        let who = UserName::parse(request.user.as_str()).ok().filter(|name| self.user(name).is_ok());
        let result = self.try_login(request, client).await;
        match &result {
            Ok(_) => self.metrics.logins.increment(),
            Err(_) => self.metrics.logins_refused.increment(),
        }
        if let Err(error @ (RequestError::Denied { .. } | RequestError::NotFound(_))) = &result {
            self.note(audit_events::login(who.as_ref(), client, Some(&error.full_reason()))).await;
        }
        result
    }

    async fn try_login(
        &self,
        request: LoginRequest,
        client: SocketAddr,
    ) -> Result<UserCertificates, RequestError> {
        let password = Secret::new(request.password);
        let name = UserName::parse(request.user).ok();
        let user = name.as_ref().and_then(|name| self.user(name).ok());
        let attempt = match (&user, &name) {
            (Some(_), Some(name)) => self.begin_attempt(name).await?,
            _ => None,
        };
        let hash = match &attempt {
            Some((Attempt::Admitted, stored)) => stored.value.password.clone(),
            Some((Attempt::LockedUntil(_), _)) | None => None,
        };
        // One hash is computed in every case.
        let right = self.passwords.verify(password, hash).await.map_err(hash_failed)?;
        let (Some(user), Some((attempt, mut stored))) = (user, attempt) else {
            return Err(login_refused("there is no such user, or he has no password yet"));
        };
        if let Attempt::LockedUntil(_) = attempt {
            return Err(login_refused("the user is locked after too many failures"));
        }
        let step = match (right, self.mirror.policy().preference.second_factor) {
            (false, _) => return self.failed(user, &stored, "wrong password").await,
            (true, SecondFactor::Off) => None,
            (true, SecondFactor::Otp) => {
                let secrets = &stored.value;
                let step = secrets.totp.as_ref().and_then(|totp| {
                    totp.accept(&request.totp_code, secrets.last_totp_step, self.clock.wall())
                });
                match step {
                    Some(step) => Some(step),
                    None => return self.failed(user, &stored, "wrong or used one-time code").await,
                }
            }
        };
        let (certificates, principal) =
            self.issue_user(&user, request.keys.as_ref(), request.ttl_ms, None)?;
        stored.value.end_attempt(step);
        // A second login with the same code finds the record changed.
        let (condition, write) = replace(&user.name, &stored.value, Some(stored.revision));
        let events = vec![
            audit_events::login(Some(&user.name), client, None),
            audit_events::user_certificates(&principal),
        ];
        let written = self.commit_audited(vec![condition], vec![write], events).await;
        written.map_err(|error| match error {
            wayleave_store::StoreError::Conflict { .. } => {
                login_refused("another attempt of this user came in between")
            }
            other => RequestError::store("log in")(other),
        })?;
        Ok(certificates)
    }

    /// A wrong guess; the attempt is noted already. When it was the last one, the user resource shows the lock.
    async fn failed(
        &self,
        mut user: User,
        stored: &Stored<UserSecrets>,
        reason: &str,
    ) -> Result<UserCertificates, RequestError> {
        if let Some(until) = stored.value.locked_until {
            let key = keys::resource(Kind::User, user.name.as_str());
            let read = self.mirror.get(Kind::User, user.name.as_str());
            let condition = key.zip(read).map(|(key, read)| Condition::RevisionIs(key, read.revision));
            user.status.locked_until = Some(until);
            let write = put_operation(&Resource::User(user));
            // Only shown; the lock itself is in the secrets.
            if let Err(error) = self.records.commit(condition.into_iter().collect(), vec![write]).await {
                tracing::debug!(%error, "the lock of a user cannot be shown");
            }
        }
        Err(login_refused(reason))
    }
}

fn login_refused(reason: &str) -> RequestError {
    RequestError::Denied { told: LOGIN_REFUSED.to_owned(), reason: reason.to_owned() }
}
