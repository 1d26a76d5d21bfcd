//! The events. Names and codes are those of the field, so that people's searches and alerts go on working.

use crate::text::Text;
use serde::{Deserialize, Serialize};
use wayleave_vocab::{HostId, Login, SessionId};

/// Something that happened. The name is in `event`, the code in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum Event {
    /// Somebody logged in, or tried to.
    #[serde(rename = "user.login")]
    UserLogin {
        /// The name as it was typed.
        user: Text,
        /// How: `local`, `local_admin`, `identity_file`.
        method: Text,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// Whether it worked.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Somebody failed to authenticate on a protocol's port.
    #[serde(rename = "auth")]
    AuthAttempt {
        /// What was said about who it is, if anything.
        user: Text,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// What was wrong.
        error: Text,
    },
    /// A certificate was issued.
    #[serde(rename = "cert.create")]
    CertCreate {
        /// For whom.
        #[serde(flatten)]
        subject: Subject,
        /// Which kind.
        cert_type: CertKind,
        /// Roles in it.
        roles: Vec<Text>,
        /// Logins in it.
        logins: Vec<Text>,
        /// Its end, in seconds since 1970.
        expires: u64,
    },
    /// A process joined, or tried to.
    #[serde(rename = "instance.join")]
    InstanceJoin {
        /// The id it got; absent when it got none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        joined_host_id: Option<HostId>,
        /// The name of the machine, as it says.
        node_name: Text,
        /// The public name of the token; never its secret.
        token_name: Text,
        /// How it was verified.
        method: Text,
        /// The system roles.
        roles: Vec<Text>,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// Whether it worked.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A session began.
    #[serde(rename = "session.start")]
    SessionStart {
        /// Which.
        #[serde(flatten)]
        session: SessionRef,
        /// True with a terminal.
        interactive: bool,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// The policy revision that allowed it.
        policy_revision: Text,
    },
    /// A session ended.
    #[serde(rename = "session.end")]
    SessionEnd {
        /// Which.
        #[serde(flatten)]
        session: SessionRef,
        /// How long it took.
        duration_ms: u64,
        /// What went through it; absent where it was not counted.
        #[serde(flatten)]
        traffic: Option<Traffic>,
        /// The exit status of its command, if there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u32>,
        /// Why, if it did not end by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Text>,
    },
    /// A session was refused.
    #[serde(rename = "session.rejected")]
    SessionRejected {
        /// Who.
        user: Text,
        /// As whom.
        login: Text,
        /// Where.
        server_id: HostId,
        /// Where, as people call it.
        server_hostname: Text,
        /// The full reason.
        reason: Text,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
    },
    /// A command ran, or could not.
    #[serde(rename = "exec")]
    Exec {
        /// In which session.
        #[serde(flatten)]
        session: SessionRef,
        /// The command line as it was sent.
        command: Text,
        /// Its exit status, when it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<u32>,
        /// Whether it could be started.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A subsystem was asked for.
    #[serde(rename = "subsystem")]
    Subsystem {
        /// In which session.
        #[serde(flatten)]
        session: SessionRef,
        /// Which.
        name: Text,
        /// Whether it was given.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A port was forwarded, or was not.
    #[serde(rename = "port")]
    Port {
        /// In which session.
        #[serde(flatten)]
        session: SessionRef,
        /// In which direction, and whether it begins or ends.
        action: PortAction,
        /// The address.
        addr: Text,
        /// How long it took, when it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_ms: Option<u64>,
        /// What went through it, when it was a connection that has ended.
        #[serde(flatten)]
        traffic: Option<Traffic>,
        /// Whether it was given.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// X11 forwarding or agent forwarding was asked for.
    #[serde(rename = "forward")]
    Forward {
        /// In which session.
        #[serde(flatten)]
        session: SessionRef,
        /// `agent` or `x11`.
        what: Text,
        /// Whether it was given.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Files were copied over SFTP in this session.
    #[serde(rename = "sftp_summary")]
    SftpSummary {
        /// In which session.
        #[serde(flatten)]
        session: SessionRef,
        /// How much.
        #[serde(flatten)]
        totals: SftpTotals,
        /// What was done to which file, in order, [`LIST_MAX`](crate::LIST_MAX) at most.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        actions: Vec<SftpAction>,
        /// How many more there were.
        #[serde(default)]
        actions_omitted: u64,
    },
    /// A connection to a TCP application began, or was refused.
    #[serde(rename = "app.session.start")]
    AppSessionStart {
        /// Which.
        #[serde(flatten)]
        app: AppRef,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// Whether it was made.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A connection to a TCP application ended.
    #[serde(rename = "app.session.end")]
    AppSessionEnd {
        /// Which.
        #[serde(flatten)]
        app: AppRef,
        /// How long it took.
        duration_ms: u64,
        /// Bytes from the user.
        bytes_received: u64,
        /// Bytes to the user.
        bytes_sent: u64,
    },
    /// The connection under somebody's sessions was lost, or what became of that.
    #[serde(rename = "session.resumption")]
    Resumption {
        /// Who; of a refusal, who it was by his certificate, if he had one.
        user: Text,
        /// Names the connection, as `client.disconnect` does.
        sid: SessionId,
        /// Where.
        server_id: HostId,
        /// Where, as people call it.
        server_hostname: Text,
        /// What became of it.
        action: ResumptionAction,
        /// From where.
        #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
        client_addr: Option<Text>,
        /// Whether it was given.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A client was disconnected by us.
    #[serde(rename = "client.disconnect")]
    ClientDisconnect {
        /// Who.
        user: Text,
        /// In which session, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sid: Option<SessionId>,
        /// Where.
        server_id: HostId,
        /// Why, for programs.
        cause: DisconnectReason,
        /// Why, for people.
        reason: Text,
    },
    /// A resource was written or removed, by a person or on his behalf.
    #[serde(rename = "resource.change")]
    Changed {
        /// Which kind.
        kind: ChangedKind,
        /// What happened to it.
        change: Change,
        /// Its name.
        name: Text,
        /// By whom.
        #[serde(flatten)]
        actor: Actor,
        /// What is worth saying about the new content: roles of a user, target of a lock, system roles of a token.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        details: Vec<Text>,
    },
    /// A password or second factor was set, or a link for that was made.
    #[serde(rename = "user.credentials")]
    Credentials {
        /// Whose.
        name: Text,
        /// `invite`, `reset`, `password_set`, `totp_set`.
        action: Text,
        /// By whom.
        #[serde(flatten)]
        actor: Actor,
    },
    /// An admin question was refused.
    #[serde(rename = "access.denied")]
    AccessDenied {
        /// Who asked.
        #[serde(flatten)]
        actor: Actor,
        /// What for: `update role access`.
        action: Text,
        /// The full reason.
        reason: Text,
    },
    /// A service of the cluster began or ended, or its policy became stale or fresh again.
    #[serde(rename = "service.state")]
    ServiceState {
        /// Which.
        service: Text,
        /// `started`, `stopping`, `policy_stale`, `policy_fresh`, `events_lost`.
        state: Text,
        /// What there is to say.
        #[serde(default, skip_serializing_if = "Text::is_empty")]
        details: Text,
    },
}

/// Whether something worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It did.
    Success,
    /// It did not.
    Failure {
        /// The full reason.
        error: Text,
    },
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A user.
    User(Text),
    /// A process.
    Host(HostId),
}

/// Kinds of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertKind {
    /// SSH and X.509 of a user.
    User,
    /// X.509 (and SSH) of a process.
    Host,
    /// For one connection to an agentless node.
    Openssh,
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The user.
    pub user: Text,
    /// True for the administrator of the Auth host (`way -c`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_admin: bool,
    /// From where.
    #[serde(rename = "addr.remote", default, skip_serializing_if = "Option::is_none")]
    pub client_addr: Option<Text>,
}

/// A session on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// Its id.
    pub sid: SessionId,
    /// Who.
    pub user: Text,
    /// As whom.
    pub login: Login,
    /// Where.
    pub server_id: HostId,
    /// Where, as people call it.
    pub server_hostname: Text,
}

/// A connection to a TCP application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRef {
    /// Its id.
    pub sid: SessionId,
    /// Who.
    pub user: Text,
    /// Which application.
    pub app_name: Text,
    /// Which of its ports.
    pub target_port: u16,
    /// Whose.
    pub server_id: HostId,
}

/// What happened to a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortAction {
    /// `-L` or `-D`: a connection from the client through the node.
    LocalStart,
    /// It ended.
    LocalStop,
    /// `-R`: a listener on the node.
    RemoteStart,
    /// It ended.
    RemoteStop,
    /// A connection to that listener.
    RemoteConnection,
    /// It ended.
    RemoteConnectionStop,
}

/// Bytes that went through a session or a forwarded connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// What the client sent.
    pub bytes_received: u64,
    /// What was sent to the client.
    pub bytes_sent: u64,
}

/// What became of a connection that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResumptionAction {
    /// It was lost; the sessions wait.
    Detached,
    /// The client came back, or was refused.
    Resumed,
    /// Nobody came back in time.
    Expired,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftpTotals {
    /// Files read from the node.
    pub files_read: u64,
    /// Files written to the node.
    pub files_written: u64,
    /// Bytes read from the node.
    pub bytes_read: u64,
    /// Bytes written to the node.
    pub bytes_written: u64,
    /// Files and directories removed.
    #[serde(default)]
    pub removed: u64,
    /// Renamed, made, linked, and other changes.
    pub other_changes: u64,
    /// Requests of these kinds that failed.
    pub failures: u64,
}

/// Something that was done over SFTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftpAction {
    /// What.
    pub action: SftpActionKind,
    /// To which file, as the client named it.
    pub path: Text,
    /// The other file of a rename or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Text>,
}

/// What can be done over SFTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SftpActionKind {
    /// Opened for reading.
    Read,
    /// Opened for writing.
    Write,
    /// Removed.
    Remove,
    /// Renamed: the new name is the target.
    Rename,
    /// A directory was made.
    MakeDirectory,
    /// A directory was removed.
    RemoveDirectory,
    /// A link was made to the target.
    Link,
    /// Owner, permissions, times or size were changed.
    Change,
}

/// Why we disconnected a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectReason {
    /// It was silent for too long.
    Idle,
    /// Its certificate ran out.
    CertificateExpired,
    /// A lock was set.
    Locked,
    /// Its roles no longer allow it.
    PolicyChanged,
    /// More sessions or connections than allowed.
    TooMany,
    /// The service stops.
    Draining,
}

/// Kinds whose changes are audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangedKind {
    /// A role.
    Role,
    /// A user.
    User,
    /// A join token.
    Token,
    /// A lock.
    Lock,
    /// A node.
    Node,
    /// A proxy.
    Proxy,
    /// An authority.
    CertAuthority,
    /// The cluster's networking.
    ClusterNetworkingConfig,
    /// The cluster's authentication.
    ClusterAuthPreference,
}

/// What happened to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Created,
    /// It is different.
    Updated,
    /// It is gone.
    Deleted,
}

impl Event {
    /// The code: a letter, a group, and I for information, W for warning, E for error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UserLogin { outcome, .. } => outcome.pick("T1000I", "T1000W"),
            Self::AuthAttempt { .. } => "T3007W",
            Self::CertCreate { .. } => "TC000I",
            Self::InstanceJoin { outcome, .. } => outcome.pick("TJ002I", "TJ002E"),
            Self::SessionStart { .. } => "T2000I",
            Self::SessionEnd { .. } => "T2004I",
            Self::SessionRejected { .. } => "T1006W",
            Self::Exec { outcome, .. } => outcome.pick("T3002I", "T3002E"),
            Self::Subsystem { outcome, .. } => outcome.pick("T3001I", "T3001E"),
            Self::Port { action, outcome, .. } => match action {
                PortAction::LocalStop | PortAction::RemoteStop | PortAction::RemoteConnectionStop => {
                    outcome.pick("T3003S", "T3003E")
                }
                PortAction::LocalStart | PortAction::RemoteStart | PortAction::RemoteConnection => {
                    outcome.pick("T3003I", "T3003E")
                }
            },
            Self::Forward { outcome, .. } => outcome.pick("T3008I", "T3008W"),
            Self::SftpSummary { .. } => "TS021I",
            Self::AppSessionStart { outcome, .. } => outcome.pick("T2007I", "T2007E"),
            Self::AppSessionEnd { .. } => "T2011I",
            Self::Resumption { action, outcome, .. } => match action {
                ResumptionAction::Detached => outcome.pick("WRS00I", "WRS00W"),
                ResumptionAction::Resumed => outcome.pick("WRS01I", "WRS01W"),
                ResumptionAction::Expired => outcome.pick("WRS02I", "WRS02W"),
            },
            Self::ClientDisconnect { .. } => "T3006I",
            Self::Changed { kind, change, .. } => changed_code(*kind, *change),
            Self::Credentials { action, .. } => match action.as_str() {
                "invite" | "reset" => "T6000I",
                "totp_set" => "T1006I",
                _ => "T1005I",
            },
            Self::AccessDenied { .. } => "WAD00W",
            Self::ServiceState { .. } => "WSV00I",
        }
    }
}

impl Outcome {
    /// From a result whose error is text.
    pub fn from_result<T, E: std::fmt::Display>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Success,
            Err(error) => Self::Failure { error: Text::new(error.to_string()) },
        }
    }

    fn pick(&self, success: &'static str, failure: &'static str) -> &'static str {
        match self {
            Self::Success => success,
            Self::Failure { .. } => failure,
        }
    }
}

fn changed_code(kind: ChangedKind, change: Change) -> &'static str {
    match (kind, change) {
        (ChangedKind::User, Change::Created) => "T1002I",
        (ChangedKind::User, Change::Updated) => "T1003I",
        (ChangedKind::User, Change::Deleted) => "T1004I",
        (ChangedKind::Role, Change::Created) => "T9000I",
        (ChangedKind::Role, Change::Deleted) => "T9001I",
        (ChangedKind::Role, Change::Updated) => "T9002I",
        (ChangedKind::Token, Change::Created | Change::Updated) => "TJT00I",
        (ChangedKind::Token, Change::Deleted) => "TJT01I",
        (ChangedKind::Lock, Change::Created | Change::Updated) => "TLK00I",
        (ChangedKind::Lock, Change::Deleted) => "TLK01I",
        (ChangedKind::ClusterAuthPreference, _) => "TCAUTH001I",
        (ChangedKind::ClusterNetworkingConfig, _) => "TCNET002I",
        (ChangedKind::CertAuthority, _) => "WCA00I",
        (ChangedKind::Node, _) => "WND00I",
        (ChangedKind::Proxy, _) => "WPR00I",
    }
}
