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
