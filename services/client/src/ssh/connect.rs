//! From a node's name to an authenticated SSH connection: the stream through the proxies, the host's certificate, ours.

use crate::access::Access;
use crate::dial::{Dialled, NodeStream, Proxies, dial_target};
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::note;
use crate::resuming::{self, Opened, Voice};
use crate::ssh::driver::{Driver, DriverError, Notice};
use wayleave_dial::DialTarget;
use wayleave_identity::{Principal, SSH_EXTENSION};
use wayleave_ssh::{
    CertType, Certificate, CertificateError, ClientConfig, HostIdentity, PublicKey, PublicKeyAlgorithm,
    SignatureAlgorithm,
};
use wayleave_vocab::{ClusterName, NodeName, SystemRole, Wall};

/// Receive window of a channel: enough for a fast and distant node.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// A connection to a node, ready for channels.
pub(crate) type NodeConnection = Driver<NodeStream>;

/// Connects and logs in.
pub(crate) async fn connect(
    access: &Access,
    node: &NodeName,
    login: &str,
    voice: Voice,
) -> Result<NodeConnection, Failure> {
    let opened = resuming::open(access, node, voice).await?;
    begin(access, opened, node, login).await
}

/// The same for anything that speaks SSH on its stream.
pub(crate) async fn connect_to(
    access: &Access,
    target: DialTarget,
    login: &str,
) -> Result<NodeConnection, Failure> {
    let Dialled { stream, .. } = dial_target(access, &Proxies::of(access)?, &target, None).await?;
    begin(access, Opened { stream, is_resumable: false }, target.name(), login).await
}

async fn begin(
    access: &Access,
    opened: Opened,
    node: &NodeName,
    login: &str,
) -> Result<NodeConnection, Failure> {
    let Opened { stream, is_resumable } = opened;
    let mut config = ClientConfig::new(login.to_owned(), vec![access.identity.ssh().clone()]);
    // Only a certificate of the cluster says which node this is.
    config.host_key_algorithms = vec![PublicKeyAlgorithm::certificate(SignatureAlgorithm::Ed25519)];
    config.limits.window_bytes = WINDOW_BYTES;
    if is_resumable {
        config.timing.keepalive = None;
    }
    let mut driver = Driver::new(stream, &config);
    loop {
        match driver.next().await.map_err(login_failure)? {
            Notice::Host(identity) => {
                let cluster = &access.identity.parts().cluster;
                verify(&identity, node, cluster, access.identity.host_authorities(), moment::now())?;
                driver.connection().accept_host().map_err(Failure::doing("the node cannot be accepted"))?;
            }
            Notice::Banner(text) => note(text.trim_end()),
            Notice::Authenticated => return Ok(driver),
            other => tracing::debug!(notice = ?other, "ignored before authentication"),
        }
    }
}

/// What ends a connection before the login is done is mostly a refusal, and the node says why.
fn login_failure(error: DriverError) -> Failure {
    match error {
        DriverError::Goodbye(why) => {
            Failure::new(Exit::Denied, format!("the node refused this login: {why}")).hint(
                "`way ls -v` shows your logins; `way explain USER ssh LOGIN@NODE` tells which rule decided",
            )
        }
        other => other.into(),
    }
}

/// Whether this is the node that was asked for: its certificate is from the cluster's host authority, names the node,
/// and is that of a process that may be a node.
fn verify(
    identity: &HostIdentity,
    node: &NodeName,
    cluster: &ClusterName,
    authorities: &[PublicKey],
    now: Wall,
) -> Result<(), Failure> {
    let refuse = |why: &str| {
        Failure::new(Exit::Denied, format!("the machine that answered is not {node}: {why}"))
            .hint("do not go on: somebody may be in between. If the cluster was made anew, log in again")
    };
    let certificate = match identity {
        HostIdentity::Certificate(certificate) => certificate,
        HostIdentity::Key(_) => return Err(refuse("it has no certificate of the cluster")),
    };
    certificate.verify(authorities, CertType::Host, None, &[], now).map_err(|error| match error {
        CertificateError::Expired | CertificateError::NotYetValid => {
            Failure::new(Exit::Denied, format!("{node} cannot be verified: its {error}, by the clock here"))
                .hint("check this machine's clock; if it is right, tell the cluster's administrator")
        }
        other => refuse(&format!("its {other}")),
    })?;
    let full = format!("{node}.{cluster}");
    let is_named = certificate
        .principals()
        .iter()
        .any(|name| name.eq_ignore_ascii_case(node.as_str()) || name.eq_ignore_ascii_case(&full));
    if !is_named {
        return Err(refuse("its certificate is for another name"));
    }
    if !may_be_node(certificate, cluster) {
        return Err(refuse("its certificate is that of another kind of process"));
    }
    Ok(())
}

fn may_be_node(certificate: &Certificate, cluster: &ClusterName) -> bool {
    certificate
        .extensions()
        .get(SSH_EXTENSION)
        .and_then(|encoded| Principal::decode(encoded.as_bytes()).ok())
        .is_some_and(|principal| {
            principal.cluster() == cluster && principal.as_host_with(SystemRole::Node).is_some()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_identity::HostPrincipal;
    use wayleave_ssh::{CertificateTemplate, KeyPair, Options};
    use wayleave_vocab::HostId;

    const NOW: Wall = Wall::from_secs(1_800_000_000);

    fn authority() -> KeyPair {
        KeyPair::from_seed(&[1; 32])
    }

    fn cluster() -> ClusterName {
        ClusterName::parse("demo").unwrap()
    }

    fn certificate(
        change: impl FnOnce(&mut CertificateTemplate),
        role: SystemRole,
        signer: &KeyPair,
    ) -> HostIdentity {
        let principal = Principal::Host(HostPrincipal {
            host_id: HostId::from_random([3; 16]),
            cluster: cluster(),
            system_roles: [role].into(),
            not_after: NOW,
        });
        let encoded = String::from_utf8(principal.encode()).unwrap();
        let mut template = CertificateTemplate {
            key: KeyPair::from_seed(&[2; 32]).public_key(),
            kind: CertType::Host,
            serial: 1,
            key_id: "web-1".into(),
            principals: vec!["web-1".into(), "web-1.demo".into()],
            valid_after: Wall::from_secs(1_700_000_000),
            valid_before: Wall::from_secs(1_900_000_000),
            critical_options: Options::new(),
            extensions: Options::from([(SSH_EXTENSION.to_owned(), encoded)]),
        };
        change(&mut template);
        HostIdentity::Certificate(template.sign(signer, &[9; 32]).unwrap())
    }

    fn check(identity: &HostIdentity, node: &str, expected: Option<&str>) {
        let node = NodeName::parse(node).unwrap();
        let result = verify(identity, &node, &cluster(), &[authority().public_key()], NOW);
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(failure), Some(part)) => {
                assert!(failure.message.contains(part), "{failure}");
                assert_eq!(failure.exit, Exit::Denied);
            }
            (result, expected) => panic!("{result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_node_that_was_asked_for_is_accepted() {
        let good = certificate(|_| {}, SystemRole::Node, &authority());
        check(&good, "web-1", None);
        check(&good, "WEB-1", None);
    }

    #[test]
    fn d_a_wrong_host_certificate_is_refused_for_what_is_wrong_with_it() {
        let node = SystemRole::Node;
        check(&certificate(|_| {}, node, &authority()), "web-2", Some("another name"));
        check(&certificate(|_| {}, node, &KeyPair::from_seed(&[8; 32])), "web-1", Some("untrusted"));
        check(&certificate(|c| c.kind = CertType::User, node, &authority()), "web-1", Some("wrong type"));
        check(&certificate(|c| c.principals.clear(), node, &authority()), "web-1", Some("no principal"));
        check(&certificate(|c| c.valid_before = NOW, node, &authority()), "web-1", Some("expired"));
        check(&certificate(|c| c.extensions.clear(), node, &authority()), "web-1", Some("another kind"));
        let critical = |c: &mut CertificateTemplate| {
            c.critical_options.insert("x@y".into(), String::new());
        };
        check(&certificate(critical, node, &authority()), "web-1", Some("critical option"));
        check(&HostIdentity::Key(authority().public_key()), "web-1", Some("no certificate"));
    }

    #[test]
    fn o_a_proxy_cannot_stand_in_for_a_node() {
        check(&certificate(|_| {}, SystemRole::Proxy, &authority()), "web-1", Some("another kind"));
    }
}
