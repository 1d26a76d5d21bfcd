//! Rows of the file itself and of services that are not built yet.

use super::{Key, Kind, here, off, section};

pub(super) const FILE: &[Key] =
    &[here("version", Kind::Choice(&["v3"]), "v3", "The version of the file's format.")];

pub(super) const TRACING: &[Key] = &[
    section(
        "tracing_service",
        "Traces of connections, for a collector of the operators. The section switches it on.",
    ),
    here("tracing_service.enabled", Kind::Flag, "yes", "no keeps the section and sends nothing."),
    here(
        "tracing_service.exporter_url",
        Kind::Name("URL"),
        "",
        "Where spans go, by OTLP over HTTP with JSON: http://HOST:4318 or https://HOST. Without a path, /v1/traces is meant. Required.",
    ),
    here(
        "tracing_service.sampling_rate_per_million",
        Kind::Count { min: 0, max: 1_000_000 },
        "10000",
        "How many of a million connections are traced. Every process with the same rate traces the same ones.",
    ),
    off("tracing_service.ca_certs", "the system's authorities are used; remove the key"),
    off("tracing_service.keypairs", "no client certificate is presented; remove the key"),
];

pub(super) const SERVICES: &[Key] = &[
    off(
        "kubernetes_service",
        "the Kubernetes Service is not built yet; remove the section or set enabled: no",
    ),
    off("db_service", "the Database Service is not built yet; remove the section or set enabled: no"),
    off("app_service", "the Application Service is not built yet; remove the section or set enabled: no"),
    off(
        "windows_desktop_service",
        "the Windows Desktop Service is not built yet; remove the section or set enabled: no",
    ),
    off(
        "linux_desktop_service",
        "the Linux Desktop Service is not built; remove the section or set enabled: no",
    ),
    off("discovery_service", "the Discovery Service is not built yet; remove the section or set enabled: no"),
    off("relay_service", "there is no relay; proxies reach agents through one another by peering"),
    off("okta_service", "there is no Okta Service; remove the section or set enabled: no"),
    off("jamf_service", "there is no Jamf Service; remove the section or set enabled: no"),
    off("debug_service", "there is no debug socket; set wayleave.log.severity to DEBUG"),
    off("metrics_service", "use wayleave.diag_addr, which serves the metrics; set enabled: no"),
    off("access_graph", "there is no access graph; way explain shows why access is allowed or denied"),
    off("identity_security", "there is no such service; remove the section or set enabled: no"),
    off("plugins", "there are no hosted plugins; remove the section or set enabled: no"),
];
