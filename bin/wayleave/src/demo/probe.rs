//! One dial of a node through a chosen proxy, with the way that it took and how long each part of it lasted.

use anyhow::{Context, bail};
use std::time::{Duration, Instant};
use wayleave_api::ALPN_DIAL;
use wayleave_client::identity_file::Identity;
use wayleave_dial::{DialRequest, DialResponse, DialRoute, DialTarget, VERSION};
use wayleave_keystore::client_config;
use wayleave_net::{DIAL_MESSAGE_TIMEOUT, connect_tls, read_message, write_message};
use wayleave_runtime::random_bytes;
use wayleave_vocab::{HostPort, NodeName, SystemRole, TraceId};

/// A dial that reached its agent.
pub(super) struct Dialled {
    pub(super) route: DialRoute,
    /// TCP and TLS to the ingress proxy.
    pub(super) connected: Duration,
    /// From the request to the agent's answer.
    pub(super) answered: Duration,
}

pub(super) async fn dial(identity: &Identity, proxy: &HostPort, node: &str) -> anyhow::Result<Dialled> {
    let began = Instant::now();
    let tls =
        client_config(identity.credentials(), &identity.trust(), SystemRole::Proxy, None, &[ALPN_DIAL])?;
    let mut stream = connect_tls(proxy, tls).await?;
    let connected = began.elapsed();
    let request = DialRequest {
        v: VERSION,
        target: DialTarget::Ssh { node: NodeName::parse(node)? },
        host_id: None,
        client_address: None,
        trace_id: TraceId::from_random(random_bytes()),
        from_peer: false,
        report_route: true,
        resume: None,
        needs: std::collections::BTreeSet::new(),
    };
    let asked = Instant::now();
    write_message(&mut stream, &request).await?;
    let response: DialResponse = read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await?;
    match response {
        DialResponse::Established { route } => {
            let route = route.context("the proxy did not tell the way")?;
            Ok(Dialled { route, connected, answered: asked.elapsed() })
        }
        DialResponse::Refused { refusal } => bail!("{refusal}"),
    }
}
