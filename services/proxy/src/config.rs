//! What a proxy needs to know at start.

use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;
use wayleave_keystore::{Credentials, TrustStore};
use wayleave_net::AddressBook;
use wayleave_vocab::{HostId, HostPort, NodeName};

/// Configuration and identity of one proxy.
pub struct ProxyConfig {
    /// The id that Auth assigned.
    pub host_id: HostId,
    /// The name it is shown under.
    pub name: NodeName,
    /// The public TLS port.
    pub web_listen: SocketAddr,
    /// SSH for plain `ssh -J`, when configured.
    pub ssh_listen: Option<SocketAddr>,
    /// Where clients reach it, as the ping tells.
    pub ssh_public: Vec<HostPort>,
    /// Where machines without an agent publish themselves by `ssh -R`, when configured.
    pub tunnel_listen: Option<SocketAddr>,
    /// The peer service. It listens while the cluster's strategy is `proxy_peering`, or with `tunnel_listen`.
    pub peer_listen: SocketAddr,
    /// Where peers reach this one proxy; `None`: the host of `public_addresses`, else the listening address.
    pub peer_public: Option<HostPort>,
    /// Peers are told of routes directly, besides the way through Auth.
    pub pushes_routes: bool,
    /// Where clients and agents reach the cluster.
    pub public_addresses: Vec<HostPort>,
    /// Where agents reach this one proxy, if it is addressable by itself.
    pub direct_address: Option<HostPort>,
    /// Failure zone, for the spread of tunnels.
    pub zone: String,
    /// Whether a load balancer puts PROXY headers in front.
    pub proxy_protocol: ProxyProtocol,
    /// The web certificate; `None`: one of the cluster's own host authority.
    pub web: Option<Credentials>,
    /// What this proxy presents inside the cluster.
    pub tls: Credentials,
    /// Whom it believes.
    pub trust: TrustStore,
    /// Where Auth is.
    pub auth_addresses: AddressBook,
    /// Connections at a time, for each listener.
    pub connections_max: usize,
    /// How long a drain waits for streams.
    pub drain_timeout: Duration,
}

/// Whether PROXY headers are expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Never; a header is refused as the malformed hello it is.
    Off,
    /// Required from these networks; connections from elsewhere are refused.
    RequiredFrom(Vec<IpNet>),
}
