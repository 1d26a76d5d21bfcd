//! Web certificates of files: by name, read again, and as what vouches for the cluster to a process that has no pin.

use crate::agent::Agent;
use crate::cluster::{Cluster, PATIENCE, Proxy};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wayleave_keystore::ServerName;
use wayleave_proxy::{WebFiles, WebKeyPair};
use wayleave_rpc::{PublicPinsError, public_pins};
use wayleave_vocab::HostId;

/// Tells the test that runs itself again that it is the one that runs.
const ASKED: &str = "WAYLEAVE_TEST_ASKS";

/// An authority such as systems know them.
struct Public {
    certificate: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Public {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { certificate: rcgen::CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Writes a certificate and its key.
    fn issue(&self, directory: &Path, file: &str, names: &[&str]) -> WebKeyPair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.certificate).unwrap();
        let pair = WebKeyPair {
            cert_file: directory.join(format!("{file}.crt")),
            key_file: directory.join(format!("{file}.key")),
        };
        std::fs::write(&pair.key_file, key.serialize_pem()).unwrap();
        std::fs::write(&pair.cert_file, certificate.pem()).unwrap();
        pair
    }

    fn client(&self) -> Arc<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

async fn proxy(cluster: &Cluster, files: WebFiles) -> Proxy {
    cluster.proxy_with(cluster.config(1), |service| service.web_files(files).unwrap()).await
}

/// The certificate that is served for a name, when a browser believes it.
async fn served(proxy: &Proxy, public: &Public, name: &'static str) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect((proxy.web.host(), proxy.web.port())).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let tls = TlsConnector::from(public.client()).connect(name, stream).await?;
    Ok(tls.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

fn leaf(path: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

#[tokio::test]
async fn each_name_gets_its_certificate_and_new_files_are_taken() {
    let (cluster, public, directory) = (Cluster::start().await, Public::new(), TempDir::new().unwrap());
    let first = public.issue(directory.path(), "first", &["proxy.example.com"]);
    let second = public.issue(directory.path(), "second", &["*.apps.example.com"]);
    let files = WebFiles::open(vec![first.clone(), second.clone()], Some(Duration::from_millis(20))).unwrap();
    let proxy = proxy(&cluster, files).await;
    let got = served(&proxy, &public, "proxy.example.com").await.unwrap();
    assert_eq!(got, leaf(&first.cert_file));
    let got = served(&proxy, &public, "x.apps.example.com").await.unwrap();
    assert_eq!(got, leaf(&second.cert_file));
    assert!(served(&proxy, &public, "elsewhere.example.com").await.is_err(), "it gets the first");
    // A half-written renewal leaves the old ones; a whole one is served.
    std::fs::write(&first.cert_file, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let got = served(&proxy, &public, "x.apps.example.com").await.unwrap();
    assert_eq!(got, leaf(&second.cert_file));
    public.issue(directory.path(), "first", &["proxy.example.com"]);
    let taken = async {
        while served(&proxy, &public, "proxy.example.com").await.unwrap() != leaf(&first.cert_file) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("the new certificate is served");
    // What agents see is the cluster's own certificate as before.
    let _agent = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
}

#[tokio::test]
async fn web_is_served_over_tls_1_2_and_1_3() {
    let (cluster, public, directory) = (Cluster::start().await, Public::new(), TempDir::new().unwrap());
    let pair = public.issue(directory.path(), "web", &["localhost"]);
    let proxy = proxy(&cluster, WebFiles::open(vec![pair], None).unwrap()).await;
    for version in rustls::ALL_VERSIONS {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(public.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        let tls = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
        let stream = TcpStream::connect((proxy.web.host(), proxy.web.port())).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = TlsConnector::from(tls).connect(name, stream).await.unwrap();
        tls.write_all(b"GET /webapi/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("sha256:"), "{answer}");
        assert!(answer.contains("\"ssh_public_addresses\":[\"jump.example.com:3023\"]"), "{answer}");
    }
}

#[test]
fn files_that_cannot_be_served_are_refused_by_name() {
    let (public, directory) = (Public::new(), TempDir::new().unwrap());
    let (good, other) =
        (public.issue(directory.path(), "a", &["a"]), public.issue(directory.path(), "b", &["b"]));
    let mixed = WebKeyPair { cert_file: good.cert_file.clone(), key_file: other.key_file.clone() };
    let missing = WebKeyPair { cert_file: PathBuf::from("/nonexistent"), key_file: good.key_file.clone() };
    assert!(WebFiles::open(Vec::new(), None).is_err());
    assert!(WebFiles::open(vec![good, mixed], None).is_err());
    let error = WebFiles::open(vec![missing], None).err().unwrap();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

/// Pins are learned under an authority of the system's, and under no other. The system's authorities are a matter of the
/// environment: the test runs itself again in one.
#[tokio::test]
async fn d_pins_are_believed_only_when_a_public_authority_vouches_for_the_proxy() {
    if let Ok(asked) = std::env::var(ASKED) {
        let pins = public_pins(&asked.parse().unwrap()).await;
        match std::env::var("SSL_CERT_FILE").unwrap().contains("public") {
            true => assert_eq!(format!("{:?}", pins.unwrap()), std::env::var("PINS").unwrap()),
            false => assert!(matches!(pins, Err(PublicPinsError::Untrusted(_))), "{pins:?}"),
        }
        return;
    }
    let (cluster, directory) = (Cluster::start().await, TempDir::new().unwrap());
    let (public, other) = (Public::new(), Public::new());
    let pair = public.issue(directory.path(), "web", &["localhost"]);
    let proxy = proxy(&cluster, WebFiles::open(vec![pair], None).unwrap()).await;
    let pins: wayleave_keystore::Pins = cluster.authorities.trust.host_pins().join(",").parse().unwrap();
    for (file, authority, address) in [
        ("public.pem", &public, format!("localhost:{}", proxy.web.port())),
        ("private.pem", &other, format!("localhost:{}", proxy.web.port())),
        // The right authority, but for another name.
        ("private-name.pem", &public, proxy.web.to_string()),
    ] {
        let roots = directory.path().join(file);
        std::fs::write(&roots, authority.pem()).unwrap();
        let asked = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "web_certificates::d_pins_are_believed_only_when_a_public_authority_vouches_for_the_proxy",
            ])
            .env(ASKED, address)
            .env("SSL_CERT_FILE", roots)
            .env("PINS", format!("{pins:?}"))
            .output();
        let asked = asked.await.unwrap();
        let said = String::from_utf8_lossy(&asked.stdout);
        assert!(asked.status.success() && said.contains("1 passed"), "{file}: {said}");
    }
}
