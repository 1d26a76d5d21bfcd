//! The gate before every handler: who calls, may he, and not too often.
//!
//! It looks the method up in the table (`authorization.rs`), narrows a user to what is true of him now (his roles may
//! have been taken since the certificate was issued), and hands the handler a [`Caller`]. Nothing reaches a handler
//! without passing here.

use crate::audit_events::denied;
use crate::auth_core::AuthCore;
use crate::authorization::{Rule, Toll, rule};
use crate::connection::{Connection, Identity};
use crate::request_error::RequestError;
use http::{Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;
use wayleave_identity::{HostPrincipal, UserPrincipal};
use wayleave_resource::{Kind, Resource};

/// How long a handler may take until it begins to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Whoever made the call, as far as it is true now. Handlers find it in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) identity: Identity,
    pub(crate) client_address: SocketAddr,
}

impl Caller {
    /// The caller of a request that passed the gate.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Status::internal("a request came past the gate"))
    }

    /// The user; the gate lets only users through to where this is asked.
    pub(crate) fn user(&self) -> Result<&UserPrincipal, RequestError> {
        match &self.identity {
            Identity::User(user) => Ok(user),
            Identity::Host(_) | Identity::Stranger => Err(login_first()),
        }
    }

    /// The process; the gate lets only processes through to where this is asked.
    pub(crate) fn host(&self) -> Result<&HostPrincipal, RequestError> {
        match &self.identity {
            Identity::Host(host) => Ok(host),
            Identity::User(_) | Identity::Stranger => {
                Err(RequestError::denied("only processes of the cluster may call this"))
            }
        }
    }
}

/// The gate and what lies behind it.
#[derive(Clone)]
pub(crate) struct Gate {
    core: Arc<AuthCore>,
    routes: Routes,
}

impl Gate {
    pub(crate) fn new(core: Arc<AuthCore>, routes: Routes) -> Self {
        Self { core, routes: routes.prepare() }
    }

    /// The HTTP service of one connection.
    pub(crate) fn for_connection(&self, connection: Connection) -> Gated {
        Gated { gate: self.clone(), connection: Arc::new(connection) }
    }

    /// Refuses to take clients from a proxy that is locked or whose certificate has run out.
    pub(crate) fn check_forwarder(&self, proxy: &Identity) -> Result<(), RequestError> {
        self.core.current(proxy).map(|_| ())
    }
}

/// Serves one connection.
#[derive(Clone)]
pub(crate) struct Gated {
    gate: Gate,
    connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for Gated {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let (core, began) = (self.gate.core.clone(), Instant::now());
        match core.admit(&path, &self.connection) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                let mut routes = self.gate.routes.clone();
                Box::pin(async move {
                    let answer = tokio::time::timeout(ANSWER_DEADLINE, routes.call(request)).await;
                    let answer = answer.unwrap_or_else(|_| {
                        tracing::warn!(path, "a request took too long");
                        Ok(Status::deadline_exceeded("the Auth Service took too long").into_http())
                    });
                    core.metrics.called(&path, began, answer.as_ref().map_or(Code::Unknown, code_of));
                    answer
                })
            }
            Err(error) => {
                let connection = self.connection.clone();
                Box::pin(async move {
                    core.note_denial(&path, &connection, &error).await;
                    let status = Status::from(error);
                    core.metrics.called(&path, began, status.code());
                    Ok(status.into_http())
                })
            }
        }
    }
}

/// The code of an answer: a refusal stands in the head, success only behind the body.
fn code_of(answer: &Response<Body>) -> Code {
    answer.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

impl AuthCore {
    /// Lets a call through, or says why not.
    pub(crate) fn admit(&self, path: &str, connection: &Connection) -> Result<Caller, RequestError> {
        let Some(rule) = rule(path) else {
            return Err(RequestError::NotFound(format!("the Auth Service has no method {path}")));
        };
        let address = connection.client_address.ip();
        let identity = match (rule, &connection.identity) {
            (Rule::Anyone(toll), identity) => {
                let limiter = match toll {
                    Toll::Attempt => &self.attempts,
                    Toll::Question => &self.questions,
                };
                limiter.admit(address, self.clock.mono())?;
                identity.clone()
            }
            (_, Identity::Stranger) => {
                self.questions.admit(address, self.clock.mono())?;
                return Err(login_first());
            }
            (_, identity) => self.current(identity)?,
        };
        self.check_rule(rule, &identity)?;
        Ok(Caller { identity, client_address: connection.client_address })
    }

    fn check_rule(&self, rule: &Rule, identity: &Identity) -> Result<(), RequestError> {
        match (rule, identity) {
            (Rule::Anyone(_), _) => Ok(()),
            (Rule::Host(roles), Identity::Host(host)) => {
                if host.system_roles.iter().any(|role| roles.contains(role)) {
                    return Ok(());
                }
                Err(RequestError::denied("this process does not have the system role for that"))
            }
            (Rule::Host(_), Identity::User(_) | Identity::Stranger) => {
                Err(RequestError::denied("only processes of the cluster may call this"))
            }
            (Rule::AnyUser | Rule::UserByResource, Identity::User(_)) => Ok(()),
            (Rule::User(target, verb), Identity::User(user)) => {
                self.mirror.policy().decide(user, *verb, target, None, self.clock.wall())
            }
            (
                Rule::AnyUser | Rule::UserByResource | Rule::User(..),
                Identity::Host(_) | Identity::Stranger,
            ) => Err(RequestError::denied("only users may call this, not processes of the cluster")),
        }
    }

    /// The identity as it is true now, or why it counts no more.
    pub(crate) fn current(&self, identity: &Identity) -> Result<Identity, RequestError> {
        let now = self.clock.wall();
        let (cluster, not_after) = match identity {
            Identity::Stranger => return Err(login_first()),
            Identity::User(user) => (&user.cluster, user.not_after),
            Identity::Host(host) => (&host.cluster, host.not_after),
        };
        if cluster != self.authorities.cluster() {
            return Err(RequestError::Unauthenticated("the certificate is of another cluster".to_owned()));
        }
        if not_after <= now {
            return Err(RequestError::Unauthenticated(
                "the certificate has expired: log in again".to_owned(),
            ));
        }
        let identity = match identity {
            Identity::User(user) if !user.local_admin => Identity::User(self.narrowed(user)?),
            Identity::User(_) | Identity::Host(_) | Identity::Stranger => identity.clone(),
        };
        self.mirror.policy().check_locks(&identity, now)?;
        Ok(identity)
    }

    /// The user with those roles of the certificate that he still holds.
    fn narrowed(&self, user: &UserPrincipal) -> Result<UserPrincipal, RequestError> {
        let gone = || RequestError::Denied {
            told: "your roles have changed: log in again, or ask an administrator".to_owned(),
            reason: format!("the user {} of the certificate does not exist", user.name),
        };
        let mirrored = self.mirror.get(Kind::User, user.name.as_str()).ok_or_else(gone)?;
        let Resource::User(stored) = &mirrored.resource else { return Err(gone()) };
        let mut narrowed = user.clone();
        narrowed.roles = user.roles.intersection(&stored.spec.roles).cloned().collect();
        // A role given since then does not allow before the next login, but what it denies is denied at once.
        let gained = stored.spec.roles.difference(&user.roles);
        narrowed.roles.extend(gained.filter(|role| self.role_denies(role.as_str())).cloned());
        Ok(narrowed)
    }

    fn role_denies(&self, role: &str) -> bool {
        let mirrored = self.mirror.get(Kind::Role, role);
        match mirrored.as_deref().map(|mirrored| &mirrored.resource) {
            Some(Resource::Role(role)) => !role.spec.deny.is_empty(),
            _ => true,
        }
    }

    /// Notes in the audit log that a known caller was refused; strangers are counted by their limits only.
    async fn note_denial(&self, path: &str, connection: &Connection, error: &RequestError) {
        let reason = error.full_reason();
        tracing::debug!(path, address = %connection.client_address, reason, "refused");
        let (who, local_admin) = match &connection.identity {
            Identity::Stranger => return,
            Identity::User(user) => (user.name.to_string(), user.local_admin),
            Identity::Host(host) => (host.host_id.to_string(), false),
        };
        if !matches!(error, RequestError::Denied { .. })
            || self.noted_denials.admit(connection.client_address.ip(), self.clock.mono()).is_err()
        {
            return;
        }
        let event = denied(&who, local_admin, path, &reason, connection.client_address);
        self.note(event).await;
    }
}

pub(crate) fn login_first() -> RequestError {
    RequestError::Unauthenticated("this needs a certificate: log in first with `way login`".to_owned())
}
