//! What is wrong with a peer's address: nobody answers, somebody else does, or two proxies give the same one.

use std::fmt;
use wayleave_vocab::{HostId, HostPort};

/// What kind of problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProblemKind {
    /// Two proxies give the same address.
    DuplicateAddress,
    /// Another proxy answers at the address, now and then or always.
    OtherProxy,
    /// Nobody answers.
    Unreachable,
    /// It speaks no version that this proxy speaks.
    Version,
}

impl ProblemKind {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::DuplicateAddress => "peer_address_duplicate",
            Self::OtherProxy => "peer_address_not_its_own",
            Self::Unreachable => "peer_unreachable",
            Self::Version => "peer_version",
        }
    }
}

/// A problem of one peer, or of this proxy's own address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerProblem {
    pub(crate) kind: ProblemKind,
    pub(crate) peer: PeerName,
    pub(crate) address: String,
    /// The other proxy, where there is one.
    pub(crate) other: Option<PeerName>,
    /// What both speak, where that is the problem.
    pub(crate) detail: Option<String>,
}

/// How people know a proxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerName {
    pub(crate) id: HostId,
    pub(crate) name: String,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() { self.id.fmt(f) } else { write!(f, "{} ({})", self.name, self.id) }
    }
}

impl fmt::Display for PeerProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, peer, address, other, detail } = self;
        let other = other.as_ref().map_or_else(|| "another one".to_owned(), ToString::to_string);
        match kind {
            ProblemKind::DuplicateAddress => write!(
                f,
                "the proxies {peer} and {other} both give the peer address {address}: give each its own \
                 proxy_service.peer_public_addr, or remove the one that is gone with `way rm proxy/ID`"
            ),
            ProblemKind::OtherProxy => write!(
                f,
                "at {address}, the peer address of proxy {peer}, proxy {other} answers: a load balancer stands there, \
                 or the address is another machine's; set proxy_service.peer_public_addr of {peer} to an address of \
                 its own"
            ),
            ProblemKind::Unreachable => write!(
                f,
                "proxy {peer} does not answer at its peer address {address}: check that it runs, and the firewall \
                 between the proxies"
            ),
            ProblemKind::Version => {
                let detail = detail.as_deref().unwrap_or("no version in common");
                write!(f, "proxy {peer} at {address} is not understood: {detail}")
            }
        }
    }
}

/// Who answered at a peer's address lately.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    other: Option<HostId>,
    right_in_a_row: u32,
}

/// After so many right answers in a row a wrong one is forgotten: a balancer of a few proxies is not right that often.
const RIGHT_ANSWERS: u32 = 8;

impl Answers {
    /// Somebody answered. True when that changes what is known.
    pub(crate) fn note(&mut self, expected: HostId, answered: HostId) -> bool {
        if answered != expected {
            self.right_in_a_row = 0;
            return self.other.replace(answered) != Some(answered);
        }
        self.right_in_a_row = self.right_in_a_row.saturating_add(1);
        self.right_in_a_row >= RIGHT_ANSWERS && self.other.take().is_some()
    }

    /// The other proxy that answered there.
    pub(crate) fn other(&self) -> Option<HostId> {
        self.other
    }
}

/// Proxies that give the same address, in pairs of the first and each other.
pub(crate) fn duplicates<'a>(
    proxies: impl Iterator<Item = (PeerName, &'a str)>,
) -> Vec<(PeerName, PeerName, HostPort)> {
    let mut first_of = std::collections::BTreeMap::new();
    let mut found = Vec::new();
    for (peer, address) in proxies {
        let Ok(address) = HostPort::parse(address, None) else { continue };
        match first_of.get(&address) {
            Some(first) => found.push((PeerName::clone(first), peer, address)),
            None => {
                first_of.insert(address, peer);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerName {
        PeerName { id: HostId::from_random([n; 16]), name: format!("proxy-{n}") }
    }

    #[test]
    fn a_balancer_is_remembered_until_the_right_one_has_answered_many_times() {
        let (own, other) = (HostId::from_random([1; 16]), HostId::from_random([2; 16]));
        let mut answers = Answers::default();
        assert!(!answers.note(own, own));
        assert!(answers.note(own, other));
        assert!(!answers.note(own, other), "that is known");
        for _ in 1..RIGHT_ANSWERS {
            assert!(!answers.note(own, own));
            assert_eq!(answers.other(), Some(other));
        }
        assert!(answers.note(own, own));
        assert_eq!(answers.other(), None);
    }

    #[test]
    fn the_same_address_is_found_however_many_give_it() {
        let proxies = [
            (peer(1), "10.0.0.1:3021"),
            (peer(2), "10.0.0.2:3021"),
            (peer(3), "10.0.0.1:3021"),
            (peer(4), ""),
            (peer(5), ""),
        ];
        let found = duplicates(proxies.into_iter());
        assert_eq!(found, [(peer(1), peer(3), "10.0.0.1:3021".parse().unwrap())]);
    }

    #[test]
    fn a_problem_says_who_where_and_what_to_do() {
        let problem = PeerProblem {
            kind: ProblemKind::OtherProxy,
            peer: peer(1),
            address: "lb.example.com:3021".to_owned(),
            other: Some(peer(2)),
            detail: None,
        };
        let text = problem.to_string();
        for part in ["lb.example.com:3021", "proxy-1", "proxy-2", "peer_public_addr"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
