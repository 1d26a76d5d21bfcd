//! `cluster_auth_preference`: logins and sessions of the whole cluster.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use crate::role::LockingMode;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wayleave_vocab::Ttl;

/// The cluster's authentication. There is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterAuthPreference {
    /// Labels, revision, description.
    pub metadata: Metadata,
    /// What it says.
    pub spec: AuthPreferenceSpec,
}

/// Logins and sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthPreferenceSpec {
    /// How users log in.
    #[serde(rename = "type")]
    pub login: LoginType,
    /// What is asked besides the password.
    pub second_factor: SecondFactor,
    /// What old knowledge of locks means where no role is stricter.
    pub locking_mode: LockingMode,
    /// Life of a certificate where nothing shorter is asked or set.
    pub default_session_ttl: Ttl,
    /// End sessions when the certificate does, where no role says so already.
    pub disconnect_expired_cert: bool,
}

/// How users log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginType {
    /// By a password that the cluster knows.
    #[default]
    Local,
}

/// What is asked besides the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondFactor {
    /// A time-based one-time password.
    #[default]
    Otp,
    /// Nothing.
    Off,
}

impl Default for AuthPreferenceSpec {
    fn default() -> Self {
        Self {
            login: LoginType::Local,
            second_factor: SecondFactor::Otp,
            locking_mode: LockingMode::BestEffort,
            default_session_ttl: Ttl(Duration::from_secs(12 * 3600)),
            disconnect_expired_cert: false,
        }
    }
}

impl AuthPreferenceSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let default = Self::default();
        let login = fields.or_default("type", |at| match at.text()? {
            "local" => Some(LoginType::Local),
            other => at.fail(format_args!("{other:?} is not supported yet: users log in with type local")),
        });
        let second_factor = fields.or_default("second_factor", |at| match at.text()? {
            "otp" | "on" => Some(SecondFactor::Otp),
            "off" => Some(SecondFactor::Off),
            "optional" => at.fail("an optional second factor protects nobody: write otp or off"),
            other => at.fail(format_args!("{other:?} is not supported yet: there are otp and off")),
        });
        let locking_mode = fields.or_default("locking_mode", LockingMode::read);
        let default_session_ttl = fields.optional("default_session_ttl", |at| match at.duration()? {
            Some(ttl) => Some(ttl),
            None => at.fail("a certificate that lives for no time is none"),
        });
        let disconnect_expired_cert = fields.or_default("disconnect_expired_cert", At::flag);
        fields.refuse("client_idle_timeout", |_| false, "it belongs into cluster_networking_config");
        fields.refuse(
            "require_session_mfa",
            |at| at.flag() == Some(false),
            "a second factor per session cannot be asked for yet",
        );
        fields.refuse("allow_local_auth", |at| at.flag() == Some(true), "there is no other way to log in");
        fields.refuse("connector_name", |_| false, "there are no connectors yet");
        for name in [
            "webauthn",
            "u2f",
            "device_trust",
            "hardware_key",
            "second_factors",
            "idp",
            "okta",
            "signature_algorithm_suite",
        ] {
            fields.refuse(name, |_| false, "the second factor is otp or off");
        }
        Some(Self {
            login: login?,
            second_factor: second_factor?,
            locking_mode: locking_mode?,
            default_session_ttl: default_session_ttl?.unwrap_or(default.default_session_ttl),
            disconnect_expired_cert: disconnect_expired_cert?,
        })
    }
}
