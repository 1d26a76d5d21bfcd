//! Peers that are silent, wrong, too many or forwarded.

use crate::harness::{Cluster, HOUR, join_request, refused, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_api::auth::{GetStatusRequest, LoginRequest, PingRequest, SearchEventsRequest};
use wayleave_api::{ALPN_AUTH, ALPN_FORWARD};
use wayleave_auth::RateLimit;
use wayleave_dial::{ForwardHeader, VERSION};
use wayleave_keystore::{Credentials, client_config, pinned_client_config};
use wayleave_net::{connect_tls, tls_over, write_message};
use wayleave_vocab::{HostPort, SystemRole};

#[tokio::test]
async fn n_strangers_are_limited_by_address() {
    let cluster = Cluster::start_with(|config| {
        config.limits.attempts = RateLimit { per_minute: 20, burst: 3 };
        config.limits.questions = RateLimit { per_minute: 20, burst: 5 };
    })
    .await;
    let mut public = cluster.public();
    for _ in 0..3 {
        let (request, _) = join_request("x", "y", &["Node"], "n");
        refused(public.join(request).await, Code::PermissionDenied);
    }
    let told = refused(public.login(LoginRequest::default()).await, Code::ResourceExhausted);
    assert!(told.contains("try again in"), "{told}");
    for _ in 0..5 {
        public.ping(PingRequest {}).await.unwrap();
    }
    refused(public.ping(PingRequest {}).await, Code::ResourceExhausted);
    // Whoever has a certificate is not concerned.
    cluster.admin().get_status(GetStatusRequest {}).await.unwrap();
    cluster.clock.advance(std::time::Duration::from_secs(60));
    public.ping(PingRequest {}).await.unwrap();
}

/// The type of record that says why.
const ALERT: u8 = 21;

/// What each kind of broken peer sends before it falls silent.
const BROKEN: [&[u8]; 5] =
    [b"", b"\x16\x03\x01\x00\xff\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", &[0xff; 64]];

#[tokio::test]
async fn a_silent_and_broken_peers_delay_nobody() {
    let cluster = Cluster::start().await;
    let mut held = Vec::new();
    for bytes in BROKEN.iter().cycle().take(50) {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        held.push(stream);
    }
    cluster.public().ping(PingRequest {}).await.unwrap();
    cluster.admin().get_status(GetStatusRequest {}).await.unwrap();
}

/// Who is refused can read the alert, also when he has sent more than was read.
#[tokio::test]
async fn a_refusal_is_no_reset() {
    let cluster = Cluster::start().await;
    for sent in [b"GET / HTTP/1.1\r\n\r\n".repeat(4000), vec![0xff; 64 * 1024]] {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        let mut heard = Vec::new();
        within(stream.read_to_end(&mut heard)).await.expect("no reset");
        assert_eq!(heard.first(), Some(&ALERT), "{heard:?}");
    }
}

#[tokio::test]
async fn a_strangers_have_few_slots_and_the_known_have_theirs() {
    let cluster = Cluster::start_with(|config| config.limits.strangers_max = 4).await;
    let mut admin = cluster.admin();
    admin.get_status(GetStatusRequest {}).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(b"\x16").await.unwrap();
        held.push(stream);
    }
    // All slots are taken: the next one is closed at once.
    let mut late = TcpStream::connect(cluster.address).await.unwrap();
    assert_eq!(within(late.read(&mut [0; 1])).await.unwrap_or(0), 0);
    admin.get_status(GetStatusRequest {}).await.unwrap();
    drop(held);
    within(async { while cluster.public().ping(PingRequest {}).await.is_err() {} }).await;
}

#[tokio::test]
async fn f_requests_that_are_too_large_or_no_requests_are_refused() {
    let cluster = Cluster::start().await;
    let login = LoginRequest { password: "x".repeat(5 * 1024 * 1024), ..Default::default() };
    refused(cluster.public().login(login).await, Code::OutOfRange);
    cluster.public().ping(PingRequest {}).await.unwrap();
}

/// A channel whose connections a proxy forwards, as one that is at `client`.
async fn forwarded(
    cluster: &Cluster,
    outer: std::sync::Arc<rustls::ClientConfig>,
    header: &ForwardHeader,
) -> Result<tonic::transport::Channel, tonic::transport::Error> {
    let inner = {
        let pins = cluster.api.ca_pins().join(",").parse().unwrap();
        pinned_client_config(&pins, SystemRole::Auth, &[ALPN_AUTH]).unwrap()
    };
    let address = HostPort::from_socket(cluster.address);
    let header = header.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (outer, inner, address, header) = (outer.clone(), inner.clone(), address.clone(), header.clone());
        async move {
            let mut stream = connect_tls(&address, outer).await.map_err(std::io::Error::other)?;
            write_message(&mut stream, &header).await.map_err(std::io::Error::other)?;
            let stream = tls_over(&address, inner, stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    tonic::transport::Endpoint::from_static("http://auth").connect_with_connector(connector).await
}

fn header(client: &str) -> ForwardHeader {
    ForwardHeader { v: VERSION, client_address: client.parse().unwrap() }
}

#[tokio::test]
async fn a_proxy_forwards_clients_with_their_addresses() {
    let cluster = Cluster::start_with(|config| {
        config.limits.attempts = RateLimit { per_minute: 1, burst: 1 };
    })
    .await;
    let proxy = cluster.join(&["Proxy"], "p-1").await;
    let credentials =
        Credentials::from_pem(&proxy.answer.certificates[1].tls_chain_pem, &proxy.keys[1].tls.to_pem())
            .unwrap();
    let outer =
        client_config(&credentials, &cluster.trust(), SystemRole::Auth, None, &[ALPN_FORWARD]).unwrap();
    for client in ["192.0.2.7:50000", "192.0.2.8:50000"] {
        let mut public =
            PublicClient::new(forwarded(&cluster, outer.clone(), &header(client)).await.unwrap());
        let (request, _) = join_request("x", "y", &["Node"], "n");
        refused(public.join(request).await, Code::PermissionDenied);
        let (request, _) = join_request("x", "y", &["Node"], "n");
        refused(public.join(request).await, Code::ResourceExhausted);
    }
    let events =
        cluster.admin().search_events(SearchEventsRequest::default()).await.unwrap().into_inner().json;
    assert!(events.iter().any(|event| event.contains("192.0.2.7:50000")), "{events:?}");
    let other = ForwardHeader { v: 9, ..header("192.0.2.9:1") };
    assert!(forwarded(&cluster, outer, &other).await.is_err());
}

#[tokio::test]
async fn o_only_a_proxy_forwards_clients() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    let credentials =
        Credentials::from_pem(&node.answer.certificates[1].tls_chain_pem, &node.keys[1].tls.to_pem())
            .unwrap();
    for credentials in [credentials, Credentials::empty()] {
        let outer =
            client_config(&credentials, &cluster.trust(), SystemRole::Auth, None, &[ALPN_FORWARD]).unwrap();
        assert!(forwarded(&cluster, outer, &header("192.0.2.7:50000")).await.is_err());
    }
    let _ = HOUR;
}
