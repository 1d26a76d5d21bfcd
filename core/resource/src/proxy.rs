//! Proxies, as they registered themselves.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::Serialize;
use wayleave_vocab::{HostId, HostPort};

/// A Proxy Service. The name of the resource is the host id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The id that Auth assigned at join.
    pub host_id: HostId,
    /// Labels, expiry, revision, description.
    pub metadata: Metadata,
    /// What the proxy says about itself.
    pub spec: ProxySpec,
    /// How it stands with its peers.
    pub status: ProxyStatus,
}

/// How a proxy stands, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProxyStatus {
    /// What is wrong with the addresses and identities of its peers, and what to do; at most [`PROBLEMS_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Most problems that one proxy tells.
pub const PROBLEMS_MAX: usize = 32;

impl ProxyStatus {
    /// True when there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let problems: Option<Vec<String>> = fields.or_default("problems", |at| at.each(At::line_of_text));
        fields.finish();
        let problems = problems?;
        if problems.len() > PROBLEMS_MAX {
            return at.fail(format_args!("more than {PROBLEMS_MAX} problems"));
        }
        Some(Self { problems })
    }
}

/// What a proxy says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxySpec {
    /// The machine's name.
    pub hostname: String,
    /// Where clients and agents reach it, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_addrs: Vec<HostPort>,
    /// Where its peers reach it; absent without peering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_addr: Option<HostPort>,
    /// The version of the daemon.
    pub version: String,
}

impl ProxySpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let hostname = fields.required("hostname", At::line_of_text);
        let public_addrs = fields.or_default("public_addrs", |at| at.each_of_one_or_more(At::parse));
        let peer_addr = fields.optional("peer_addr", At::parse);
        let version = fields.or_default("version", At::line_of_text);
        Some(Self {
            hostname: hostname?,
            public_addrs: public_addrs?,
            peer_addr: peer_addr?,
            version: version?,
        })
    }
}
