//! Certificates with which a proxy enters a machine that runs no agent, one for each connection of a user.
//!
//! Auth does not take the proxy's word for the user. It gives out a challenge, which the proxy must put into the key
//! exchange with the user; the user's signature over that exchange shows that he is logging in now, as this login, on
//! this machine, at this proxy. Policy is asked here as well.

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::connection::Identity;
use crate::keys;
use crate::policy_view::refused;
use crate::publication::PublishedRecord;
use crate::request_error::RequestError;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use wayleave_api::auth::{
    BeginOpensshLoginRequest, BeginOpensshLoginResponse, SignOpensshLoginRequest, SignOpensshLoginResponse,
};
use wayleave_ca::{SshPermissions, Validity, openssh_user_template};
use wayleave_identity::{HostPrincipal, Principal, SSH_EXTENSION, UserPrincipal};
use wayleave_resource::{EnforcedBy, Kind, Node, Resource};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{CertType, Certificate, LoginProof, PublicKey};
use wayleave_vocab::{HostId, Login, Wall};

/// How long a certificate for one connection is good. What it opened goes on.
const CERTIFICATE_TTL: Duration = Duration::from_secs(60);
/// From the challenge to the proof: key exchange, and a person may have to touch a key.
const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(120);
const TIME_BYTES: usize = 8;
const NONCE_BYTES: usize = 16;
const COOKIE_BYTES: usize = 16;
/// Longest line of a public key.
const KEY_LINE_BYTES_MAX: usize = 1024;
/// Critical option that the proof enforces.
const VERIFY_REQUIRED: &str = "verify-required";

/// A request to sign, read.
struct Wish {
    host_id: HostId,
    challenge: Vec<u8>,
    proof: LoginProof,
    key: PublicKey,
    client: Option<IpAddr>,
}

impl Wish {
    fn parse(request: SignOpensshLoginRequest) -> Result<Self, RequestError> {
        let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
        let host_id = request.host_id.parse().map_err(|e| invalid(&e))?;
        let proof = LoginProof::decode(&request.proof).map_err(|e| invalid(&e))?;
        let line = request.ssh_public_key;
        let key = (line.len() <= KEY_LINE_BYTES_MAX).then(|| PublicKey::from_openssh(&line));
        let Some(Ok(key @ PublicKey::Ed25519(_))) = key else {
            return Err(RequestError::Invalid("the SSH public key must be an Ed25519 key".to_owned()));
        };
        let client = request.client_address.parse::<SocketAddr>().ok();
        let client = client.map(|address| address.ip().to_canonical());
        Ok(Self { host_id, challenge: request.challenge, proof, key, client })
    }
}

impl AuthCore {
    /// Bytes that the calling proxy must put into its key exchange with a user.
    pub(crate) fn begin_openssh_login(
        &self,
        caller: &HostPrincipal,
        request: &BeginOpensshLoginRequest,
    ) -> Result<BeginOpensshLoginResponse, RequestError> {
        let host_id: HostId = request
            .host_id
            .parse()
            .map_err(|e: wayleave_vocab::ParseIdError| RequestError::Invalid(e.to_string()))?;
        let mut challenge = self.clock.wall().as_ms().to_be_bytes().to_vec();
        challenge.extend_from_slice(&random_bytes::<NONCE_BYTES>());
        let mac = self.challenge_mac(caller.host_id, host_id, &challenge);
        challenge.extend_from_slice(&mac);
        let cookie = cookie(&challenge).to_vec();
        Ok(BeginOpensshLoginResponse { challenge, cookie })
    }

    /// A certificate for one connection of a user who has proven himself.
    pub(crate) async fn sign_openssh_login(
        &self,
        caller: &HostPrincipal,
        request: SignOpensshLoginRequest,
    ) -> Result<SignOpensshLoginResponse, RequestError> {
        let wish = Wish::parse(request)?;
        match self.sign_openssh(caller, wish).await {
            Err(error @ RequestError::Denied { .. }) => {
                let reason = error.full_reason();
                tracing::info!(proxy = %caller.host_id, reason, "no certificate for an agentless machine");
                Err(error)
            }
            signed => signed,
        }
    }

    async fn sign_openssh(
        &self,
        caller: &HostPrincipal,
        wish: Wish,
    ) -> Result<SignOpensshLoginResponse, RequestError> {
        let now = self.clock.wall();
        self.check_challenge(caller.host_id, wish.host_id, &wish.challenge, now)?;
        let proven = wish.proof.verify().map_err(|error| RequestError::denied(error.to_string()))?;
        if proven.cookie != cookie(&wish.challenge) {
            return Err(RequestError::denied("the user's login is not the answer to this challenge"));
        }
        if self.certified_host(&proven.host_key) != Some(wish.host_id) {
            return Err(RequestError::denied("the user did not log in on this machine"));
        }
        let node = self.published_node(caller.host_id, wish.host_id).await?;
        let user = self.proven_user(&proven.certificate, &proven.user, wish.client, now)?;
        let login =
            Login::parse(proven.user.as_str()).map_err(|error| RequestError::denied(error.to_string()))?;
        let labels = node.all_labels();
        let view =
            wayleave_policy::NodeView { name: &node.spec.hostname, host_id: &node.host_id, labels: &labels };
        let permit = self.mirror.policy().permit_ssh(&user, &view, &login, now)?;
        let has = |name: &str| proven.certificate.extensions().contains_key(name);
        let options = permit.options();
        let permissions = SshPermissions {
            port_forwarding: options.port_forwarding && has("permit-port-forwarding"),
            agent_forwarding: options.forward_agent && has("permit-agent-forwarding"),
            x11_forwarding: false,
        };
        let validity = Validity::new(CERTIFICATE_TTL, now).ending_by(permit.certificate_ends());
        let cluster = self.authorities.cluster();
        let template = openssh_user_template(permit.user(), cluster, permit.login(), permissions, validity);
        let certificate = self.authorities.sign_openssh(template, wish.key)?;
        let event = audit_events::openssh_certificate(&user, permit.login(), validity.not_after);
        self.audit.note(vec![event]).await?;
        Ok(SignOpensshLoginResponse { ssh_certificate: certificate.to_openssh() })
    }

    /// The machine, if the calling proxy publishes it and it has an SSH that can be entered.
    async fn published_node(&self, caller: HostId, host_id: HostId) -> Result<Node, RequestError> {
        let gone = || RequestError::denied("the calling proxy does not publish this machine");
        let mirrored = self.mirror.get(Kind::Node, &host_id.to_string()).ok_or_else(gone)?;
        let Resource::Node(node) = &mirrored.resource else { return Err(gone()) };
        if node.spec.enforced_by != EnforcedBy::Proxy || node.spec.tcp_only {
            return Err(gone());
        }
        let key = keys::published_as(&node.spec.hostname);
        let record = self.records.read::<PublishedRecord>(&key).await?.map(|stored| stored.value);
        let is_own = record.is_some_and(|record| {
            record.host_id == host_id && record.holder.is_some_and(|holder| holder.proxy == caller)
        });
        if is_own { Ok(node.clone()) } else { Err(gone()) }
    }

    /// The user of a certificate whose possession was proven, as he is now.
    fn proven_user(
        &self,
        certificate: &Certificate,
        login: &str,
        client: Option<IpAddr>,
        now: Wall,
    ) -> Result<UserPrincipal, RequestError> {
        let refuse = |error: &dyn std::fmt::Display| RequestError::denied(format!("the user: {error}"));
        let authorities = self.authorities.user_ca_keys();
        let verified = certificate
            .verify(&authorities, CertType::User, Some(login), &[VERIFY_REQUIRED], now)
            .map_err(|e| refuse(&e))?;
        if let Some(networks) = verified.source_networks
            && !client.is_some_and(|client| networks.iter().any(|network| network.contains(client)))
        {
            return Err(RequestError::denied("the user's certificate is for other addresses"));
        }
        let identity = certificate.extensions().get(SSH_EXTENSION);
        let identity = identity.ok_or_else(|| RequestError::denied("the certificate carries no identity"))?;
        let Principal::User(mut user) = Principal::decode(identity.as_bytes()).map_err(|e| refuse(&e))?
        else {
            return Err(RequestError::denied("the certificate is a process's, not a user's"));
        };
        user.not_after = user.not_after.min(certificate.valid_before());
        match self.current(&Identity::User(user))? {
            Identity::User(user) => Ok(user),
            Identity::Host(_) | Identity::Stranger => Err(RequestError::denied("not a user")),
        }
    }

    fn check_challenge(
        &self,
        proxy: HostId,
        host: HostId,
        challenge: &[u8],
        now: Wall,
    ) -> Result<(), RequestError> {
        let wrong = || RequestError::denied("the challenge is not one of this cluster");
        let (given, mac) = challenge.split_at_checked(TIME_BYTES + NONCE_BYTES).ok_or_else(wrong)?;
        verify_slices_are_equal(&self.challenge_mac(proxy, host, given), mac).map_err(|_| wrong())?;
        let (time, _) = given.split_first_chunk::<TIME_BYTES>().ok_or_else(wrong)?;
        let given_at = Wall::from_ms(u64::from_be_bytes(*time));
        if now.since(given_at) > CHALLENGE_AGE_MAX {
            return Err(RequestError::denied("the challenge is too old: connect again"));
        }
        Ok(())
    }

    fn challenge_mac(&self, proxy: HostId, host: HostId, given: &[u8]) -> Vec<u8> {
        let message = [proxy.as_bytes().as_slice(), host.as_bytes().as_slice(), given].concat();
        self.authorities.mac("openssh login", &message)
    }
}

/// What of a challenge goes into a key exchange.
fn cookie(challenge: &[u8]) -> [u8; COOKIE_BYTES] {
    let mut cookie = [0; COOKIE_BYTES];
    cookie.copy_from_slice(
        digest(&SHA256, challenge).as_ref().get(..COOKIE_BYTES).unwrap_or(&[0; COOKIE_BYTES]),
    );
    cookie
}

impl crate::policy_view::PolicyView {
    /// A permit to enter a node.
    fn permit_ssh(
        &self,
        user: &UserPrincipal,
        node: &wayleave_policy::NodeView<'_>,
        login: &Login,
        now: Wall,
    ) -> Result<wayleave_policy::Permit, RequestError> {
        self.policy.decide_ssh(user, node, login, &self.context(), now).map_err(|denial| refused(&denial))
    }
}
