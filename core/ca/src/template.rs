//! What a certificate says, as data. `platform/keystore` turns a template and a key into a certificate.
//!
//! The identity inside is one [`Principal`], encoded the same in both kinds of certificate. What a template does not name
//! is not in the certificate: there is no way to add an extension behind it.

use crate::validity::Validity;
use std::collections::BTreeMap;
use wayleave_identity::{HostPrincipal, PUBLISH_OPTION, Principal, Publisher, SSH_EXTENSION, UserPrincipal};
use wayleave_vocab::{ClusterName, HostId, Login, SystemRole, UserName, Wall};

/// The principal of publishers: no account can have this name.
const PUBLISHER: &str = "-wayleave-publisher";

/// Whom an SSH certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshCertType {
    /// A user.
    User,
    /// A host.
    Host,
}

/// An SSH certificate without its keys (PROTOCOL.certkeys of OpenSSH).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshCertTemplate {
    /// Whom it is for.
    pub cert_type: SshCertType,
    /// Shown in logs of servers.
    pub key_id: String,
    /// Logins of a user, names of a host. Never empty: an empty list would be good for everybody.
    pub principals: Vec<String>,
    /// From when to when.
    pub validity: Validity,
    /// Options that must be understood, by name.
    pub critical_options: BTreeMap<String, Vec<u8>>,
    /// Options that may be ignored, by name; the value is raw (the SSH string around it is the encoder's).
    pub extensions: BTreeMap<String, Vec<u8>>,
}

/// What an SSH user certificate lets servers grant. Agents decide by policy; this is for stock servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SshPermissions {
    /// `permit-port-forwarding`.
    pub port_forwarding: bool,
    /// `permit-agent-forwarding`.
    pub agent_forwarding: bool,
    /// `permit-X11-forwarding`.
    pub x11_forwarding: bool,
}

/// An X.509 end-entity certificate without its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Template {
    /// The subject's common name.
    pub common_name: String,
    /// Names in the subject alternative name.
    pub dns_names: Vec<String>,
    /// From when to when.
    pub validity: Validity,
    /// What it may be used for.
    pub extended_uses: Vec<ExtendedUse>,
    /// The encoded principal, for the extension `X509_EXTENSION_OID` of `core/identity`.
    pub identity: Vec<u8>,
}

/// An extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedUse {
    /// To call.
    ClientAuth,
    /// To be called.
    ServerAuth,
}

/// The certificate with which a user enters nodes; absent when there is no login, because a certificate without
/// principals would be good for every login.
pub fn ssh_user_template(
    user: &UserPrincipal,
    permissions: SshPermissions,
    validity: Validity,
) -> Option<SshCertTemplate> {
    let identity = UserPrincipal { not_after: validity.not_after, ..user.clone() };
    let mut extensions = permitted(permissions);
    extensions.insert(SSH_EXTENSION.to_owned(), Principal::User(identity).encode());
    let principals: Vec<String> = user.logins.iter().map(ToString::to_string).collect();
    if principals.is_empty() {
        return None;
    }
    Some(SshCertTemplate {
        cert_type: SshCertType::User,
        key_id: user.name.to_string(),
        principals,
        validity,
        critical_options: BTreeMap::new(),
        extensions,
    })
}

/// The certificate with which a proxy enters an agentless node for one user: one login, one connection.
pub fn openssh_user_template(
    user: &UserName,
    cluster: &ClusterName,
    login: &Login,
    permissions: SshPermissions,
    validity: Validity,
) -> SshCertTemplate {
    SshCertTemplate {
        cert_type: SshCertType::User,
        key_id: format!("{user} of {cluster}"),
        principals: vec![login.to_string()],
        validity,
        critical_options: BTreeMap::new(),
        extensions: permitted(permissions),
    }
}

/// The certificate with which somebody publishes machines by `ssh -R`. It is a user's, because stock clients show no
/// others, and it makes nobody a user: whatever does not know its critical option refuses it.
pub fn ssh_publisher_template(publisher: &Publisher, validity: Validity) -> SshCertTemplate {
    let option = publisher.encode().into_bytes();
    SshCertTemplate {
        cert_type: SshCertType::User,
        key_id: format!("publisher {} of {}", publisher.token, publisher.cluster),
        principals: vec![PUBLISHER.to_owned()],
        validity,
        critical_options: BTreeMap::from([(PUBLISH_OPTION.to_owned(), option)]),
        extensions: BTreeMap::from([("permit-port-forwarding".to_owned(), Vec::new())]),
    }
}

/// The certificate of an SSH server: its host id with the cluster, and the names that people use.
pub fn ssh_host_template(host: &HostPrincipal, names: &[String], validity: Validity) -> SshCertTemplate {
    let identity = HostPrincipal { not_after: validity.not_after, ..host.clone() };
    let mut principals = host_names(host.host_id, &host.cluster);
    principals.extend(names.iter().flat_map(|name| [name.clone(), format!("{name}.{}", host.cluster)]));
    principals.dedup();
    SshCertTemplate {
        cert_type: SshCertType::Host,
        key_id: host.host_id.to_string(),
        principals,
        validity,
        critical_options: BTreeMap::new(),
        extensions: BTreeMap::from([(SSH_EXTENSION.to_owned(), Principal::Host(identity).encode())]),
    }
}

/// The certificate with which a user calls the cluster.
pub fn x509_user_template(user: &UserPrincipal, validity: Validity) -> X509Template {
    let identity = UserPrincipal { not_after: validity.not_after, ..user.clone() };
    X509Template {
        common_name: user.name.to_string(),
        dns_names: Vec::new(),
        validity,
        extended_uses: vec![ExtendedUse::ClientAuth],
        identity: Principal::User(identity).encode(),
    }
}

/// The certificate of a process of the cluster: it calls and is called. `names` are those that it is called by besides
/// its host id (`<id>.<cluster>`).
pub fn x509_host_template(host: &HostPrincipal, names: &[String], validity: Validity) -> X509Template {
    let identity = HostPrincipal { not_after: validity.not_after, ..host.clone() };
    let mut dns_names = host_names(host.host_id, &host.cluster);
    for role in &host.system_roles {
        match role {
            // What callers expect of a service without knowing which of its processes answers.
            SystemRole::Auth | SystemRole::Proxy => {
                dns_names.push(format!("{}.{}", role.as_str().to_lowercase(), host.cluster));
            }
            SystemRole::Node
            | SystemRole::Kube
            | SystemRole::App
            | SystemRole::Db
            | SystemRole::WindowsDesktop
            | SystemRole::Discovery
            | SystemRole::Bot => {}
        }
    }
    dns_names.extend(names.iter().cloned());
    X509Template {
        common_name: format!("{}.{}", host.host_id, host.cluster),
        dns_names,
        validity,
        extended_uses: vec![ExtendedUse::ClientAuth, ExtendedUse::ServerAuth],
        identity: Principal::Host(identity).encode(),
    }
}

fn host_names(host_id: HostId, cluster: &ClusterName) -> Vec<String> {
    vec![format!("{host_id}.{cluster}"), host_id.to_string()]
}

fn permitted(permissions: SshPermissions) -> BTreeMap<String, Vec<u8>> {
    let named = [
        ("permit-pty", true),
        ("permit-port-forwarding", permissions.port_forwarding),
        ("permit-agent-forwarding", permissions.agent_forwarding),
        ("permit-X11-forwarding", permissions.x11_forwarding),
    ];
    named.into_iter().filter(|(_, granted)| *granted).map(|(name, _)| (name.to_owned(), Vec::new())).collect()
}

/// When to renew a certificate: with a third of its life left.
pub fn renew_at(validity: Validity) -> Wall {
    let life = validity.not_after.since(validity.not_before);
    validity.not_after.before(life / 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn user(logins: &[&str]) -> UserPrincipal {
        UserPrincipal {
            name: UserName::parse("alice").unwrap(),
            cluster: ClusterName::parse("demo").unwrap(),
            roles: [].into(),
            logins: logins.iter().map(|login| Login::parse(*login).unwrap()).collect(),
            traits: [].into(),
            local_admin: false,
            not_after: Wall::from_secs(u64::MAX / 2000),
        }
    }

    #[test]
    fn d_a_certificate_without_logins_is_not_issued() {
        let validity = Validity::new(Duration::from_secs(60), Wall::from_secs(1_000_000));
        assert_eq!(ssh_user_template(&user(&[]), SshPermissions::default(), validity), None);
    }

    #[test]
    fn the_identity_inside_ends_with_the_certificate() {
        let validity = Validity::new(Duration::from_secs(60), Wall::from_secs(1_000_000));
        let ssh = ssh_user_template(&user(&["root"]), SshPermissions::default(), validity).unwrap();
        let x509 = x509_user_template(&user(&["root"]), validity);
        assert_eq!(ssh.extensions.get(SSH_EXTENSION), Some(&x509.identity));
        let inside = Principal::decode(&x509.identity).unwrap();
        assert_eq!(inside.not_after(), validity.not_after);
        assert_eq!(
            ssh.extensions.keys().map(String::as_str).collect::<Vec<_>>(),
            [SSH_EXTENSION, "permit-pty"]
        );
    }

    #[test]
    fn hosts_are_called_by_id_and_by_service() {
        let host = HostPrincipal {
            host_id: HostId::from_random([1; 16]),
            cluster: ClusterName::parse("demo").unwrap(),
            system_roles: [SystemRole::Proxy, SystemRole::Node].into(),
            not_after: Wall::from_secs(0),
        };
        let validity = Validity::new(Duration::from_secs(60), Wall::from_secs(1_000_000));
        let template = x509_host_template(&host, &["p.example.com".to_owned()], validity);
        let id = host.host_id;
        assert_eq!(
            template.dns_names,
            [format!("{id}.demo"), id.to_string(), "proxy.demo".to_owned(), "p.example.com".to_owned()]
        );
        assert_eq!(renew_at(validity), Wall::from_secs(1_000_020));
    }
}
