//! Certificates for users: what they say and how long they live.

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::authorities::{SshPermits, SubjectKeys};
use crate::policy_view::refused;
use crate::presence::record_of_proxy;
use crate::request_error::RequestError;
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_api::auth::{PublicKeys, SignUserRequest, UserCertificates};
use wayleave_ca::certificate_ttl;
use wayleave_identity::UserPrincipal;
use wayleave_policy::Subject;
use wayleave_resource::{Kind, Resource, User};
use wayleave_vocab::{Ttl, UserName, Wall};

/// Most addresses of proxies that a user is told.
const PROXY_ADDRESSES_MAX: usize = 64;

impl AuthCore {
    /// Certificates for a user without his password, for `by`, who has been found to be allowed to.
    pub(crate) async fn sign_user(
        &self,
        request: SignUserRequest,
        by: &UserPrincipal,
    ) -> Result<UserCertificates, RequestError> {
        let name = UserName::parse(request.user.as_str())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let user = self.user(&name)?;
        // Whoever is not the local administrator hands on no more time than he has.
        let limit = if by.local_admin { None } else { Some(by.not_after) };
        let (certificates, principal) =
            self.issue_user(&user, request.keys.as_ref(), request.ttl_ms, limit)?;
        self.audit.note(vec![audit_events::user_certificates(&principal)]).await?;
        tracing::info!(user = %name, by = %by.name, "certificates were issued for a user");
        Ok(certificates)
    }

    /// The user resource.
    pub(crate) fn user(&self, name: &UserName) -> Result<User, RequestError> {
        match self.mirror.get(Kind::User, name.as_str()).as_deref().map(|mirrored| &mirrored.resource) {
            Some(Resource::User(user)) => Ok(user.clone()),
            _ => Err(RequestError::NotFound(format!("there is no user {name}"))),
        }
    }

    /// Where clients reach the proxies, each address once.
    fn proxy_addresses(&self) -> Vec<String> {
        let mut addresses = BTreeSet::new();
        for record in self.mirror.all(Kind::Proxy).iter().filter_map(|mirrored| record_of_proxy(mirrored)) {
            if record.public_addresses.is_empty() && !record.direct_address.is_empty() {
                addresses.insert(record.direct_address);
            }
            addresses.extend(record.public_addresses);
        }
        addresses.into_iter().take(PROXY_ADDRESSES_MAX).collect()
    }

    /// Issues for a user who has proven who he is, or for whom somebody may ask. A locked user gets nothing.
    pub(crate) fn issue_user(
        &self,
        user: &User,
        keys: Option<&PublicKeys>,
        asked_ms: u64,
        limit: Option<Wall>,
    ) -> Result<(UserCertificates, UserPrincipal), RequestError> {
        let keys = SubjectKeys::parse(keys)?;
        let now = self.clock.wall();
        if user.metadata.expires.is_some_and(|expires| expires <= now) {
            return Err(RequestError::denied(format!("the user {} has expired", user.name)));
        }
        let view = self.mirror.policy();
        view.user_is_locked(user, now)?;
        let subject = Subject::from(user);
        let logins = view.policy.allowed_logins(subject, now).map_err(|denial| refused(&denial))?;
        let options = view.policy.session_options(subject, now).map_err(|denial| refused(&denial))?;
        let asked = (asked_ms > 0).then(|| Ttl(Duration::from_millis(asked_ms)));
        let ttl = certificate_ttl(asked, options.max_session_ttl, view.preference.default_session_ttl)
            .min(self.config.lifetimes.user_max);
        let mut not_after = now.after(ttl);
        for end in [limit, user.metadata.expires].into_iter().flatten() {
            not_after = not_after.min(end);
        }
        // Certificates know whole seconds only.
        let not_after = Wall::from_secs(not_after.as_secs());
        let principal = UserPrincipal {
            name: user.name.clone(),
            cluster: self.authorities.cluster().clone(),
            roles: user.spec.roles.clone(),
            logins,
            traits: user.spec.traits.clone(),
            local_admin: false,
            not_after,
        };
        let permits = SshPermits {
            port_forwarding: options.port_forwarding,
            agent_forwarding: options.forward_agent,
            x11_forwarding: options.permit_x11_forwarding,
        };
        let issued = self.authorities.issue_user(&principal, &keys, permits, now)?;
        let certificates = UserCertificates {
            user: principal.name.to_string(),
            cluster_name: principal.cluster.to_string(),
            roles: principal.roles.iter().map(ToString::to_string).collect(),
            logins: principal.logins.iter().map(ToString::to_string).collect(),
            tls_chain_pem: issued.tls_chain_pem,
            ssh_certificate: issued.ssh_certificate,
            host_ca_pem: self.authorities.host_ca_pem(),
            host_ca_ssh: self.authorities.host_ca_ssh(),
            not_after_ms: not_after.as_ms(),
            proxy_addresses: self.proxy_addresses(),
        };
        Ok((certificates, principal))
    }
}
