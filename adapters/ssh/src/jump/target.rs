//! Where a jump may go: to a node by its registered name, and nowhere else.

use std::net::IpAddr;
use wayleave_vocab::{ClusterName, NodeName};

/// Ports that mean "the SSH of that node": unset, ssh's default, and the one that generated configurations use.
const PORTS: [u16; 3] = [0, 22, 3022];

/// Why a target is no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("{0} is an address: nodes are reached by name, see `way ls`")]
    Address(String),
    #[error("port {0} is not reachable here: nodes are reached on port 22")]
    Port(u16),
    #[error("{0:?} is no name of a node")]
    Name(String),
}

/// The node that a `direct-tcpip` channel asks for. Whether there is one is the dialer's to say: nothing is ever
/// looked up in DNS.
pub(super) fn parse_target(host: &str, port: u16, cluster: &ClusterName) -> Result<NodeName, TargetError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return Err(TargetError::Address(bare.to_owned()));
    }
    if !PORTS.contains(&port) {
        return Err(TargetError::Port(port));
    }
    let name = host.strip_suffix(cluster.as_str()).and_then(|rest| rest.strip_suffix('.')).unwrap_or(host);
    NodeName::parse(name).map_err(|_| TargetError::Name(host.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_targets() {
        for port in PORTS {
            check("web-1", port, Ok("web-1"));
        }
        check("web-1.demo", 22, Ok("web-1"));
        check("web-1.example.com", 22, Ok("web-1.example.com"));
        check("6b7b3c5e-1f5d-4c43-9f4a-0a3b9f3f8f10", 22, Ok("6b7b3c5e-1f5d-4c43-9f4a-0a3b9f3f8f10"));
    }

    #[test]
    fn l_addresses_other_ports_and_what_is_no_name_are_refused() {
        for address in ["127.0.0.1", "10.0.0.1", "::1", "[::1]", "::ffff:127.0.0.1", "169.254.169.254"] {
            check(address, 22, Err(TargetError::Address(address.trim_matches(['[', ']']).to_owned())));
        }
        for port in [1, 23, 80, 443, 3023, 3025, 65535] {
            check("web-1", port, Err(TargetError::Port(port)));
        }
        for name in
            ["", ".", "-oProxyCommand=x", "a/b", "a b", "web-1.", "web..demo", ".demo", "fe80::1%eth0"]
        {
            check(name, 22, Err(TargetError::Name(name.to_owned())));
        }
    }

    fn check(host: &str, port: u16, expected: Result<&str, TargetError>) {
        let cluster = ClusterName::parse("demo").unwrap();
        let parsed = parse_target(host, port, &cluster);
        assert_eq!(parsed.as_ref().map(NodeName::as_str), expected.as_ref().copied(), "{host:?} {port}");
    }
}
