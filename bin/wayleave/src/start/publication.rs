//! What the entry for machines without an agent asks of Auth, over the API.

use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};
use wayleave_adapter_ssh::{
    Challenge, PublicationAuthority, PublicationError, PublishWish, Published, SignWish,
};
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{
    BeginOpensshLoginRequest, PublishRequest, SignOpensshLoginRequest, WithdrawRequest,
};
use wayleave_rpc::Channel;
use wayleave_ssh::Certificate;
use wayleave_vocab::{HostId, Labels, NodeName, SessionId};

/// How long Auth may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The Auth Service, called as this proxy.
pub(crate) struct AuthPublication(HostClient<Channel>);

impl AuthPublication {
    pub(crate) fn new(auth: Channel) -> Self {
        Self(HostClient::new(auth))
    }
}

impl PublicationAuthority for AuthPublication {
    fn publish(&self, wish: PublishWish) -> BoxFuture<'_, Result<Published, PublicationError>> {
        let request = PublishRequest {
            proof: wish.proof.encode().to_vec(),
            publication: wish.publication.to_string(),
            incarnation: wish.incarnation.0,
            name: wish.name.to_string(),
            ports: wish.ports.iter().map(|port| u32::from(*port)).collect(),
            target_host_key: wish.target_key.map(|key| key.to_openssh()).unwrap_or_default(),
            ssh_public_key: wish.shown_key.to_openssh(),
            client_address: wish.client.to_string(),
        };
        let mut auth = self.0.clone();
        Box::pin(async move {
            let answer = within(auth.publish(request)).await?.into_inner();
            let labels: BTreeMap<String, String> = answer.labels.into_iter().collect();
            Ok(Published {
                host_id: answer.host_id.parse().map_err(unreadable)?,
                host_certificate: Certificate::from_openssh(&answer.host_certificate).map_err(unreadable)?,
                tcp_only: answer.tcp_only,
                labels: Labels::try_from(labels).map_err(unreadable)?,
            })
        })
    }

    fn withdraw(
        &self,
        name: NodeName,
        publication: SessionId,
    ) -> BoxFuture<'_, Result<(), PublicationError>> {
        let request = WithdrawRequest { name: name.to_string(), publication: publication.to_string() };
        let mut auth = self.0.clone();
        Box::pin(async move { within(auth.withdraw(request)).await.map(|_| ()) })
    }

    fn begin_login(&self, host_id: HostId) -> BoxFuture<'_, Result<Challenge, PublicationError>> {
        let request = BeginOpensshLoginRequest { host_id: host_id.to_string() };
        let mut auth = self.0.clone();
        Box::pin(async move {
            let answer = within(auth.begin_openssh_login(request)).await?.into_inner();
            let cookie = answer.cookie.as_slice().try_into().map_err(unreadable)?;
            Ok(Challenge { challenge: answer.challenge, cookie })
        })
    }

    fn sign_login(&self, wish: SignWish) -> BoxFuture<'_, Result<Certificate, PublicationError>> {
        let request = SignOpensshLoginRequest {
            host_id: wish.host_id.to_string(),
            challenge: wish.challenge,
            proof: wish.proof.encode().to_vec(),
            ssh_public_key: wish.key.to_openssh(),
            client_address: wish.client.map(|address| address.to_string()).unwrap_or_default(),
        };
        let mut auth = self.0.clone();
        Box::pin(async move {
            let answer = within(auth.sign_openssh_login(request)).await?.into_inner();
            Certificate::from_openssh(&answer.ssh_certificate).map_err(unreadable)
        })
    }
}

/// A call that is given up when it takes too long.
async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, PublicationError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(error_of(&status)),
        Err(_) => Err(PublicationError::Unavailable("it does not answer".to_owned())),
    }
}

fn error_of(status: &Status) -> PublicationError {
    let text = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition => PublicationError::Refused(text),
        _ => PublicationError::Unavailable(text),
    }
}

fn unreadable(error: impl std::fmt::Display) -> PublicationError {
    PublicationError::Unavailable(format!("its answer cannot be read: {error}"))
}
