//! What `NO_PROXY` says: whom to reach without the proxy.

use ipnet::IpNet;
use std::net::IpAddr;
use wayleave_vocab::HostPort;

/// Most entries that are read.
const ENTRIES_MAX: usize = 1000;

/// Whom to reach directly. This machine (`localhost`, `127.0.0.1`, `::1`) always is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bypass {
    /// `*`: everybody.
    everybody: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    hosts: Hosts,
    /// Any, when none is given.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Network(IpNet),
    /// The name and everything below it.
    Domain(String),
    /// What is below the name; with the dot in front.
    Below(String),
}

impl Bypass {
    /// Reads a list with commas: `*`, `host`, `.domain`, `10.0.0.0/8`, `192.0.2.1`, each but the networks with `:port` if
    /// only that port is meant. An entry that is none of these is nobody's address and changes nothing.
    pub fn parse(text: &str) -> Self {
        let entries = text.split([',', ' ', '\t']).map(str::trim).filter(|entry| !entry.is_empty());
        let mut bypass = Self::default();
        for entry in entries.take(ENTRIES_MAX) {
            if entry == "*" {
                bypass.everybody = true;
            } else {
                bypass.rules.extend(rule(entry));
            }
        }
        bypass
    }

    /// True if the proxy is not for this target. Names are compared as written: nothing is looked up.
    pub fn has(&self, target: &HostPort) -> bool {
        let host = target.host().trim_end_matches('.').to_ascii_lowercase();
        let ip: Option<IpAddr> = host.parse().ok().map(|ip: IpAddr| ip.to_canonical());
        self.everybody
            || is_this_machine(&host)
            || self.rules.iter().any(|rule| {
                rule.port.is_none_or(|port| port == target.port())
                    && match (&rule.hosts, ip) {
                        (Hosts::Network(network), Some(ip)) => network.contains(&ip),
                        (Hosts::Network(_), None) | (Hosts::Domain(_) | Hosts::Below(_), Some(_)) => false,
                        (Hosts::Domain(name), None) => host
                            .strip_suffix(name.as_str())
                            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
                        (Hosts::Below(suffix), None) => host.ends_with(suffix.as_str()),
                    }
            })
    }
}

fn is_this_machine(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1")
}

fn rule(entry: &str) -> Option<Rule> {
    if let Ok(network) = entry.parse::<IpNet>() {
        return Some(Rule { hosts: Hosts::Network(network.trunc()), port: None });
    }
    if let Ok(ip) = entry.parse::<IpAddr>() {
        return Some(Rule { hosts: Hosts::Network(ip.to_canonical().into()), port: None });
    }
    // A leading dot is no part of a host.
    let name = entry.strip_prefix('*').unwrap_or(entry);
    let (is_below, name) = match name.strip_prefix('.') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    // Port 0 is nobody's: it stands for none.
    let address = HostPort::parse(name, Some(0)).ok()?;
    let port = Some(address.port()).filter(|port| *port != 0);
    if let Ok(ip) = address.host().parse::<IpAddr>() {
        return Some(Rule { hosts: Hosts::Network(ip.to_canonical().into()), port });
    }
    let name = address.host().trim_end_matches('.').to_ascii_lowercase();
    let hosts = if is_below { Hosts::Below(format!(".{name}")) } else { Hosts::Domain(name) };
    Some(Rule { hosts, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(list: &str, direct: &[&str], proxied: &[&str]) {
        let bypass = Bypass::parse(list);
        let has = |target: &&str| bypass.has(&target.parse().unwrap());
        assert_eq!(
            direct.iter().filter(|t| !has(t)).collect::<Vec<_>>(),
            [""; 0].iter().collect::<Vec<_>>(),
            "{list}"
        );
        assert_eq!(
            proxied.iter().filter(|t| has(t)).collect::<Vec<_>>(),
            [""; 0].iter().collect::<Vec<_>>(),
            "{list}"
        );
    }

    #[test]
    fn hosts_suffixes_networks_and_ports_are_told_apart() {
        check(
            "",
            &["localhost:1", "LOCALHOST:1", "127.0.0.1:1", "[::1]:1"],
            &["localhost.example.com:1", "10.0.0.1:1"],
        );
        check("*", &["a:1", "10.0.0.1:1"], &[]);
        check(
            "example.com",
            &["example.com:1", "EXAMPLE.com.:2", "a.b.example.com:1"],
            &["notexample.com:1", "com:1"],
        );
        check(
            ".example.com",
            &["a.example.com:1", "a.b.example.com:1"],
            &["example.com:1", "aexample.com:1"],
        );
        check("*.example.com", &["a.example.com:1"], &["example.com:1"]);
        check("example.com:443", &["example.com:443", "a.example.com:443"], &["example.com:80"]);
        check(
            "10.0.0.0/8, fd00::/8",
            &["10.255.0.1:1", "[fd00::1]:1"],
            &["11.0.0.1:1", "[fe80::1]:1", "ten.example.com:1"],
        );
        check("10.1.2.3/8", &["10.255.0.1:1"], &["11.0.0.1:1"]);
        check("192.0.2.7", &["192.0.2.7:1", "[::ffff:192.0.2.7]:1"], &["192.0.2.8:1"]);
        check("192.0.2.7:443,[2001:db8::1]:443", &["192.0.2.7:443", "[2001:db8::1]:443"], &["192.0.2.7:80"]);
        check(" a.example , ,b.example ", &["a.example:1", "b.example:1"], &["c.example:1"]);
        check("10.0.0.0/99,a b:c:d,:443,-x", &[], &["10.0.0.1:1", "c:443"]);
    }

    #[test]
    fn g_a_list_without_end_is_cut() {
        let list = "a.example,".repeat(ENTRIES_MAX * 3) + "b.example";
        assert!(!Bypass::parse(&list).has(&"b.example:1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn f_arbitrary_lists_never_panic(list in "\\PC{0,60}", host in "[a-z.]{1,12}") {
            if let Ok(target) = HostPort::parse(&host, Some(1)) {
                let _ = Bypass::parse(&list).has(&target);
            }
        }
    }
}
