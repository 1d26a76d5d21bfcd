//! The identity file: everything one user needs to be that user, in one text file of mode 0600.
//!
//! `way auth sign` and `way login` write it, `way -i FILE` reads it, and the Auth Service keeps one for the local
//! administrator at `<data_dir>/admin-identity`. The text is, in this order:
//!
//! ```text
//! # comment lines anywhere
//! version: 1
//! cluster: demo
//! proxy: proxy.example.com:443          any number of these: web addresses of proxies, best first
//! auth: 127.0.0.1:3025                  any number of these: the Auth Service, reached directly
//! -----BEGIN PRIVATE KEY-----           TLS key, PKCS#8, ECDSA P-256
//! -----BEGIN CERTIFICATE-----           its chain, leaf first: every certificate before the SSH key
//! -----BEGIN OPENSSH PRIVATE KEY-----   SSH key, Ed25519, unencrypted
//! ssh-ed25519-cert-v01@openssh.com AAA… certificate over the SSH key, one line
//! -----BEGIN CERTIFICATE-----           host authorities: every certificate after the SSH key
//! @cert-authority * ssh-ed25519 AAA…    host authorities for SSH, any number of lines
//! ```
//!
//! Who it is about is read from the certificate itself.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use wayleave_identity::{Principal, UserPrincipal};
use wayleave_keystore::{
    Credentials, CredentialsError, IdentifyError, TrustStore, principal_from_certificate, read_private,
    write_private,
};
use wayleave_ssh::{Certificate, Credential, KeyPair, PublicKey};
use wayleave_vocab::{ClusterName, HostPort, Secret};

/// Longest identity file in bytes.
pub const IDENTITY_FILE_BYTES_MAX: usize = 256 * 1024;
/// Most addresses, and most SSH authorities.
const LINES_MAX: usize = 64;
const VERSION: &str = "1";
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const OPENSSH_KEY: &str = "OPENSSH PRIVATE KEY";
const AUTHORITY_MARK: &str = "@cert-authority";

/// The texts that an identity is made of, before they are looked at.
#[derive(Clone)]
pub struct IdentityParts {
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Web addresses of proxies, best first.
    pub proxies: Vec<HostPort>,
    /// Addresses of the Auth Service where it is reached directly.
    pub auth_servers: Vec<HostPort>,
    /// TLS private key, PKCS#8 PEM.
    pub tls_key_pem: Secret,
    /// TLS chain, leaf first, PEM.
    pub tls_chain_pem: String,
    /// SSH private key, OpenSSH format.
    pub ssh_key_openssh: Secret,
    /// SSH certificate, one line.
    pub ssh_certificate: String,
    /// Host authorities for TLS, PEM.
    pub host_ca_pem: String,
    /// Host authorities for SSH: public keys, one line each.
    pub host_ca_ssh: Vec<String>,
}

/// An identity whose keys and certificates belong together and name one user.
#[derive(Clone)]
pub struct Identity {
    parts: IdentityParts,
    user: UserPrincipal,
    credentials: Credentials,
    ssh: Credential,
    host_authorities: Vec<PublicKey>,
}

/// An identity file that cannot be used. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// It cannot be read, or others can read it.
    #[error("cannot read the identity file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the identity file {path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line is none that belongs there.
    #[error("line {line} of the identity file: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A part is not there.
    #[error("the identity file has no {0}")]
    Missing(&'static str),
    /// A part cannot be read or does not belong to the others.
    #[error("the identity file's {part} cannot be used: {problem}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Identity {
    /// Checks that the parts belong together.
    ///
    /// # Errors
    /// [`IdentityFileError::Part`] for the first part that does not fit.
    pub fn new(parts: IdentityParts) -> Result<Self, IdentityFileError> {
        let part = |part| move |problem: String| IdentityFileError::Part { part, problem };
        let credentials = Credentials::from_pem(&parts.tls_chain_pem, &parts.tls_key_pem)
            .map_err(|e: CredentialsError| part("TLS certificate and key")(crate::failure::chain(&e)))?;
        let leaf = credentials.leaf().ok_or(IdentityFileError::Missing("TLS certificate"))?;
        let user = match principal_from_certificate(&leaf) {
            Ok(Principal::User(user)) => user,
            Ok(Principal::Host(_)) => {
                return Err(part("TLS certificate")("it is that of a process, not of a user".to_owned()));
            }
            Err(error @ IdentifyError::NoIdentity) => return Err(part("TLS certificate")(error.to_string())),
            Err(error) => return Err(part("TLS certificate")(crate::failure::chain(&error))),
        };
        if user.cluster != parts.cluster {
            return Err(part("cluster")(format!("the certificate is of {}", user.cluster)));
        }
        let key = KeyPair::from_openssh(parts.ssh_key_openssh.expose_secret())
            .map_err(|e| part("SSH key")(e.to_string()))?;
        let certificate = Certificate::from_openssh(&parts.ssh_certificate)
            .map_err(|e| part("SSH certificate")(e.to_string()))?;
        let ssh = Credential::certified(Arc::new(key), certificate)
            .ok_or_else(|| part("SSH certificate")("it is over another key".to_owned()))?;
        let host_authorities = parts
            .host_ca_ssh
            .iter()
            .map(|line| PublicKey::from_openssh(line))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| part("SSH host authority")(e.to_string()))?;
        if host_authorities.is_empty() {
            return Err(IdentityFileError::Missing("SSH host authority (@cert-authority)"));
        }
        Ok(Self { parts, user, credentials, ssh, host_authorities })
    }

    /// Reads the text of an identity file.
    ///
    /// # Errors
    /// What is wrong with it, never repeating its content.
    pub fn parse(text: &str) -> Result<Self, IdentityFileError> {
        Self::new(Reader::default().read(text)?)
    }

    /// Reads an identity file that nobody else can read.
    ///
    /// # Errors
    /// [`IdentityFileError::Read`] also when its mode lets others in.
    pub fn read(path: &Path) -> Result<Self, IdentityFileError> {
        let fail = |source| IdentityFileError::Read { path: path.display().to_string(), source };
        let bytes = read_private(path).map_err(fail)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| fail(io::Error::new(io::ErrorKind::InvalidData, "it is not text")))?;
        Self::parse(&text)
    }

    /// Writes the file, mode 0600, whole or not at all.
    ///
    /// # Errors
    /// [`IdentityFileError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), IdentityFileError> {
        write_private(path, self.render().expose_secret().as_bytes())
            .map_err(|source| IdentityFileError::Write { path: path.display().to_string(), source })
    }

    /// The text of the file.
    pub fn render(&self) -> Secret {
        let parts = &self.parts;
        let mut out = String::with_capacity(8 * 1024);
        let _ = writeln!(
            out,
            "# Wayleave identity of {} in {}. It holds private keys: keep it at mode 0600.",
            self.user.name, parts.cluster
        );
        let _ = writeln!(out, "version: {VERSION}\ncluster: {}", parts.cluster);
        for proxy in &parts.proxies {
            let _ = writeln!(out, "proxy: {proxy}");
        }
        for auth in &parts.auth_servers {
            let _ = writeln!(out, "auth: {auth}");
        }
        let blocks: [&str; 5] = [
            parts.tls_key_pem.expose_secret(),
            &parts.tls_chain_pem,
            parts.ssh_key_openssh.expose_secret(),
            &parts.ssh_certificate,
            &parts.host_ca_pem,
        ];
        for block in blocks {
            out.push_str(block.trim_end());
            out.push('\n');
        }
        for line in &parts.host_ca_ssh {
            let _ = writeln!(out, "{AUTHORITY_MARK} * {}", line.trim());
        }
        Secret::new(out)
    }

    /// The same identity, reached at other addresses.
    pub fn with_proxies(mut self, proxies: Vec<HostPort>) -> Self {
        self.parts.proxies = proxies;
        self
    }

    /// The user, as the certificate states it.
    pub fn user(&self) -> &UserPrincipal {
        &self.user
    }

    /// The texts.
    pub fn parts(&self) -> &IdentityParts {
        &self.parts
    }

    /// What is presented in TLS handshakes.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Whom it believes.
    pub fn trust(&self) -> TrustStore {
        let trust = TrustStore::empty();
        trust.replace(&self.parts.cluster, &self.parts.host_ca_pem, "");
        trust
    }

    /// The SSH key and its certificate.
    pub fn ssh(&self) -> &Credential {
        &self.ssh
    }

    /// The keys that sign SSH host certificates.
    pub fn host_authorities(&self) -> &[PublicKey] {
        &self.host_authorities
    }
}

/// Collects the parts while the text is read line by line.
#[derive(Default)]
struct Reader {
    cluster: Option<ClusterName>,
    proxies: Vec<HostPort>,
    auth_servers: Vec<HostPort>,
    tls_key_pem: String,
    tls_chain_pem: String,
    ssh_key_openssh: String,
    ssh_certificate: String,
    host_ca_pem: String,
    host_ca_ssh: Vec<String>,
}

impl Reader {
    fn read(mut self, text: &str) -> Result<IdentityParts, IdentityFileError> {
        if text.len() > IDENTITY_FILE_BYTES_MAX {
            return Err(IdentityFileError::Line { line: 1, problem: "the file is too long" });
        }
        let mut lines = text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            let fail = |problem| IdentityFileError::Line { line: number, problem };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) {
                let end = format!("-----END {label}-----");
                let mut block = format!("{line}\n");
                loop {
                    let (line, _) = lines.next().ok_or_else(|| fail("this block has no end"))?;
                    block.push_str(line.trim());
                    block.push('\n');
                    if line.trim() == end {
                        break;
                    }
                }
                self.block(label, &block).map_err(fail)?;
            } else {
                self.line(line).map_err(fail)?;
            }
        }
        self.finish()
    }

    fn block(&mut self, label: &str, block: &str) -> Result<(), &'static str> {
        match label {
            PRIVATE_KEY if self.tls_key_pem.is_empty() => self.tls_key_pem.push_str(block),
            OPENSSH_KEY if self.ssh_key_openssh.is_empty() => self.ssh_key_openssh.push_str(block),
            CERTIFICATE if self.ssh_key_openssh.is_empty() => self.tls_chain_pem.push_str(block),
            CERTIFICATE => self.host_ca_pem.push_str(block),
            PRIVATE_KEY | OPENSSH_KEY => return Err("a second private key of the same kind"),
            _ => return Err("a block that does not belong into an identity file"),
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        if let Some(rest) = line.strip_prefix(AUTHORITY_MARK) {
            let key = rest.trim_start().split_once(char::is_whitespace).map(|(_, key)| key.trim());
            push(&mut self.host_ca_ssh, key.ok_or("no key behind @cert-authority")?.to_owned())
        } else if line.split_whitespace().next().is_some_and(|w| w.ends_with("-cert-v01@openssh.com")) {
            if !self.ssh_certificate.is_empty() {
                return Err("a second SSH certificate");
            }
            self.ssh_certificate = line.to_owned();
            Ok(())
        } else {
            let (key, value) = line.split_once(':').ok_or("neither a block nor `key: value`")?;
            self.pair(key.trim(), value.trim())
        }
    }

    fn pair(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "version" if value == VERSION => Ok(()),
            "version" => Err("a version that this release does not read"),
            "cluster" => {
                self.cluster = Some(ClusterName::parse(value).map_err(|_| "no name of a cluster")?);
                Ok(())
            }
            "proxy" => push(&mut self.proxies, HostPort::parse(value, Some(443)).map_err(|_| "no address")?),
            "auth" => {
                push(&mut self.auth_servers, HostPort::parse(value, Some(3025)).map_err(|_| "no address")?)
            }
            _ => Err("a key that this release does not know"),
        }
    }

    fn finish(self) -> Result<IdentityParts, IdentityFileError> {
        let there = |text: String, what| {
            if text.is_empty() { Err(IdentityFileError::Missing(what)) } else { Ok(text) }
        };
        Ok(IdentityParts {
            cluster: self.cluster.ok_or(IdentityFileError::Missing("cluster"))?,
            proxies: self.proxies,
            auth_servers: self.auth_servers,
            tls_key_pem: Secret::new(there(self.tls_key_pem, "TLS private key")?),
            tls_chain_pem: there(self.tls_chain_pem, "TLS certificate")?,
            ssh_key_openssh: Secret::new(there(self.ssh_key_openssh, "SSH private key")?),
            ssh_certificate: there(self.ssh_certificate, "SSH certificate")?,
            host_ca_pem: there(self.host_ca_pem, "host authority behind the SSH key")?,
            host_ca_ssh: self.host_ca_ssh,
        })
    }
}

fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), &'static str> {
    if list.len() >= LINES_MAX {
        return Err("too many lines of this kind");
    }
    list.push(item);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use wayleave_keystore::{TlsKey, X509Authority, X509Request};
    use wayleave_ssh::{CertType, CertificateTemplate, Options};
    use wayleave_vocab::{Login, RoleName, Traits, UserName, Wall};

    const GOLDEN: &str = include_str!("../golden/identity_v1.txt");
    /// 2100-01-01.
    pub(crate) const END: Wall = Wall::from_secs(4_102_444_800);

    /// An identity of `alice` in `demo`, made by authorities that exist for it alone.
    pub(crate) fn identity(not_after: Wall) -> Identity {
        let start = Wall::from_secs(1_700_000_000);
        let user_ca = X509Authority::generate("user", [1; 16], start).unwrap();
        let host_ca = X509Authority::generate("host", [2; 16], start).unwrap();
        let (user_ssh_ca, host_ssh_ca) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let principal = UserPrincipal {
            name: UserName::parse("alice").unwrap(),
            cluster: ClusterName::parse("demo").unwrap(),
            roles: BTreeSet::from([RoleName::parse("access").unwrap()]),
            logins: BTreeSet::from([Login::parse("root").unwrap(), Login::parse("ubuntu").unwrap()]),
            traits: Traits::new(),
            local_admin: false,
            not_after,
        };
        let (tls, ssh) = (TlsKey::generate().unwrap(), KeyPair::from_seed(&[3; 32]));
        let leaf = user_ca
            .issue(&X509Request {
                principal: &Principal::User(principal.clone()),
                common_name: "alice",
                spki_der: &tls.spki_der(),
                dns_names: &[],
                ip_addresses: &[],
                not_before: start,
                not_after,
                server: false,
                client: true,
                serial: [4; 16],
            })
            .unwrap();
        let certificate = CertificateTemplate {
            key: ssh.public_key(),
            kind: CertType::User,
            serial: 1,
            key_id: "alice".into(),
            principals: vec!["root".into(), "ubuntu".into()],
            valid_after: start,
            valid_before: not_after,
            critical_options: Options::new(),
            extensions: Options::from([("permit-pty".into(), String::new())]),
        }
        .sign(&user_ssh_ca, &[5; 32])
        .unwrap();
        Identity::new(IdentityParts {
            cluster: principal.cluster.clone(),
            proxies: vec!["proxy.example.com:443".parse().unwrap()],
            auth_servers: vec!["127.0.0.1:3025".parse().unwrap()],
            tls_key_pem: tls.to_pem(),
            tls_chain_pem: format!("{leaf}{}", user_ca.certificate_pem()),
            ssh_key_openssh: Secret::new(ssh.to_openssh("alice").to_string()),
            ssh_certificate: certificate.to_openssh(),
            host_ca_pem: host_ca.certificate_pem().to_owned(),
            host_ca_ssh: vec![host_ssh_ca.public_key().to_openssh()],
        })
        .unwrap()
    }

    #[test]
    fn the_golden_file_is_read_and_written_the_same() {
        let identity = Identity::parse(GOLDEN).unwrap();
        assert_eq!(identity.user().name.as_str(), "alice");
        assert_eq!(identity.parts().proxies.len(), 1);
        assert_eq!(identity.render().expose_secret(), GOLDEN);
    }

    #[test]
    fn what_is_written_reads_back() {
        let identity = identity(END);
        let again = Identity::parse(identity.render().expose_secret()).unwrap();
        assert_eq!(again.render().expose_secret(), identity.render().expose_secret());
        assert_eq!(again.user(), identity.user());
        assert_eq!(again.parts().tls_chain_pem.matches("BEGIN").count(), 2);
        assert_eq!(again.parts().host_ca_pem.matches("BEGIN").count(), 1);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (one, other) = (identity(END), identity(END));
        let mut parts = one.parts().clone();
        parts.tls_key_pem = other.parts().tls_key_pem.clone();
        assert!(matches!(Identity::new(parts), Err(IdentityFileError::Part { .. })));
        let mut parts = one.parts().clone();
        parts.ssh_key_openssh = Secret::new(KeyPair::from_seed(&[9; 32]).to_openssh("x").to_string());
        assert!(matches!(Identity::new(parts), Err(IdentityFileError::Part { .. })));
        let mut parts = one.parts().clone();
        parts.cluster = ClusterName::parse("other").unwrap();
        assert!(matches!(Identity::new(parts), Err(IdentityFileError::Part { .. })));
    }

    #[test]
    fn every_missing_or_foreign_part_is_named() {
        let text = identity(END).render().expose_secret().to_owned();
        let without =
            |start: &str| text.lines().filter(|line| !line.starts_with(start)).collect::<Vec<_>>().join("\n");
        let check = |text: String, expected: &str| {
            let error = Identity::parse(&text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        };
        check(without("cluster:"), "no cluster");
        check(without("ssh-ed25519-cert"), "no SSH certificate");
        check(without("@cert-authority"), "no SSH host authority");
        check(text.replace("version: 1", "version: 2"), "does not read");
        check(format!("{text}colour: red\n"), "does not know");
        check(format!("{text}-----BEGIN CERTIFICATE-----\nAAAA\n"), "no end");
        check(String::new(), "no cluster");
    }

    #[test]
    fn m_no_error_repeats_a_secret() {
        let identity = identity(END);
        let text = identity.render().expose_secret().to_owned();
        let key_line = identity.parts().tls_key_pem.expose_secret().lines().nth(1).unwrap().to_owned();
        let torn = text.replace("-----END PRIVATE KEY-----\n", "");
        let error = Identity::parse(&torn).err().unwrap();
        assert!(!format!("{error} {error:?}").contains(&key_line));
    }

    #[test]
    fn m_a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        identity(END).write(&path).unwrap();
        assert!(Identity::read(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::read(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    proptest! {
        #[test]
        fn f_arbitrary_text_never_panics(text in "(-----BEGIN [A-Z ]{0,9}-----\n|[ -~]{0,40}\n|@cert-authority[ -~]{0,9}\n|proxy:[ -~]{0,9}\n){0,12}") {
            prop_assert!(Identity::parse(&text).is_err());
        }
    }
}
