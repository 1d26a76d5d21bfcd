//! Opening a stream to a node through a proxy.

use crate::access::Access;
use crate::failure::Failure;
use crate::traces;
use rustls::ClientConfig;
use std::collections::BTreeSet;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use wayleave_api::ALPN_DIAL;
use wayleave_dial::{DialRefusal, DialRequest, DialResponse, DialTarget, Resume, VERSION};
use wayleave_keystore::{client_config, public_client_config};
use wayleave_net::{
    BoxStream, ConnectError, ToldError, connect_cluster, connect_first, connect_told, read_message,
    write_message,
};
use wayleave_vocab::{Capability, ClusterName, HostPort, NodeName, SystemRole, TraceId};

/// How long a proxy may take to reach the agent.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream that speaks the node's own protocol.
pub(crate) type NodeStream = BoxStream;

/// A node as people write it: `[login@]node[.cluster][:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The account on the node.
    pub(crate) login: Option<String>,
    /// The node's name or host id, maybe with the cluster behind it.
    pub(crate) host: String,
    /// A port; it means nothing here, and is kept to say so.
    pub(crate) port: Option<u16>,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("ssh://").unwrap_or(text);
        let (login, host) = match text.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, text),
        };
        if login.is_some_and(str::is_empty) {
            return Err(format!("{text:?} has no login before the @"));
        }
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
                (host, Some(port))
            }
            None => (host, None),
        };
        NodeName::parse(host).map_err(|e| e.to_string())?;
        Ok(Self { login: login.map(str::to_owned), host: host.to_owned(), port })
    }
}

impl Destination {
    /// The name of the node in this cluster: without `.cluster` at its end.
    pub(crate) fn node(&self, cluster: &ClusterName) -> Result<NodeName, Failure> {
        let host = self.host.as_str();
        let cluster = cluster.as_str();
        let stem = host
            .len()
            .checked_sub(cluster.len())
            .filter(|at| host.get(*at..).is_some_and(|tail| tail.eq_ignore_ascii_case(cluster)))
            .and_then(|at| host.get(..at)?.strip_suffix('.'));
        NodeName::parse(stem.unwrap_or(host)).map_err(|e| Failure::usage(e.to_string()))
    }
}

/// Where proxies answer.
pub(crate) struct Proxies {
    /// By the identity, or the command line.
    pub(crate) own: Vec<HostPort>,
    /// By what the agent said.
    pub(crate) told: Vec<HostPort>,
    /// Those of them that come after all others, in this order.
    pub(crate) tried: Vec<HostPort>,
}

impl Proxies {
    /// Those that are used.
    pub(crate) fn of(access: &Access) -> Result<Self, Failure> {
        Ok(Self { own: access.require_proxies()?.to_vec(), told: Vec::new(), tried: Vec::new() })
    }

    fn in_order(&self) -> Vec<HostPort> {
        let (mut last, mut first): (Vec<HostPort>, Vec<HostPort>) =
            self.own.iter().chain(&self.told).cloned().partition(|proxy| self.tried.contains(proxy));
        last.sort_by_key(|proxy| self.tried.iter().position(|tried| tried == proxy));
        first.append(&mut last);
        first
    }
}

/// A stream to a node, and whether it is of the kind that was asked for.
pub(crate) struct Dialled {
    pub(crate) stream: NodeStream,
    /// `None` when the agent knows no such streams: bare bytes follow.
    pub(crate) resume: Option<Resume>,
    /// The proxy that it runs through.
    pub(crate) proxy: HostPort,
}

/// Opens a stream to a node through one of the proxies, tried in turn.
pub(crate) async fn dial(
    access: &Access,
    proxies: &Proxies,
    node: &NodeName,
    resume: Resume,
) -> Result<Dialled, Failure> {
    dial_target(access, proxies, &DialTarget::Ssh { node: node.clone() }, Some(resume)).await
}

/// Opens a stream to anything through one of the proxies, tried in turn.
pub(crate) async fn dial_target(
    access: &Access,
    proxies: &Proxies,
    target: &DialTarget,
    resume: Option<Resume>,
) -> Result<Dialled, Failure> {
    let mut span = traces::Dial::begin();
    let dialled = dial_traced(access, proxies, target, resume, &span).await;
    if let Err(failure) = &dialled {
        span.fail(|| failure.exit.for_spans());
    }
    dialled
}

async fn dial_traced(
    access: &Access,
    proxies: &Proxies,
    target: &DialTarget,
    mut resume: Option<Resume>,
    span: &traces::Dial,
) -> Result<Dialled, Failure> {
    access.check_expiry()?;
    let tls = client_config(
        access.identity.credentials(),
        &access.identity.trust(),
        SystemRole::Proxy,
        None,
        &[ALPN_DIAL],
    )
    .map_err(Failure::doing("cannot set up TLS"))?;
    let outer =
        public_client_config(Some(&access.identity.trust())).map_err(Failure::doing("cannot set up TLS"))?;
    let mut left = proxies.in_order();
    let mut tries = 0..;
    loop {
        let mut connecting = span.connect(tries.next().unwrap_or_default());
        let connected = connect(&left, &proxies.told, &tls, &outer).await;
        let (proxy, stream) =
            connected.inspect_err(|failure| connecting.fail(|| failure.exit.for_spans()))?;
        drop(connecting);
        match ask(&proxy, stream, target, resume, span.trace).await {
            Ok(stream) => return Ok(Dialled { stream, resume, proxy }),
            Err(Attempt::Plainly(failure)) => {
                tracing::warn!(%proxy, reason = %failure.message, "streams of this node cannot be resumed: going on without");
                resume = None;
            }
            Err(Attempt::Final(failure)) => return Err(failure),
            Err(Attempt::Next(failure)) => {
                tracing::debug!(%proxy, reason = %failure.message, "trying another proxy");
                left.retain(|other| *other != proxy);
                if left.is_empty() {
                    return Err(failure);
                }
            }
        }
    }
}

/// Connects to the first proxy that answers. Nobody is led to an address of his own network by what he is told.
async fn connect(
    proxies: &[HostPort],
    told: &[HostPort],
    tls: &Arc<ClientConfig>,
    outer: &Arc<ClientConfig>,
) -> Result<(HostPort, NodeStream), Failure> {
    let connect = |proxy: HostPort| {
        let (tls, outer) = (tls.clone(), outer.clone());
        async move {
            if !told.contains(&proxy) {
                return connect_cluster(&proxy, tls, &outer).await;
            }
            connect_told(&proxy, tls).await.map_err(|error| match error {
                ToldError::Connect(error) => error,
                refused @ ToldError::Refused { .. } => {
                    let source = io::Error::new(io::ErrorKind::PermissionDenied, refused.to_string());
                    ConnectError::Tcp { address: proxy, source }
                }
            })
        }
    };
    let (proxy, stream) = connect_first(proxies, connect).await?;
    Ok((proxy, Box::new(stream)))
}

/// Why one proxy did not do it, and whether another may.
enum Attempt {
    /// The agent does not know the kind of stream that was asked for.
    Plainly(Failure),
    Next(Failure),
    Final(Failure),
}

/// Asks a proxy for a stream.
async fn ask(
    proxy: &HostPort,
    mut stream: NodeStream,
    target: &DialTarget,
    resume: Option<Resume>,
    trace_id: TraceId,
) -> Result<NodeStream, Attempt> {
    let request = DialRequest {
        v: VERSION,
        target: target.clone(),
        host_id: None,
        client_address: None,
        trace_id,
        from_peer: false,
        report_route: false,
        resume,
        needs: BTreeSet::new(),
    };
    tracing::debug!(%proxy, name = %target.name(), trace_id = %request.trace_id, "dialling");
    write_message(&mut stream, &request).await.map_err(|e| Attempt::Next(e.into()))?;
    match read_message(&mut stream, DIAL_TIMEOUT).await.map_err(|e| Attempt::Next(e.into()))? {
        DialResponse::Established { .. } => Ok(stream),
        // The agent may be on its way to another proxy; and what one proxy says ends no stream.
        DialResponse::Refused { refusal } if resume == Some(Resume::Reattach) => {
            Err(Attempt::Next(refusal.into()))
        }
        DialResponse::Refused { refusal } => Err(match &refusal {
            DialRefusal::Unavailable { .. } | DialRefusal::NotHere { .. } => Attempt::Next(refusal.into()),
            DialRefusal::Invalid { missing: Some(missing), .. }
                if resume == Some(Resume::New) && missing == Capability::Resume.name() =>
            {
                Attempt::Plainly(refusal.into())
            }
            DialRefusal::UnknownTarget { .. }
            | DialRefusal::Ambiguous { .. }
            | DialRefusal::Offline { .. }
            | DialRefusal::Denied { .. }
            | DialRefusal::Invalid { .. }
            | DialRefusal::TimedOut { .. } => Attempt::Final(refusal.into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;
    use wayleave_identity::{HostPrincipal, Principal};
    use wayleave_keystore::{
        ClientAuth, Credentials, TlsKey, TrustStore, X509Authority, X509Request, server_config,
    };
    use wayleave_vocab::HostId;

    fn check(text: &str, expected: Option<(&str, Option<&str>)>) {
        let cluster = ClusterName::parse("demo.example.com").unwrap();
        let parsed = text.parse::<Destination>().ok();
        let got = parsed.map(|d| (d.node(&cluster).unwrap().to_string(), d.login));
        assert_eq!(got, expected.map(|(n, l)| (n.to_owned(), l.map(str::to_owned))), "{text}");
    }

    #[test]
    fn destinations_are_read_as_ssh_reads_them() {
        check("web-1", Some(("web-1", None)));
        check("root@web-1", Some(("web-1", Some("root"))));
        check("root@web-1.demo.example.com:22", Some(("web-1", Some("root"))));
        check("a@b@web-1.DEMO.example.com", Some(("web-1", Some("a@b"))));
        check("web-1.other.com", Some(("web-1.other.com", None)));
        check("demo.example.com", Some(("demo.example.com", None)));
        check("ssh://web-1:22", Some(("web-1", None)));
        for bad in ["", "@web-1", "root@", "web-1:x", "-oProxyCommand=x", "a b", "x@-y", "web 1"] {
            check(bad, None);
        }
    }

    /// A proxy's certificate from a fresh cluster, and who believes it.
    fn proxy_credentials() -> (Credentials, TrustStore) {
        let (now, cluster) = (crate::moment::now(), ClusterName::parse("demo").unwrap());
        let authority = X509Authority::generate("host", [1; 16], now).unwrap();
        let key = TlsKey::generate().unwrap();
        let not_after = now.after(Duration::from_secs(600));
        let principal = Principal::Host(HostPrincipal {
            host_id: HostId::from_random([2; 16]),
            cluster: cluster.clone(),
            system_roles: [SystemRole::Proxy].into(),
            not_after,
        });
        let leaf = authority
            .issue(&X509Request {
                principal: &principal,
                common_name: "proxy",
                spki_der: &key.spki_der(),
                dns_names: &[],
                ip_addresses: &[],
                not_before: now,
                not_after,
                server: true,
                client: true,
                serial: [3; 16],
            })
            .unwrap();
        let trust = TrustStore::empty();
        trust.replace(&cluster, authority.certificate_pem(), "");
        (Credentials::from_pem(&leaf, &key.to_pem()).unwrap(), trust)
    }

    #[tokio::test]
    async fn g_a_silent_proxy_does_not_hold_up_the_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = |listener: &TcpListener| HostPort::from_socket(listener.local_addr().unwrap());
        let (silent_at, good_at) = (address(&silent), address(&good));
        let (credentials, trust) = proxy_credentials();
        let server = server_config(&credentials, &trust, ClientAuth::None, &[ALPN_DIAL]).unwrap();
        let none = Credentials::empty();
        let tls = client_config(&none, &trust, SystemRole::Proxy, None, &[ALPN_DIAL]).unwrap();
        let outer = public_client_config(Some(&trust)).unwrap();
        let proxies = [silent_at, good_at.clone()];
        let serve = async {
            let (stream, _) = good.accept().await.unwrap();
            tokio_rustls::TlsAcceptor::from(server).accept(stream).await.unwrap()
        };
        let (connected, _served) = tokio::join!(connect(&proxies, &[], &tls, &outer), serve);
        assert_eq!(connected.map_err(|f| f.message).unwrap().0, good_at);
        drop(silent);
    }

    async fn answered(refusal: DialRefusal, resume: Resume) -> Result<NodeStream, Attempt> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let proxy = HostPort::parse("proxy:443", None).unwrap();
        let target = DialTarget::Ssh { node: NodeName::parse("web-1").unwrap() };
        let answering = async {
            let _: DialRequest = read_message(&mut far, DIAL_TIMEOUT).await.unwrap();
            write_message(&mut far, &DialResponse::Refused { refusal }).await.unwrap();
        };
        tokio::join!(
            ask(&proxy, Box::new(near), &target, Some(resume), TraceId::from_random([1; 16])),
            answering
        )
        .0
    }

    #[tokio::test]
    async fn o_no_refusal_by_one_proxy_keeps_a_lost_stream_from_the_others() {
        let (name, detail) = ("web-1".to_owned(), "no".to_owned());
        let refusals = [
            DialRefusal::UnknownTarget { name: name.clone() },
            DialRefusal::Ambiguous { name: name.clone(), count: 2 },
            DialRefusal::Offline { name, detail: detail.clone() },
            DialRefusal::Denied { detail: detail.clone() },
            DialRefusal::Unavailable { detail: detail.clone() },
            DialRefusal::invalid(&detail),
            DialRefusal::TimedOut { detail: detail.clone() },
        ];
        for refusal in refusals {
            let answer = answered(refusal.clone(), Resume::Reattach).await;
            assert!(matches!(answer, Err(Attempt::Next(_))), "{refusal:?}");
        }
        let missing = DialRefusal::Invalid { detail: detail.clone(), missing: Some("resume".into()) };
        let plainly = answered(missing, Resume::New).await;
        assert!(matches!(plainly, Err(Attempt::Plainly(_))), "the agent is of an older release");
        let invalid = answered(DialRefusal::invalid(&detail), Resume::New).await;
        assert!(matches!(invalid, Err(Attempt::Final(_))), "nothing is left out that was not the matter");
        let denied = answered(DialRefusal::Denied { detail }, Resume::New).await;
        assert!(matches!(denied, Err(Attempt::Final(_))), "a new stream was denied");
    }

    #[test]
    fn proxies_that_gave_no_stream_back_come_last() {
        let list = |names: &str| -> Vec<HostPort> {
            names.split(' ').map(|name| HostPort::parse(name, Some(443)).unwrap()).collect()
        };
        let proxies = Proxies { own: list("a b c"), told: list("d e"), tried: list("d gone a") };
        assert_eq!(proxies.in_order(), list("b c e d a"));
    }

    proptest! {
        #[test]
        fn f_arbitrary_destinations_never_panic(text in "\\PC{0,40}") {
            let cluster = ClusterName::parse("demo").unwrap();
            if let Ok(destination) = text.parse::<Destination>() {
                let _ = destination.node(&cluster);
            }
        }
    }
}
