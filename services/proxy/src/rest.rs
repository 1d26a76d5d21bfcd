//! The web API without a session: what the cluster is, and whether this proxy is well.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use std::sync::Arc;
use wayleave_keystore::TrustStore;
use wayleave_vocab::HostPort;

/// What the handlers know.
pub(crate) struct RestState {
    pub(crate) trust: TrustStore,
    pub(crate) proxy_id: String,
    pub(crate) public_addresses: Vec<HostPort>,
    pub(crate) ssh_port: Option<u16>,
    pub(crate) ssh_public_addresses: Vec<HostPort>,
}

/// The answer of `/webapi/ping`.
#[derive(Serialize)]
struct Ping {
    cluster_name: Option<String>,
    server_version: &'static str,
    proxy_id: String,
    public_addresses: Vec<HostPort>,
    ssh_port: Option<u16>,
    /// Where clients reach the SSH entry, for `ssh -J`.
    ssh_public_addresses: Vec<HostPort>,
    /// Worth something only to who verified this proxy's web certificate by a public authority.
    ca_pins: Vec<String>,
}

/// The routes of the web API. Every one is open to anybody and gives away nothing that a TLS handshake does not.
pub(crate) fn router(state: Arc<RestState>) -> Router {
    Router::new()
        .route("/webapi/ping", get(ping))
        .route("/webapi/find", get(ping))
        .fallback(not_found)
        .with_state(state)
}

async fn ping(State(state): State<Arc<RestState>>) -> impl IntoResponse {
    Json(Ping {
        cluster_name: state.trust.cluster().map(|name| name.to_string()),
        server_version: env!("CARGO_PKG_VERSION"),
        proxy_id: state.proxy_id.clone(),
        public_addresses: state.public_addresses.clone(),
        ssh_port: state.ssh_port,
        ssh_public_addresses: state.ssh_public_addresses.clone(),
        ca_pins: state.trust.host_pins(),
    })
}

async fn not_found() -> impl IntoResponse {
    (
        StatusCode::NOT_FOUND,
        "There is nothing here. The web interface is not part of this release; use `way`.\n",
    )
}
