//! First start, later starts, and starts that must fail clearly.

use crate::harness::{Cluster, config, memory, taken_port};
use std::sync::Arc;
use wayleave_api::auth::{GetStatusRequest, PingRequest};
use wayleave_auth::{AuthService, BootstrapError, BuildError, StartError};
use wayleave_runtime::{Clock, ManualClock, SystemClock};
use wayleave_vocab::ClusterName;

#[tokio::test]
async fn a_restart_finds_the_same_cluster() {
    let cluster = Cluster::start().await;
    let first = cluster.admin().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(first.cluster_name, "demo");
    assert_eq!(first.ca_pins.len(), 1);
    assert_eq!((first.policy_generation, first.policy_counter), (1, 1));
    assert_eq!(first.cas.len(), 4);
    let (backend, clock, directory) = cluster.stop().await;
    let cluster = Cluster::start_on(backend, clock, directory, |_| {}).await;
    let second = cluster.admin().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(first, second);
}

#[tokio::test]
async fn another_cluster_name_is_refused_with_what_to_do() {
    let cluster = Cluster::start().await;
    let (backend, clock, directory) = cluster.stop().await;
    let mut config = config(directory.path());
    config.cluster_name = ClusterName::parse("other").unwrap();
    let error = AuthService::build(config, backend, clock).await.err().unwrap();
    assert!(matches!(error, BuildError::Bootstrap(BootstrapError::OtherCluster { .. })), "{error}");
    assert!(error.to_string().contains("cluster_name to demo"), "{error}");
}

#[tokio::test]
async fn of_two_first_starts_one_makes_the_cluster() {
    let clock = Arc::new(ManualClock::new(SystemClock::new().wall()));
    let backend = memory(&clock);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = tokio::join!(
        AuthService::build(config(one.path()), backend.clone(), clock.clone()),
        AuthService::build(config(two.path()), backend.clone(), clock.clone()),
    );
    let (first, second) = (first.unwrap().local_api(), second.unwrap().local_api());
    assert_eq!(first.ca_pins(), second.ca_pins());
    assert_ne!(first.host_id(), second.host_id());
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let (_listener, address) = taken_port().await;
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(SystemClock::new().wall()));
    let backend = memory(&clock);
    let mut config = config(directory.path());
    config.listen_address = address;
    let error = AuthService::build(config, backend, clock).await.unwrap().bind().await.err().unwrap();
    assert!(matches!(error, StartError::Bind(_)));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn m_private_keys_are_not_among_what_is_listed() {
    let cluster = Cluster::start().await;
    let authorities = cluster
        .admin()
        .list_resources(wayleave_api::auth::ListResourcesRequest {
            kind: "cert_authority".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .json;
    assert_eq!(authorities.len(), 4);
    assert!(authorities.iter().all(|json| !json.contains("PRIVATE")), "{authorities:?}");
}

#[tokio::test]
async fn a_ping_tells_name_and_pins() {
    let cluster = Cluster::start().await;
    let pong = cluster.public().ping(PingRequest {}).await.unwrap().into_inner();
    assert_eq!(pong.cluster_name, "demo");
    assert_eq!(pong.ca_pins, cluster.api.ca_pins());
}

#[tokio::test]
async fn a_damaged_authority_is_a_clear_error() {
    let cluster = Cluster::start().await;
    let (backend, clock, directory) = cluster.stop().await;
    let key = "/authorities/user".parse().unwrap();
    backend.put(&key, "nonsense".into(), None).await.unwrap();
    let error = AuthService::build(config(directory.path()), backend, clock).await.err().unwrap();
    assert!(error.to_string().contains("user certificate authority are damaged"), "{error}");
}
