//! What the process that runs the Auth Service may ask it without a connection, as the local administrator.
//!
//! For `wayleave demo` and tests. Every change is audited like any other.

use crate::audit_events::Author;
use crate::auth_core::AuthCore;
use crate::request_error::RequestError;
use crate::resource_store::WriteMode;
use std::net::SocketAddr;
use std::sync::Arc;
use wayleave_api::auth::{
    CreateTokenRequest, CreateTokenResponse, CreateUserRequest, InviteResponse, SignUserRequest, TrustBundle,
    UserCertificates,
};
use wayleave_resource::Resource;
use wayleave_vocab::{HostId, Wall};

/// Asks as the local administrator. Changes need the service to run.
#[derive(Clone)]
pub struct LocalApi {
    core: Arc<AuthCore>,
}

impl LocalApi {
    pub(crate) fn new(core: Arc<AuthCore>) -> Self {
        Self { core }
    }

    fn author(&self) -> Author {
        Author::of(&self.core.local_admin(self.end()), SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn end(&self) -> Wall {
        self.core.clock.wall().after(self.core.config.lifetimes.local_admin)
    }

    /// The id of this Auth Service as a process.
    pub fn host_id(&self) -> HostId {
        self.core.host_id
    }

    /// What a joining process is given as `ca_pin`.
    pub fn ca_pins(&self) -> Vec<String> {
        self.core.authorities.pins()
    }

    /// What a process believes from the start.
    ///
    /// # Errors
    /// [`RequestError::Busy`] before the first policy is published.
    pub fn trust_bundle(&self) -> Result<TrustBundle, RequestError> {
        self.core.trust_bundle()
    }

    /// A new join token.
    ///
    /// # Errors
    /// As `CreateToken`.
    pub async fn create_token(
        &self,
        request: CreateTokenRequest,
    ) -> Result<CreateTokenResponse, RequestError> {
        self.core.create_token(request, &self.author()).await
    }

    /// A new user and the invitation.
    ///
    /// # Errors
    /// As `CreateUser`.
    pub async fn create_user(&self, request: CreateUserRequest) -> Result<InviteResponse, RequestError> {
        self.core.create_user(request, &self.author()).await
    }

    /// Certificates for a user without his password.
    ///
    /// # Errors
    /// As `SignUser`.
    pub async fn sign_user(&self, request: SignUserRequest) -> Result<UserCertificates, RequestError> {
        self.core.sign_user(request, &self.core.local_admin(self.end())).await
    }

    /// Does the housekeeping now: what has expired goes, nodes not seen since `started` are forgotten, the audit chain
    /// gets a checkpoint.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn tidy(&self, started: Wall) -> Result<(), RequestError> {
        self.core.tidy(started).await.map_err(RequestError::store("tidy up"))?;
        self.core.tidy_hosts().await.map_err(RequestError::store("tidy up"))?;
        self.core.checkpoint().await
    }

    /// Creates or replaces a resource.
    ///
    /// # Errors
    /// As `UpsertResource`.
    pub async fn upsert_resource(&self, resource: Resource) -> Result<Resource, RequestError> {
        self.core.write_resource(resource, WriteMode::Upsert, &self.author()).await
    }
}
