//! The Proxy Service: `proxy_service:`.

use crate::section::Section;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use wayleave_vocab::{HostPort, ResourceName};

/// The Proxy Service.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The one public port.
    pub web_listen_addr: SocketAddr,
    /// What clients and agents dial; the load balancer if there is one.
    pub public_addrs: Vec<HostPort>,
    /// SSH for stock clients; closed when `None`.
    pub ssh: Option<ProxySshConfig>,
    /// Where machines publish themselves by `ssh -R`; closed when `None`.
    pub tunnel: Option<ProxySshConfig>,
    /// What other proxies dial.
    pub peer: PeerConfig,
    /// Certificates for the public port; a certificate of the cluster's own CA when empty.
    pub https_keypairs: Vec<KeyPairFiles>,
    /// How often they are read again; never when `None`.
    pub https_keypairs_reload_interval: Option<Duration>,
    /// Whether a load balancer announces the client's address.
    pub proxy_protocol: ProxyProtocol,
    /// True when an HTTP load balancer's `X-Forwarded-For` is believed.
    pub trust_x_forwarded_for: bool,
    /// Where the proxy stands; agents prefer different zones.
    pub zone: Option<ResourceName>,
}

/// An SSH entry for stock clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxySshConfig {
    /// Where it listens.
    pub listen_addr: SocketAddr,
    /// What clients dial.
    pub public_addrs: Vec<HostPort>,
}

/// The peering entry, opened only while the tunnel strategy is `proxy_peering`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where it listens.
    pub listen_addr: SocketAddr,
    /// What peers dial; a guessed address of the host with the listening port when `None`.
    pub public_addr: Option<HostPort>,
    /// Peers are told of routes directly, besides the way through Auth.
    pub pushes_routes: bool,
}

/// A certificate and its key, as absolute paths of PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// The private key.
    pub key_file: PathBuf,
    /// The certificate and its chain.
    pub cert_file: PathBuf,
}

/// Whether PROXY protocol headers are taken on the public ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A header is refused from everybody.
    Off,
    /// One is required from these networks (never empty) and refused from others.
    RequiredFrom(Vec<IpNet>),
}

/// Reads the section if it is there and on.
pub(crate) fn read(section: &Section<'_>) -> Option<ProxyConfig> {
    let web_listen_addr = section.listen("web_listen_addr");
    let public_addrs = section.addresses("public_addr", port_of(web_listen_addr));
    let ssh = read_ssh(section, "listen_addr", "ssh_public_addr", 3023);
    let tunnel = read_ssh(section, "tunnel_listen_addr", "tunnel_public_addr", 3024);
    let peer = read_peer(section);
    let https_keypairs = section.sections("https_keypairs").iter().map(read_key_pair).collect::<Vec<_>>();
    let reload = section.duration("https_keypairs_reload_interval");
    let proxy_protocol = read_proxy_protocol(section);
    let trust_x_forwarded_for = section.flag("trust_x_forwarded_for");
    let zone = section.name("zone", ResourceName::parse);
    Some(ProxyConfig {
        web_listen_addr: web_listen_addr?,
        public_addrs,
        ssh,
        tunnel,
        peer: peer?,
        https_keypairs: https_keypairs.into_iter().collect::<Option<Vec<_>>>()?,
        https_keypairs_reload_interval: Some(reload?).filter(|interval| !interval.is_zero()),
        proxy_protocol: proxy_protocol?,
        trust_x_forwarded_for: trust_x_forwarded_for?,
        zone,
    })
}

/// The port that an address without one means; a port that the system chooses is none.
fn port_of(listen_addr: Option<SocketAddr>) -> Option<u16> {
    listen_addr.map(|address| address.port()).filter(|port| *port != 0)
}

fn read_ssh(
    section: &Section<'_>,
    listen: &'static str,
    public: &'static str,
    port: u16,
) -> Option<ProxySshConfig> {
    let listen_addr = section.listen(listen);
    let public_addrs = section.addresses(public, port_of(listen_addr).or(Some(port)));
    if section.place_of(public).is_some() && section.place_of(listen).is_none() {
        let expected = format!("{listen} beside it, usually 0.0.0.0:{port}: without it nothing listens");
        section.refuse(public, format!("{public} without {listen}"), expected);
    }
    Some(ProxySshConfig { listen_addr: listen_addr?, public_addrs })
}

fn read_peer(section: &Section<'_>) -> Option<PeerConfig> {
    let listen_addr = section.listen("peer_listen_addr");
    let public_addr = section.address("peer_public_addr", port_of(listen_addr).or(Some(3021)));
    if section.place_of("peer_public_addr").is_some() && section.place_of("peer_listen_addr").is_none() {
        let expected = "peer_listen_addr beside it, usually 0.0.0.0:3021";
        section.refuse("peer_public_addr", "peer_public_addr without peer_listen_addr", expected);
    }
    let route_push = section.flag("peer_route_push");
    Some(PeerConfig { listen_addr: listen_addr?, public_addr, pushes_routes: route_push? })
}

fn read_key_pair(section: &Section<'_>) -> Option<KeyPairFiles> {
    let key_file = section.require("key_file", section.path("key_file"));
    let cert_file = section.require("cert_file", section.path("cert_file"));
    Some(KeyPairFiles { key_file: key_file?, cert_file: cert_file? })
}

fn read_proxy_protocol(section: &Section<'_>) -> Option<ProxyProtocol> {
    let is_on = section.flag("proxy_protocol");
    let networks = section.networks("proxy_protocol_from");
    let has_networks = section.place_of("proxy_protocol_from").is_some();
    match (is_on?, networks.is_empty()) {
        (true, false) => Some(ProxyProtocol::RequiredFrom(networks)),
        // Networks that could not be read are reported already.
        (true, true) if has_networks && !section.is_empty_list("proxy_protocol_from") => None,
        (true, true) => {
            let expected = "proxy_protocol_from with the networks of the load balancers: \
                            a header from anybody would let anybody choose an address";
            section.refuse("proxy_protocol_from", "no network", expected);
            None
        }
        (false, _) if has_networks => {
            let expected = "proxy_protocol: on, or no networks";
            section.refuse("proxy_protocol_from", "networks with proxy_protocol off", expected);
            None
        }
        (false, _) => Some(ProxyProtocol::Off),
    }
}
