//! Rows of `proxy_service:`.

use super::{ANY_DURATION, Key, Kind, here, off, section};

const KUBE_LATER: &str = "the Kubernetes Service is not built yet; remove the key";
const DB_LATER: &str = "the Database Service is not built yet; remove the key";

pub(super) const KEYS: &[Key] = &[
    section(
        "proxy_service",
        "The Proxy Service: the public face of the cluster. The section switches it on.",
    ),
    here("proxy_service.enabled", Kind::Flag, "yes", "no keeps the section and leaves the service off."),
    here(
        "proxy_service.web_listen_addr",
        Kind::Listen,
        "0.0.0.0:3080",
        "The one public port: web, Auth API, tunnels and every protocol over TLS. 443 is advised.",
    ),
    here(
        "proxy_service.public_addr",
        Kind::Addresses,
        "",
        "Addresses under which clients and agents reach the proxies, the load balancer's if there is one. The port of web_listen_addr when none is written.",
    ),
    here(
        "proxy_service.listen_addr",
        Kind::Listen,
        "",
        "SSH for stock clients with ProxyJump, usually 0.0.0.0:3023. Closed when left out.",
    ),
    here(
        "proxy_service.ssh_public_addr",
        Kind::Addresses,
        "",
        "Addresses of the SSH listener as clients reach it. Needs listen_addr, whose port is meant when none is written.",
    ),
    here(
        "proxy_service.tunnel_listen_addr",
        Kind::Listen,
        "",
        "Where machines without an agent publish themselves by stock ssh -R, usually 0.0.0.0:3024. Closed when left out. Agents use web_listen_addr.",
    ),
    here(
        "proxy_service.tunnel_public_addr",
        Kind::Addresses,
        "",
        "Addresses of that listener as machines reach it. Needs tunnel_listen_addr, whose port is meant when none is written.",
    ),
    here(
        "proxy_service.peer_listen_addr",
        Kind::Listen,
        "0.0.0.0:3021",
        "Where other proxies reach this one. Opened while the tunnel strategy is proxy_peering, or with tunnel_listen_addr.",
    ),
    here(
        "proxy_service.peer_public_addr",
        Kind::Address(3021),
        "",
        "The address of this one proxy for its peers, never a load balancer's. Needs peer_listen_addr.",
    ),
    here(
        "proxy_service.peer_route_push",
        Kind::Flag,
        "yes",
        "Routes are told to peers directly, besides the way through Auth and its backend. Turn it off only to see that the other way works.",
    ),
    here(
        "proxy_service.https_keypairs",
        Kind::Sections,
        "",
        "Certificates for browsers and clients. Without one, a certificate of the cluster's own CA is used.",
    ),
    here("proxy_service.https_keypairs[].key_file", Kind::Path, "", "The private key, PEM."),
    here("proxy_service.https_keypairs[].cert_file", Kind::Path, "", "The certificate and its chain, PEM."),
    off("proxy_service.https_key_file", "use https_keypairs with key_file and cert_file"),
    off("proxy_service.https_cert_file", "use https_keypairs with key_file and cert_file"),
    here(
        "proxy_service.https_keypairs_reload_interval",
        ANY_DURATION,
        "0s",
        "How often the key pairs are read again; 0 for never. If one fails to load, none is replaced.",
    ),
    here(
        "proxy_service.proxy_protocol",
        Kind::Flag,
        "no",
        "on requires a PROXY header from proxy_protocol_from and refuses it from others.",
    ),
    here(
        "proxy_service.proxy_protocol_from",
        Kind::Networks,
        "",
        "The networks of the load balancers. Required with proxy_protocol: on. Wayleave's own key.",
    ),
    off(
        "proxy_service.proxy_protocol_allow_downgrade",
        "a PROXY header that cannot be used is refused; remove the key",
    ),
    here(
        "proxy_service.trust_x_forwarded_for",
        Kind::Flag,
        "no",
        "yes takes the client's address from an HTTP load balancer's X-Forwarded-For, which must name exactly one.",
    ),
    here(
        "proxy_service.zone",
        Kind::Name("zone name"),
        "",
        "Where this proxy stands. Agents prefer different zones for their tunnels. Wayleave's own key.",
    ),
    off("proxy_service.acme", "certificates by ACME come with a later release; use https_keypairs"),
    off("proxy_service.kubernetes", KUBE_LATER),
    off("proxy_service.kube_listen_addr", KUBE_LATER),
    off("proxy_service.kube_public_addr", KUBE_LATER),
    off("proxy_service.mysql_listen_addr", DB_LATER),
    off("proxy_service.mysql_public_addr", DB_LATER),
    off("proxy_service.postgres_listen_addr", DB_LATER),
    off("proxy_service.postgres_public_addr", DB_LATER),
    off("proxy_service.mongo_listen_addr", DB_LATER),
    off("proxy_service.mongo_public_addr", DB_LATER),
    off("proxy_service.ui", "the web UI comes with a later release; remove the section"),
    section("proxy_service.idp", "Wayleave is no identity provider."),
    off("proxy_service.idp.saml", "Wayleave is no SAML identity provider; set enabled: no"),
    off(
        "proxy_service.automatic_upgrades_channels",
        "managed updates come with a later release; remove the key",
    ),
];
