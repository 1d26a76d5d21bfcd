//! The service for processes of the cluster.

use crate::auth_core::AuthCore;
use crate::cluster_watch::ClusterWatch;
use crate::gate::Caller;
use crate::request_error::RequestError;
use crate::route_publisher::RoutePublisher;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wayleave_api::auth::host_server::Host;
use wayleave_api::auth::{
    BeginIncarnationRequest, BeginIncarnationResponse, BeginOpensshLoginRequest, BeginOpensshLoginResponse,
    ClusterEvent, EmitEventsRequest, EmitEventsResponse, JoinRequest, JoinResponse, ProxyStatusReport,
    PublishRequest, PublishResponse, RegisterRequest, RegisterResponse, RenewRequest, ReportStatusResponse,
    RouteAck, RouteUpdate, SignOpensshLoginRequest, SignOpensshLoginResponse, WatchClusterRequest,
    WithdrawRequest, WithdrawResponse,
};
use wayleave_audit::{Envelope, check_sender};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::PolicyRevision;

/// Acknowledgements that wait for a proxy.
const ACKS_WAITING_MAX: usize = 64;

pub(crate) struct HostService {
    pub(crate) core: Arc<AuthCore>,
    pub(crate) group: TaskGroup,
}

#[tonic::async_trait]
impl Host for HostService {
    type PublishRoutesStream = ReceiverStream<Result<RouteAck, Status>>;
    type WatchClusterStream = ReceiverStream<Result<ClusterEvent, Status>>;

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.core.renew(caller.host()?, request.into_inner()).await?))
    }

    async fn extend_roles(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer =
            self.core.extend_roles(caller.host()?, request.into_inner(), caller.client_address).await?;
        Ok(Response::new(answer))
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.core.register(caller.host()?, request.into_inner()).await?;
        Ok(Response::new(RegisterResponse {}))
    }

    async fn emit_events(
        &self,
        request: Request<EmitEventsRequest>,
    ) -> Result<Response<EmitEventsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let sender = caller.host()?;
        let records = request.into_inner().records;
        self.core.check_event_budget(sender.host_id, &records)?;
        let mut envelopes = Vec::new();
        for record in records {
            let envelope = Envelope::decode(&record.event_json)
                .map_err(|error| RequestError::Invalid(format!("event {}: {error}", record.sequence)))?;
            if envelope.origin.sequence != record.sequence {
                let text = format!("event {} says that it is {}", record.sequence, envelope.origin.sequence);
                return Err(RequestError::Invalid(text).into());
            }
            check_sender(sender.host_id, &sender.system_roles, &envelope.event)
                .map_err(|refusal| RequestError::denied(refusal.to_string()))?;
            envelopes.push(envelope);
        }
        let acknowledged_sequence =
            self.core.audit.append_from(&self.core.records, sender.host_id, &envelopes).await?;
        Ok(Response::new(EmitEventsResponse { acknowledged_sequence }))
    }

    async fn begin_incarnation(
        &self,
        request: Request<BeginIncarnationRequest>,
    ) -> Result<Response<BeginIncarnationResponse>, Status> {
        let caller = Caller::of(&request)?;
        let incarnation = self.core.begin_incarnation(caller.host()?.host_id).await?.0;
        Ok(Response::new(BeginIncarnationResponse { incarnation }))
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.core.publish(caller.host()?, request.into_inner()).await?))
    }

    async fn withdraw(
        &self,
        request: Request<WithdrawRequest>,
    ) -> Result<Response<WithdrawResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.core.withdraw(caller.host()?, request.into_inner()).await?;
        Ok(Response::new(WithdrawResponse {}))
    }

    async fn begin_openssh_login(
        &self,
        request: Request<BeginOpensshLoginRequest>,
    ) -> Result<Response<BeginOpensshLoginResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.core.begin_openssh_login(caller.host()?, request.get_ref())?))
    }

    async fn sign_openssh_login(
        &self,
        request: Request<SignOpensshLoginRequest>,
    ) -> Result<Response<SignOpensshLoginResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.core.sign_openssh_login(caller.host()?, request.into_inner()).await?))
    }

    async fn report_status(
        &self,
        request: Request<ProxyStatusReport>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        let proxy = Caller::of(&request)?.host()?.host_id;
        let next = self.core.take_report(proxy, request.into_inner()).await;
        let next_ms = u64::try_from(next.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(ReportStatusResponse { next_ms }))
    }

    async fn publish_routes(
        &self,
        request: Request<Streaming<RouteUpdate>>,
    ) -> Result<Response<Self::PublishRoutesStream>, Status> {
        let caller = Caller::of(&request)?;
        let (acks, answers) = mpsc::channel(ACKS_WAITING_MAX);
        let publisher = RoutePublisher::new(self.core.clone(), caller.host()?.clone());
        self.group.spawn_many(publisher.run(request.into_inner(), acks, self.group.shutdown()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn watch_cluster(
        &self,
        request: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let held = PolicyRevision { generation: request.policy_generation, counter: request.policy_counter };
        let (watch, events) = ClusterWatch::new(self.core.clone(), caller.host()?.clone(), held);
        self.group.spawn_many(watch.run(self.group.shutdown()));
        Ok(Response::new(ReceiverStream::new(events)))
    }
}
