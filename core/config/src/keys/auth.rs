//! Rows of `auth_service:`.

use super::{Key, Kind, PERIOD, here, off, only, section};

const LATER_FACTORS: &str =
    "local users have a password and a one-time code (otp); security keys come with a later release";

pub(super) const KEYS: &[Key] = &[
    section("auth_service", "The Auth Service: holds the CAs and the backend. The section switches it on."),
    here("auth_service.enabled", Kind::Flag, "yes", "no keeps the section and leaves the service off."),
    here(
        "auth_service.cluster_name",
        Kind::Name("cluster name"),
        "",
        "The cluster's name; part of every certificate, cannot change later. The host name when left out.",
    ),
    here("auth_service.listen_addr", Kind::Listen, "0.0.0.0:3025", "Where the Auth API listens."),
    here(
        "auth_service.public_addr",
        Kind::Addresses,
        "",
        "Addresses under which others reach the Auth API; they become names in its certificate. The listening port when none is written.",
    ),
    only(
        "auth_service.proxy_protocol",
        &["off"],
        "the Auth API takes no PROXY headers; proxies tell it the client's address",
    ),
    here(
        "auth_service.tokens",
        Kind::Tokens,
        "",
        "Static join tokens: the system roles with commas, a colon, then the secret or the path of a file that holds it; or the path of a file with the whole.",
    ),
    section("auth_service.authentication", "How users prove who they are."),
    only(
        "auth_service.authentication.type",
        &["local"],
        "only local users for now; GitHub, OIDC and SAML come with a later release",
    ),
    only("auth_service.authentication.second_factor", &["otp"], LATER_FACTORS),
    only("auth_service.authentication.second_factors", &["otp"], LATER_FACTORS),
    here(
        "auth_service.authentication.locking_mode",
        Kind::Choice(&["best_effort", "strict"]),
        "best_effort",
        "What an agent does when it has heard no news of locks for 5 minutes: go on, or refuse new sessions.",
    ),
    here(
        "auth_service.authentication.default_session_ttl",
        Kind::Duration { min_secs: 60, max_secs: 30 * 3600 },
        "12h",
        "How long a user's certificates live unless a role says less.",
    ),
    off("auth_service.authentication.webauthn", LATER_FACTORS),
    off("auth_service.authentication.u2f", LATER_FACTORS),
    off("auth_service.authentication.passwordless", LATER_FACTORS),
    off("auth_service.authentication.headless", LATER_FACTORS),
    off(
        "auth_service.authentication.require_session_mfa",
        "a second factor for each session comes with a later release",
    ),
    section(
        "auth_service.authentication.device_trust",
        "Whether only enrolled devices may be used: they may not yet be demanded.",
    ),
    only(
        "auth_service.authentication.device_trust.mode",
        &["off"],
        "device trust is not supported; a file that demands it must not load without it",
    ),
    off(
        "auth_service.authentication.device_trust.auto_enroll",
        "device trust is not supported; remove the key",
    ),
    off(
        "auth_service.authentication.hardware_key",
        "hardware keys are not supported; a file that demands them must not load without them",
    ),
    off("auth_service.authentication.connector_name", "single sign-on comes with a later release"),
    only("auth_service.authentication.allow_local_auth", &["yes"], "local users are the only users for now"),
    only(
        "auth_service.authentication.signature_algorithm_suite",
        &["balanced-v1"],
        "keys are Ed25519 for SSH and ECDSA P-256 for TLS, which the field calls balanced-v1",
    ),
    only(
        "auth_service.session_recording",
        &["off"],
        "session recording comes with a later release; until then only off is accepted",
    ),
    only("auth_service.proxy_checks_host_keys", &["yes"], "host keys are always checked; remove the key"),
    here(
        "auth_service.client_idle_timeout",
        Kind::DurationOrNever,
        "never",
        "After how long without input a session ends; a role may say less.",
    ),
    off("auth_service.client_idle_timeout_message", "the message is fixed; remove the key"),
    off("auth_service.web_idle_timeout", "web sessions come with a later release; remove the key"),
    here(
        "auth_service.disconnect_expired_cert",
        Kind::Flag,
        "no",
        "yes ends a session when its certificate runs out; a role may demand it as well.",
    ),
    here("auth_service.keep_alive_interval", PERIOD, "5m", "How often an idle session is probed."),
    here(
        "auth_service.keep_alive_count_max",
        Kind::Count { min: 1, max: 1000 },
        "3",
        "After how many probes without an answer a session ends.",
    ),
    only("auth_service.session_control_timeout", &["2m", "2m0s"], "the value is fixed; remove the key"),
    only("auth_service.ssh_dial_timeout", &["30s"], "the value is fixed; remove the key"),
    only(
        "auth_service.routing_strategy",
        &["unambiguous_match"],
        "a name that two live nodes share is refused rather than guessed; most_recent is not supported",
    ),
    off("auth_service.case_insensitive_routing", "names are compared as written; remove the key"),
    only(
        "auth_service.proxy_listener_mode",
        &["multiplex"],
        "everything runs over web_listen_addr; further listeners open when the proxy configures them",
    ),
    section("auth_service.tunnel_strategy", "How many proxies an agent keeps a tunnel to."),
    here(
        "auth_service.tunnel_strategy.type",
        Kind::Choice(&["agent_mesh", "proxy_peering"]),
        "agent_mesh",
        "A tunnel to every proxy, or to some, the others reaching the agent through their peers.",
    ),
    here(
        "auth_service.tunnel_strategy.agent_connection_count",
        Kind::Count { min: 1, max: 1000 },
        "",
        "Under proxy_peering: to how many different proxies. 1 when left out; 2 or more survive the loss of a proxy.",
    ),
    only("auth_service.proxy_ping_interval", &["30s"], "the value is fixed; remove the key"),
    off("auth_service.ca_key_params", "keys in an HSM or a cloud's KMS come with a later release"),
    off("auth_service.license_file", "every feature is free; remove the key"),
    off("auth_service.message_of_the_day", "a message before login comes with a later release"),
    off("auth_service.load_all_cas", "trusted clusters come with a later release"),
    off("auth_service.access_monitoring", "access monitoring is not supported; the audit log can be queried"),
    off("auth_service.kubeconfig_file", "the Kubernetes Service is not built yet"),
];
