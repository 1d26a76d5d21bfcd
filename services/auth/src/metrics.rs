//! What the Auth Service counts, and what keeps it from its work. Names are the field's where it has one.

use crate::auth_core::AuthCore;
use crate::authorization::TABLE;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tonic::Code;
use wayleave_resource::Kind;
use wayleave_telemetry::{Counter, Diagnostics, Durations, Finding, Registry};

/// Every code of gRPC, in the order of its number.
const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "Canceled"),
    (Code::Unknown, "Unknown"),
    (Code::InvalidArgument, "InvalidArgument"),
    (Code::DeadlineExceeded, "DeadlineExceeded"),
    (Code::NotFound, "NotFound"),
    (Code::AlreadyExists, "AlreadyExists"),
    (Code::PermissionDenied, "PermissionDenied"),
    (Code::ResourceExhausted, "ResourceExhausted"),
    (Code::FailedPrecondition, "FailedPrecondition"),
    (Code::Aborted, "Aborted"),
    (Code::OutOfRange, "OutOfRange"),
    (Code::Unimplemented, "Unimplemented"),
    (Code::Internal, "Internal"),
    (Code::Unavailable, "Unavailable"),
    (Code::DataLoss, "DataLoss"),
    (Code::Unauthenticated, "Unauthenticated"),
];

/// Kinds whose number is worth knowing, with the names of the field's gauges.
const COUNTED: [(Kind, &str, &str); 6] = [
    (Kind::Node, "node", "wayleave_registered_servers"),
    (Kind::Proxy, "proxy", "wayleave_registered_servers"),
    (Kind::Role, "role", "wayleave_resources"),
    (Kind::User, "user", "wayleave_resources"),
    (Kind::Token, "token", "wayleave_resources"),
    (Kind::Lock, "lock", "wayleave_resources"),
];

/// The counters that calls touch.
pub(crate) struct AuthMetrics {
    methods: Vec<(&'static str, Method)>,
    unknown_method: Counter,
    pub(crate) logins: Counter,
    pub(crate) logins_refused: Counter,
    pub(crate) events: Counter,
    pub(crate) events_failed: Counter,
    registry: Registry,
}

/// One method of the API.
struct Method {
    service: &'static str,
    name: &'static str,
    took: Durations,
    /// Made when a code first occurs, so that what never happens is not shown.
    codes: [OnceLock<Counter>; CODES.len()],
}

impl AuthMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let logins = |result: &str| {
            registry.counter("user_login_total", "Logins with password and code.", &[("result", result)])
        };
        Self {
            methods: TABLE.iter().map(|(path, _)| (*path, Method::new(registry, path))).collect(),
            unknown_method: registry.counter(
                "grpc_server_unknown_methods_total",
                "Calls of methods that do not exist.",
                &[],
            ),
            logins: logins("ok"),
            logins_refused: logins("refused"),
            events: registry.counter(
                "audit_emit_events_total",
                "Audit events that were appended to the log.",
                &[],
            ),
            events_failed: registry.counter(
                "audit_failed_emit_events_total",
                "Audit events that could not be appended, with the change that they told of.",
                &[],
            ),
            registry: registry.clone(),
        }
    }

    /// How many calls were answered.
    pub(crate) fn calls(&self) -> u64 {
        self.methods.iter().map(|(_, method)| method.took.count()).sum()
    }

    /// A call was answered.
    pub(crate) fn called(&self, path: &str, began: Instant, code: Code) {
        let Some((_, method)) = self.methods.iter().find(|(known, _)| *known == path) else {
            return self.unknown_method.increment();
        };
        method.took.observe_since(began);
        let index = CODES.iter().position(|(known, _)| *known == code).unwrap_or_default();
        let label = CODES[index].1;
        let counter = method.codes[index].get_or_init(|| {
            let labels =
                [("grpc_service", method.service), ("grpc_method", method.name), ("grpc_code", label)];
            self.registry.counter("grpc_server_handled_total", "Calls that were answered, by code.", &labels)
        });
        counter.increment();
    }
}

impl Method {
    fn new(registry: &Registry, path: &'static str) -> Self {
        let (service, name) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        let labels = [("grpc_service", service), ("grpc_method", name)];
        let help = "Time until a call began to be answered.";
        let took = registry.durations("grpc_server_handling_seconds", help, &labels);
        Self { service, name, took, codes: std::array::from_fn(|_| OnceLock::new()) }
    }
}

/// Registers what is known anyway and asked for when somebody reads.
pub(crate) fn register(diagnostics: &Diagnostics, core: &Arc<AuthCore>) {
    let registry = &diagnostics.metrics;
    let gauge = |name, help, labels: &[(&'static str, &str)], read: fn(&AuthCore) -> usize| {
        let core: Weak<AuthCore> = Arc::downgrade(core);
        registry.computed_gauge(name, help, labels, move || core.upgrade().map(|core| number(read(&core))));
    };
    for (kind, label, name) in COUNTED {
        let core: Weak<AuthCore> = Arc::downgrade(core);
        let help = "Resources that are stored, by kind.";
        registry.computed_gauge(name, help, &[("type", label)], move || {
            core.upgrade().map(|core| number(core.mirror.count(kind)))
        });
    }
    let help = "What is connected now.";
    gauge("wayleave_connected_resources", help, &[("type", "node")], |core| core.routes.online().len());
    gauge("wayleave_connected_resources", help, &[("type", "proxy")], |core| core.routes.proxies_online());
    gauge("audit_queue_length", "Changes that wait for the audit log.", &[], |core| core.audit.waiting());
    let help = "The revision of the policy that was published last.";
    gauge("wayleave_policy_published_revision", help, &[], |core| {
        let published = core.snapshots.current();
        published.map_or(0, |p| usize::try_from(p.revision.counter).unwrap_or(usize::MAX))
    });
    let core = Arc::downgrade(core);
    diagnostics.health.check(move || core.upgrade().map(|core| findings(&core)).unwrap_or_default());
}

fn findings(core: &AuthCore) -> Vec<Finding> {
    let mut found = Vec::new();
    if core.audit.is_full() {
        let text = "more changes wait for the audit log than it takes: the backend is too slow";
        found.push(Finding::unready("audit_queue_full", text));
    }
    let broken = core.mirror.policy().policy.errors().len();
    if broken > 0 {
        let text = format!("{broken} stored roles cannot be used: `way status` names them");
        found.push(Finding::degraded("roles_broken", text));
    }
    found
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// How long a failure of the backend is told after it happened, unless something succeeded since.
pub(crate) const FAILURE_SHOWN: Duration = Duration::from_secs(60);
