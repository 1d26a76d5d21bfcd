//! Certificates for the servers of backends, of an authority that is made for the test.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An authority, a server `localhost`, a balancer `127.0.0.1` and a client `postgres`, as PEM files of mode 0600.
pub struct Certificates {
    /// The authority.
    pub authority: PathBuf,
    /// Certificate and key of the server.
    pub server: (PathBuf, PathBuf),
    /// Certificate and key of the balancer.
    pub balancer: (PathBuf, PathBuf),
    /// Certificate and key of the client.
    pub client: (PathBuf, PathBuf),
    _directory: TempDir,
}

impl Certificates {
    /// Makes all of them.
    pub fn make() -> Self {
        let directory = TempDir::with_prefix("wayleave-certificates-").unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let issue = |name: &str, common_name: &str| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, common_name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            let file =
                |kind: &str, text: &str| write(directory.path(), &format!("{common_name}.{kind}"), text);
            (file("crt", &certificate), file("key", &key.serialize_pem()))
        };
        Self {
            server: issue("localhost", "localhost"),
            balancer: issue("127.0.0.1", "balancer"),
            client: issue("client.invalid", "postgres"),
            authority: write(directory.path(), "authority.crt", &authority),
            _directory: directory,
        }
    }
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}
