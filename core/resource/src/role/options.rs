//! `spec.options` of a role. Absent means "this role does not say"; how roles merge is `core/policy`'s business.

use crate::reader::{At, Fields};
use crate::tree::Value;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use std::time::Duration;
use wayleave_vocab::Ttl;

/// Longest `max_detached`: sessions that nobody comes back for keep memory and count against limits.
const MAX_DETACHED_MAX: Duration = Duration::from_secs(24 * 3600);

/// What happens to new sessions when the agent's view of locks is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockingMode {
    /// Go on, audited and shown.
    #[default]
    BestEffort,
    /// Refuse.
    Strict,
}

impl LockingMode {
    pub(crate) fn read(at: &At<'_>) -> Option<Self> {
        at.word(&[("strict", Self::Strict), ("best_effort", Self::BestEffort)])
    }
}

/// How much a session depends on its recording. Only one is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingMode {
    /// A session goes on without its recording.
    BestEffort,
}

/// `record_session`. Strict recording is refused at write until sessions can be recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordSession {
    /// For protocols without a value of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<RecordingMode>,
    /// For SSH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<RecordingMode>,
}

/// The options of a role that this build enforces.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RoleOptions {
    /// Longest life of a certificate; merges to the shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_session_ttl: Option<Ttl>,
    /// SSH agent forwarding; default no; one yes is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_agent: Option<bool>,
    /// SSH port forwarding; default yes; one yes is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_forwarding: Option<bool>,
    /// SCP and SFTP; default yes; one no is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_file_copy: Option<bool>,
    /// How long a session may be silent; `never` is absence; merges to the shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_idle_timeout: Option<Ttl>,
    /// End sessions when the certificate does; default as the cluster; one yes is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disconnect_expired_cert: Option<bool>,
    /// Most sessions on one connection; 0 is absence; merges to the fewest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<NonZeroU32>,
    /// Most connections of one user; 0 is absence; merges to the fewest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU32>,
    /// How long a session waits for its client after the connection was lost; default five minutes, `0s` is not at all;
    /// merges to the shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_detached: Option<Ttl>,
    /// X11 forwarding; default no; one yes is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permit_x11_forwarding: Option<bool>,
    /// Locking mode; default as the cluster; one strict is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockingMode>,
    /// Recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_session: Option<RecordSession>,
}

impl RoleOptions {
    /// True when the role says nothing about sessions.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let max_session_ttl = fields.optional("max_session_ttl", |at| match at.duration()? {
            Some(ttl) => Some(ttl),
            None => at.fail(
                "a certificate that lives for no time is none; leave the key out for the cluster's default",
            ),
        });
        let forward_agent = fields.optional("forward_agent", At::flag);
        let port_forwarding = fields.optional("port_forwarding", At::flag);
        let ssh_file_copy = fields.optional("ssh_file_copy", At::flag);
        let client_idle_timeout = fields.or_default("client_idle_timeout", At::duration);
        let disconnect_expired_cert = fields.optional("disconnect_expired_cert", At::flag);
        let max_sessions = fields.or_default("max_sessions", limit);
        let max_connections = fields.or_default("max_connections", limit);
        let max_detached = fields.optional("max_detached", detached);
        let permit_x11_forwarding = fields.optional("permit_x11_forwarding", At::flag);
        let lock = fields.optional("lock", LockingMode::read);
        let record_session = fields.optional("record_session", RecordSession::read);
        refuse_unbuilt(&mut fields);
        fields.finish();
        Some(Self {
            max_session_ttl: max_session_ttl?,
            forward_agent: forward_agent?,
            port_forwarding: port_forwarding?,
            ssh_file_copy: ssh_file_copy?,
            client_idle_timeout: client_idle_timeout?,
            disconnect_expired_cert: disconnect_expired_cert?,
            max_sessions: max_sessions?,
            max_connections: max_connections?,
            max_detached: max_detached?,
            permit_x11_forwarding: permit_x11_forwarding?,
            lock: lock?,
            record_session: record_session?,
        })
    }
}

impl RecordSession {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let default = fields.optional("default", recording_mode);
        let ssh = fields.optional("ssh", recording_mode);
        fields.refuse("k8s", |at| says(at, &["best_effort"]), "Kubernetes sessions are not served yet");
        fields.refuse(
            "desktop",
            |at| says(at, &["true", "false", "yes", "no"]),
            "desktops are not served yet",
        );
        fields.finish();
        Some(Self { default: default?, ssh: ssh? })
    }
}

fn recording_mode(at: &At<'_>) -> Option<RecordingMode> {
    match at.text()? {
        "best_effort" => Some(RecordingMode::BestEffort),
        "strict" => at.fail("session recording comes later: a role that demands strict recording is refused"),
        other => at.fail(format_args!("{other:?} is neither best_effort nor strict")),
    }
}

fn limit(at: &At<'_>) -> Option<Option<NonZeroU32>> {
    at.number::<u32>("a whole number, 0 for no limit").map(NonZeroU32::new)
}

/// No time at all is a value here: such sessions end with their connection.
fn detached(at: &At<'_>) -> Option<Ttl> {
    let ttl: Ttl = at.parse()?;
    if ttl.0 > MAX_DETACHED_MAX {
        return at.fail(format_args!("a lost session waits for {} at most", Ttl(MAX_DETACHED_MAX)));
    }
    Some(ttl)
}

/// True if the value is one of the words.
fn says(at: &At<'_>, words: &[&str]) -> bool {
    matches!(&at.tree.value, Value::Scalar { text, .. } if words.contains(&text.as_str()))
}

/// Options of the field that are not built. Each passes with the value that demands nothing.
fn refuse_unbuilt(fields: &mut Fields<'_>) {
    const OFF: &[&str] = &["off", "no", "false", "0", "never"];
    const GRANTS: &[&str] = &["true", "yes", "on"];
    let off = |at: &At<'_>| says(at, OFF);
    let grants = |at: &At<'_>| says(at, GRANTS);
    fields.refuse("pin_source_ip", off, "certificates are not pinned to an address yet");
    fields.refuse("require_session_mfa", off, "a second factor per session cannot be asked for yet");
    fields.refuse("mfa_verification_interval", off, "a second factor per session cannot be asked for yet");
    fields.refuse("device_trust_mode", |at| says(at, &["off", "optional"]), "devices are not known yet");
    fields.refuse("request_access", |at| says(at, &["optional"]), "access requests do not exist yet");
    fields.refuse("request_prompt", |_| true, "");
    fields.refuse("enhanced_recording", off, "session recording comes later");
    fields.refuse("cert_extensions", off, "certificates carry no extensions of your own yet");
    fields.refuse("cert_format", |at| says(at, &["standard"]), "only the standard format is issued");
    fields.refuse("create_host_user_mode", off, "users of the operating system are not created");
    fields.refuse("create_host_user", off, "users of the operating system are not created");
    fields.refuse(
        "create_host_user_default_shell",
        |_| false,
        "users of the operating system are not created",
    );
    fields.refuse("create_db_user", off, "databases are not served yet");
    fields.refuse("create_db_user_mode", off, "databases are not served yet");
    fields.refuse("create_desktop_user", off, "desktops are not served yet");
    fields.refuse(
        "desktop_clipboard",
        grants,
        "desktops are not served yet, so this cannot be forbidden yet",
    );
    fields.refuse(
        "desktop_directory_sharing",
        grants,
        "desktops are not served yet, so this cannot be forbidden yet",
    );
    fields.refuse("max_kubernetes_connections", off, "Kubernetes clusters are not served yet");
    fields.refuse("ssh_port_forwarding", |_| false, "use port_forwarding, which is for both directions");
    fields.refuse("web_terminal_clipboard_mode", |_| false, "there is no terminal in the browser yet");
    fields.refuse("idp", |_| false, "this cluster is no identity provider");
}
