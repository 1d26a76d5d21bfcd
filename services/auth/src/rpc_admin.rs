//! The service for users, as their roles allow.

use crate::audit_events::Author;
use crate::audit_log::{SEARCH_RESULTS_MAX, SearchQuery};
use crate::auth_core::AuthCore;
use crate::authority_rotation::phase_word;
use crate::gate::Caller;
use crate::mirror::Mirrored;
use crate::node_list::parse_kind;
use crate::request_error::RequestError;
use crate::resource_store::WriteMode;
use crate::resource_watch::ResourceWatch;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wayleave_api::auth::admin_server::Admin;
use wayleave_api::auth::{
    CaStatus, CreateOpensshTokenRequest, CreateOpensshTokenResponse, CreateTokenRequest, CreateTokenResponse,
    CreateUserRequest, DeleteResourceResponse, ExplainRequest, ExplainResponse, ForgetHostKeyRequest,
    ForgetHostKeyResponse, GetOverviewRequest, GetOverviewResponse, GetStatusRequest, GetStatusResponse,
    InviteResponse, ListNodesRequest, ListNodesResponse, ListResourcesRequest, ListResourcesResponse,
    ListRoutesRequest, ListRoutesResponse, ResetUserRequest, ResourceEvent, ResourceJson, ResourceRef,
    ResourceWrite, RotateAuthorityRequest, RotateAuthorityResponse, SearchEventsRequest,
    SearchEventsResponse, SignUserRequest, UserCertificates, WatchResourcesRequest,
};
use wayleave_identity::UserPrincipal;
use wayleave_resource::{AdminVerb, Kind, Resource, RuleTarget};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::Wall;

/// Resources of one page.
const PAGE_ITEMS_MAX: usize = 1000;
/// Bytes of one page, so that it stays below what clients decode.
pub(crate) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

pub(crate) struct AdminService {
    pub(crate) core: Arc<AuthCore>,
    pub(crate) group: TaskGroup,
}

impl AdminService {
    fn decide(
        &self,
        user: &UserPrincipal,
        verb: AdminVerb,
        kind: Kind,
        resource: Option<&Resource>,
    ) -> Result<(), RequestError> {
        self.core.mirror.policy().decide(
            user,
            verb,
            &RuleTarget::Kind(kind),
            resource,
            self.core.clock.wall(),
        )
    }

    /// Reading an authority shows its public part only, so the lesser verb is enough.
    fn decide_read(&self, user: &UserPrincipal, kind: Kind, resource: &Resource) -> Result<(), RequestError> {
        self.decide(user, AdminVerb::Read, kind, Some(resource)).or_else(|denied| {
            self.decide(user, AdminVerb::ReadNoSecrets, kind, Some(resource)).map_err(|_| denied)
        })
    }

    async fn write(
        &self,
        request: Request<ResourceWrite>,
        mode: WriteMode,
    ) -> Result<Response<ResourceJson>, Status> {
        let caller = Caller::of(&request)?;
        let user = caller.user()?;
        let resource = Resource::parse_json(&request.get_ref().json)
            .map_err(|errors| RequestError::Invalid(errors.to_string()))?;
        let kind = resource.kind();
        let before = self.core.mirror.get(kind, resource.name().as_str());
        match (&before, mode) {
            (Some(before), WriteMode::Upsert) => {
                // Both what is there and what it becomes must be within what the caller may change.
                self.decide(user, AdminVerb::Update, kind, Some(&before.resource))?;
                self.decide(user, AdminVerb::Update, kind, Some(&resource))?;
            }
            (Some(_), WriteMode::Create) | (None, _) => {
                self.decide(user, AdminVerb::Create, kind, Some(&resource))?;
            }
        }
        let author = Author::of(user, caller.client_address);
        let written = self.core.write_resource(resource, mode, &author).await?;
        Ok(Response::new(ResourceJson { json: written.to_json() }))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchResourcesStream = ReceiverStream<Result<ResourceEvent, Status>>;

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(self.core.status().await))
    }

    async fn get_resource(&self, request: Request<ResourceRef>) -> Result<Response<ResourceJson>, Status> {
        let caller = Caller::of(&request)?;
        let (kind, name) = (parse_kind(&request.get_ref().kind)?, &request.get_ref().name);
        let user = caller.user()?;
        let Some(mirrored) = self.core.mirror.get(kind, name) else {
            // Whoever may not read learns nothing about what exists.
            self.decide(user, AdminVerb::Read, kind, None).or_else(|denied| {
                self.decide(user, AdminVerb::ReadNoSecrets, kind, None).map_err(|_| denied)
            })?;
            return Err(RequestError::NotFound(format!("there is no {kind} {name}")).into());
        };
        self.decide_read(user, kind, &mirrored.resource)?;
        Ok(Response::new(ResourceJson { json: mirrored.shown().to_json() }))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let user = caller.user()?;
        let request = request.get_ref();
        let kind = parse_kind(&request.kind)?;
        let items_max = match usize::try_from(request.page_size) {
            Ok(size @ 1..PAGE_ITEMS_MAX) => size,
            Ok(_) | Err(_) => PAGE_ITEMS_MAX,
        };
        let allowed = |mirrored: &Mirrored| {
            let list = self.decide(user, AdminVerb::List, kind, Some(&mirrored.resource));
            list.is_ok() && self.decide_read(user, kind, &mirrored.resource).is_ok()
        };
        let all = self.core.mirror.all(kind);
        if !all.iter().any(|mirrored| allowed(mirrored)) {
            // An empty answer is for those who may list; the others are told.
            self.decide(user, AdminVerb::List, kind, None)?;
        }
        let (mut json, mut bytes, mut next_page_token) = (Vec::new(), 0usize, String::new());
        for mirrored in all.iter().filter(|m| m.resource.name().as_str() > request.page_token.as_str()) {
            if !allowed(mirrored) {
                continue;
            }
            let text = mirrored.shown().to_json();
            bytes = bytes.saturating_add(text.len());
            if json.len() >= items_max || (bytes > PAGE_BYTES_MAX && !json.is_empty()) {
                break;
            }
            next_page_token = mirrored.resource.name().to_string();
            json.push(text);
        }
        let last = all.iter().rev().find(|mirrored| allowed(mirrored)).map(|m| m.resource.name().to_string());
        if last.is_none_or(|last| last == next_page_token) {
            next_page_token.clear();
        }
        Ok(Response::new(ListResourcesResponse { json, next_page_token }))
    }

    async fn create_resource(
        &self,
        request: Request<ResourceWrite>,
    ) -> Result<Response<ResourceJson>, Status> {
        self.write(request, WriteMode::Create).await
    }

    async fn upsert_resource(
        &self,
        request: Request<ResourceWrite>,
    ) -> Result<Response<ResourceJson>, Status> {
        self.write(request, WriteMode::Upsert).await
    }

    async fn delete_resource(
        &self,
        request: Request<ResourceRef>,
    ) -> Result<Response<DeleteResourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let user = caller.user()?;
        let (kind, name) = (parse_kind(&request.get_ref().kind)?, &request.get_ref().name);
        let Some(mirrored) = self.core.mirror.get(kind, name) else {
            self.decide(user, AdminVerb::Delete, kind, None)?;
            return Err(RequestError::NotFound(format!("there is no {kind} {name}")).into());
        };
        self.decide(user, AdminVerb::Delete, kind, Some(&mirrored.resource))?;
        let author = Author::of(user, caller.client_address);
        self.core.delete_resource(kind, name, &author).await?;
        Ok(Response::new(DeleteResourceResponse {}))
    }

    async fn watch_resources(
        &self,
        request: Request<WatchResourcesRequest>,
    ) -> Result<Response<Self::WatchResourcesStream>, Status> {
        let caller = Caller::of(&request)?;
        let user = caller.user()?.clone();
        let kinds: Vec<Kind> =
            request.get_ref().kinds.iter().map(|kind| parse_kind(kind)).collect::<Result<_, _>>()?;
        if kinds.is_empty() {
            return Err(RequestError::Invalid("name the kinds to watch".to_owned()).into());
        }
        for kind in &kinds {
            self.decide(&user, AdminVerb::List, *kind, None)?;
            self.decide(&user, AdminVerb::Read, *kind, None).or_else(|denied| {
                self.decide(&user, AdminVerb::ReadNoSecrets, *kind, None).map_err(|_| denied)
            })?;
        }
        let (watch, events) = ResourceWatch::new(self.core.clone(), user, kinds);
        self.group.spawn_many(watch.run(self.group.shutdown()));
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.create_token(request.into_inner(), &author).await?))
    }

    async fn create_openssh_token(
        &self,
        request: Request<CreateOpensshTokenRequest>,
    ) -> Result<Response<CreateOpensshTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.create_openssh_token(request.into_inner(), &author).await?))
    }

    async fn forget_host_key(
        &self,
        request: Request<ForgetHostKeyRequest>,
    ) -> Result<Response<ForgetHostKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.forget_host_key(request.into_inner(), &author).await?))
    }

    async fn create_user(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<InviteResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.create_user(request.into_inner(), &author).await?))
    }

    async fn reset_user(
        &self,
        request: Request<ResetUserRequest>,
    ) -> Result<Response<InviteResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.reset_user(request.into_inner(), &author).await?))
    }

    async fn sign_user(
        &self,
        request: Request<SignUserRequest>,
    ) -> Result<Response<UserCertificates>, Status> {
        let caller = Caller::of(&request)?;
        let user = caller.user()?.clone();
        Ok(Response::new(self.core.sign_user(request.into_inner(), &user).await?))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let author = Author::of(caller.user()?, caller.client_address);
        Ok(Response::new(self.core.rotate_authority(request.get_ref(), &author).await?))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.core.explain(caller.user()?, request.get_ref())?))
    }

    async fn search_events(
        &self,
        request: Request<SearchEventsRequest>,
    ) -> Result<Response<SearchEventsResponse>, Status> {
        let request = request.into_inner();
        let limit = match usize::try_from(request.limit) {
            Ok(limit @ 1..SEARCH_RESULTS_MAX) => limit,
            Ok(_) | Err(_) => SEARCH_RESULTS_MAX,
        };
        let to = if request.to_ms == 0 { u64::MAX } else { request.to_ms };
        let query = SearchQuery {
            from: Wall::from_ms(request.from_ms),
            to: Wall::from_ms(to),
            codes: request.codes,
            limit,
            before: (request.before != 0).then_some(request.before),
        };
        let found = self.core.audit.search(&self.core.records, &query).await?;
        Ok(Response::new(SearchEventsResponse { json: found.json, next: found.next }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(ListNodesResponse { nodes: self.core.list_nodes(caller.user()?) }))
    }

    async fn get_overview(
        &self,
        _: Request<GetOverviewRequest>,
    ) -> Result<Response<GetOverviewResponse>, Status> {
        Ok(Response::new(self.core.overview().await))
    }

    async fn list_routes(
        &self,
        request: Request<ListRoutesRequest>,
    ) -> Result<Response<ListRoutesResponse>, Status> {
        Ok(Response::new(self.core.list_routes(request.get_ref())))
    }
}

impl AuthCore {
    /// How the cluster stands.
    async fn status(&self) -> GetStatusResponse {
        let published = self.snapshots.current();
        let revision = published.map(|published| published.revision).unwrap_or_default();
        let mut problems = Vec::new();
        if let Err(error) = self.records.backend().get(&crate::keys::cluster()).await {
            problems.push(format!("the backend cannot be read: {error}"));
        }
        let view = self.mirror.policy();
        problems.extend(view.policy.errors().iter().map(|error| format!("a stored role is broken: {error}")));
        let cas = self.mirror.all(Kind::CertAuthority);
        GetStatusResponse {
            cluster_name: self.authorities.cluster().to_string(),
            version: self.config.version.clone(),
            ca_pins: self.authorities.pins(),
            cas: cas.iter().filter_map(|mirrored| ca_status(&mirrored.resource)).collect(),
            policy_generation: revision.generation,
            policy_counter: revision.counter,
            backend: self.config.backend_name.clone(),
            problems,
            resumptions: Some(self.audit.resumptions()),
        }
    }
}

pub(crate) fn ca_status(resource: &Resource) -> Option<CaStatus> {
    let Resource::CertAuthority(authority) = resource else { return None };
    let keys = authority.spec.active.iter().chain(&authority.spec.trusted);
    let fingerprints = keys
        .filter_map(|keys| keys.ssh_public_key.as_deref())
        .filter_map(|line| wayleave_ssh::PublicKey::from_openssh(line).ok())
        .map(|key| key.fingerprint())
        .collect();
    Some(CaStatus {
        r#type: authority.spec.ca_type.to_string(),
        phase: phase_word(authority.spec.phase).to_owned(),
        fingerprints,
    })
}
