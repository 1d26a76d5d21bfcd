//! Joining an Auth Service whose clock may be wrong.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wayleave_api::ALPN_AUTH;
use wayleave_api::auth::public_server::{Public, PublicServer};
use wayleave_api::auth::{
    AcceptInviteRequest, BeginInviteRequest, BeginInviteResponse, JoinRequest, JoinResponse, LoginRequest,
    PingRequest, PingResponse, UserCertificates,
};
use wayleave_identity::{HostPrincipal, Principal};
use wayleave_instance::{Instance, InstanceConfig, InstanceError, JoinToken};
use wayleave_keystore::{
    ClientAuth, Credentials, Pins, TlsKey, TrustStore, X509Authority, X509Request, pin_of_certificate,
    server_config,
};
use wayleave_net::{AddressBook, ClockComplaint};
use wayleave_rpc::{Caller, RpcStream};
use wayleave_runtime::{Clock, SystemClock, TaskGroup};
use wayleave_vocab::{ClusterName, HostId, HostPort, NodeName, Secret, SystemRole};

const HOUR: Duration = Duration::from_secs(3600);

/// An Auth Service that tells its time and lets nobody join.
#[derive(Clone, Default)]
struct FakeAuth {
    /// How far its clock is ahead.
    ahead_ms: Arc<AtomicU64>,
    joins: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Public for FakeAuth {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let now_ms = SystemClock::new().wall().as_ms() + self.ahead_ms.load(Ordering::SeqCst);
        Ok(Response::new(PingResponse { now_ms, ..PingResponse::default() }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.joins.fetch_add(1, Ordering::SeqCst);
        Err(Status::permission_denied("not this one"))
    }

    async fn login(&self, _: Request<LoginRequest>) -> Result<Response<UserCertificates>, Status> {
        Err(Status::unimplemented("login"))
    }

    async fn begin_invite(
        &self,
        _: Request<BeginInviteRequest>,
    ) -> Result<Response<BeginInviteResponse>, Status> {
        Err(Status::unimplemented("invitations"))
    }

    async fn accept_invite(
        &self,
        _: Request<AcceptInviteRequest>,
    ) -> Result<Response<UserCertificates>, Status> {
        Err(Status::unimplemented("invitations"))
    }
}

impl FakeAuth {
    /// Gives where it is, and its pin.
    async fn start(&self, tasks: &TaskGroup) -> (HostPort, Pins) {
        let (credentials, pins) = auth_credentials();
        let alpn = [ALPN_AUTH];
        let tls = server_config(&credentials, &TrustStore::empty(), ClientAuth::None, &alpn).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort::from_socket(listener.local_addr().unwrap());
        let (sender, streams) = tokio::sync::mpsc::channel(8);
        tasks.spawn("auth", async move {
            while let Ok((stream, address)) = listener.accept().await {
                let Ok(tls) = TlsAcceptor::from(tls.clone()).accept(stream).await else { continue };
                let caller = Caller { principal: None, address };
                let _ = sender.send(RpcStream::new(Box::new(tls), caller)).await;
            }
        });
        let serving = tonic::transport::Server::builder()
            .add_service(PublicServer::new(self.clone()))
            .serve_with_incoming(ReceiverStream::new(streams).map(Ok::<_, Infallible>));
        tasks.spawn("auth api", async move { drop(serving.await) });
        (address, pins)
    }
}

fn auth_credentials() -> (Credentials, Pins) {
    let (now, key) = (SystemClock::new().wall(), TlsKey::generate().unwrap());
    let authority = X509Authority::generate("host", [1; 16], now.before(HOUR)).unwrap();
    let principal = Principal::Host(HostPrincipal {
        host_id: HostId::from_random([1; 16]),
        cluster: ClusterName::parse("demo").unwrap(),
        system_roles: [SystemRole::Auth].into(),
        not_after: now.after(HOUR),
    });
    let leaf = authority.issue(&X509Request {
        principal: &principal,
        common_name: "auth",
        spki_der: &key.spki_der(),
        dns_names: &[],
        ip_addresses: &[],
        not_before: now.before(HOUR),
        not_after: now.after(HOUR),
        server: true,
        client: true,
        serial: [2; 16],
    });
    let chain = leaf.unwrap() + authority.certificate_pem();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
    let pins = pin_of_certificate(&root).unwrap().parse().unwrap();
    (Credentials::from_pem(&chain, &key.to_pem()).unwrap(), pins)
}

/// Nothing is asked for that would not be valid here; once the clocks agree the process joins as if it had just begun.
#[tokio::test]
async fn d_a_process_joins_no_auth_service_whose_clock_is_ahead() {
    let (auth, tasks, directory) = (FakeAuth::default(), TaskGroup::new(), tempfile::TempDir::new().unwrap());
    let (address, pins) = auth.start(&tasks).await;
    let open = async || {
        let config = InstanceConfig {
            data_dir: directory.path().to_owned(),
            node_name: NodeName::parse("web-1").unwrap(),
            roles: [SystemRole::Node].into(),
            token: Some(JoinToken::parse(&Secret::new("a.b".to_owned()))),
            pins: pins.clone(),
            addresses: AddressBook::new(vec![address.clone()]),
            additional_principals: Vec::new(),
        };
        Instance::open(config, &SystemClock::new()).await.err().unwrap()
    };
    auth.ahead_ms.store(600_000, Ordering::SeqCst);
    let error = open().await;
    let InstanceError::Clock(ClockComplaint::AuthAhead { by }) = error else { panic!("{error:?}") };
    assert!((590..=600).contains(&by.as_secs()), "{by:?}");
    assert_eq!(auth.joins.load(Ordering::SeqCst), 0);

    auth.ahead_ms.store(40_000, Ordering::SeqCst);
    let error = open().await;
    assert!(matches!(&error, InstanceError::Refused(why) if why == "not this one"), "{error:?}");
    assert_eq!(auth.joins.load(Ordering::SeqCst), 1);
}
