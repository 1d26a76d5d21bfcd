//! The service for whoever is not known yet.

use crate::auth_core::AuthCore;
use crate::gate::Caller;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use wayleave_api::auth::public_server::Public;
use wayleave_api::auth::{
    AcceptInviteRequest, BeginInviteRequest, BeginInviteResponse, JoinRequest, JoinResponse, LoginRequest,
    PingRequest, PingResponse, UserCertificates,
};

pub(crate) struct PublicService(pub(crate) Arc<AuthCore>);

#[tonic::async_trait]
impl Public for PublicService {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Ok(Response::new(PingResponse {
            cluster_name: self.0.authorities.cluster().to_string(),
            version: self.0.config.version.clone(),
            ca_pins: self.0.authorities.pins(),
            now_ms: self.0.clock.wall().as_ms(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.0.join(request.into_inner(), caller.client_address).await?))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<UserCertificates>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.0.login(request.into_inner(), caller.client_address).await?))
    }

    async fn begin_invite(
        &self,
        request: Request<BeginInviteRequest>,
    ) -> Result<Response<BeginInviteResponse>, Status> {
        Ok(Response::new(self.0.begin_invite(&request.into_inner().invite_token).await?))
    }

    async fn accept_invite(
        &self,
        request: Request<AcceptInviteRequest>,
    ) -> Result<Response<UserCertificates>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.0.accept_invite(request.into_inner(), caller.client_address).await?))
    }
}
