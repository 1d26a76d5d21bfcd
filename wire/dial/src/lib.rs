//! The dial request: what opens every stream between client, proxies and agent.
//!
//! It routes and traces, and grants nothing: whoever decides takes the identity from proof it verified
//! itself. On the wire a message is a big-endian u16 length and that many bytes of JSON with a version.
//! After an accepting [`DialResponse`] the stream is raw bytes.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use wayleave_vocab::{
    CAPABILITIES_MAX, Capabilities, Capability, HostId, Incarnation, NodeName, TraceId, Versions,
};

/// Longest message in bytes, checked before anything is allocated.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// The version this build writes.
pub const VERSION: u8 = 1;
/// The versions this build reads.
pub const VERSIONS: Versions = Versions::only(VERSION as u32);

/// Asks for a connection to a resource. A field that is not known says nothing: what must be obeyed is among the needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialRequest {
    /// The oldest version that can carry it out.
    pub v: u8,
    /// What to connect to.
    pub target: DialTarget,
    /// The agent, once the ingress proxy has resolved the name; a client leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// Where the client connected from, as the ingress proxy saw it. Not proof of anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<std::net::SocketAddr>,
    /// Follows the connection through every log.
    pub trace_id: TraceId,
    /// True when it comes from a peer: one hop only.
    #[serde(default)]
    pub from_peer: bool,
    /// Asks the proxy that answers to report the way it took in `DialResponse::Established`.
    #[serde(default)]
    pub report_route: bool,
    /// Asks the agent for a stream that can be resumed; what follows the answer is frames then (`wire/resume`). Proxies
    /// pass it on. It is [needed](Self::needed) without being named there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
    /// Names of capabilities that whoever passes it on and whoever carries it out must have, because of fields that
    /// older releases would ignore.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub needs: BTreeSet<String>,
}

impl DialRequest {
    /// All that it needs.
    pub fn needed(&self) -> Capabilities {
        let resume = self.resume.map(|_| Capability::Resume.name());
        Capabilities::told(self.needs.iter().map(String::as_str).chain(resume))
    }

    /// The answer to it of whoever knows what the next process on the way can do, when that is too little.
    ///
    /// # Errors
    /// [`DialRefusal::Invalid`], which names what is missing; `whom` is who lacks it.
    pub fn check(&self, whom: &str, capabilities: &Capabilities) -> Result<(), DialRefusal> {
        let needed = self.needed();
        match needed.missing_in(capabilities) {
            _ if self.needs.len() > CAPABILITIES_MAX => {
                Err(DialRefusal::invalid("a dial request with too many needs"))
            }
            None => Ok(()),
            Some(missing) => Err(DialRefusal::Invalid {
                detail: format!("{whom} cannot do what is asked ({missing}): upgrade {whom}"),
                missing: Some(missing.to_owned()),
            }),
        }
    }
}

/// A dial request as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// This build can do what it needs.
    Request(Box<DialRequest>),
    /// It cannot, and this is the answer.
    Refused(DialRefusal),
}

/// A dial request from the bytes behind its length; `whom` is what a person would upgrade here.
///
/// # Errors
/// [`DecodeError::Malformed`] when they are no message with a version: that is not even answered.
pub fn decode_request(body: &[u8], whom: &str) -> Result<Heard, DecodeError> {
    let Header { v } = decode_body(body)?;
    if let Err(unsupported) = VERSIONS.agree(Versions::only(v)) {
        return Ok(Heard::Refused(DialRefusal::invalid(unsupported.explain(whom, "who dials"))));
    }
    let refused = match decode_body::<DialRequest>(body) {
        Ok(request) => match request.check(whom, &Capabilities::own()) {
            Ok(()) => return Ok(Heard::Request(Box::new(request))),
            Err(refusal) => refusal,
        },
        Err(error) => DialRefusal::invalid(format!("{error}: if it is of a newer release, upgrade {whom}")),
    };
    Ok(Heard::Refused(refused))
}

#[derive(Deserialize)]
struct Header {
    v: u32,
}

/// What a resumable stream begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// A new stream.
    New,
    /// A stream that lost its connection.
    Reattach,
}

/// The resource that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DialTarget {
    /// SSH Service of a node, by name or by the text of its host id.
    Ssh {
        /// A node name, or a host id.
        node: NodeName,
    },
    /// TCP ports that are published under a name. SSH is spoken on the stream as well: the user proves himself by his
    /// certificate, and each connection to a port is a `direct-tcpip` channel.
    App {
        /// The name they are published under, or its host id.
        app: NodeName,
    },
}

impl DialTarget {
    /// The name to resolve.
    pub fn name(&self) -> &NodeName {
        match self {
            Self::Ssh { node } => node,
            Self::App { app } => app,
        }
    }
}

/// The answer to a [`DialRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum DialResponse {
    /// Connected: what follows is the resource's own protocol.
    Established {
        /// The way taken, when it was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<DialRoute>,
    },
    /// Not connected, and why.
    Refused {
        /// What the caller can do about it.
        #[serde(flatten)]
        refusal: DialRefusal,
    },
}

/// The proxies and the agent that a stream runs through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialRoute {
    /// The proxy that the client reached.
    pub ingress_proxy: HostId,
    /// The proxy that holds the agent's tunnel.
    pub home_proxy: HostId,
    /// The agent.
    pub agent: HostId,
}

/// Why a dial failed, as far as the caller may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum DialRefusal {
    /// No such resource is registered.
    #[error("no node is called {name:?}: `way ls` lists those you can reach")]
    UnknownTarget {
        /// The name that was asked for.
        name: String,
    },
    /// Several live resources share the name.
    #[error("{count} nodes are called {name:?}: use one of their ids from `way ls -v`")]
    Ambiguous {
        /// The name that was asked for.
        name: String,
        /// How many there are.
        count: u32,
    },
    /// The resource is registered, and no proxy could reach its agent now.
    #[error("the agent of {name:?} cannot be reached: {detail}")]
    Offline {
        /// The name that was asked for.
        name: String,
        /// What was tried.
        detail: String,
    },
    /// This proxy does not hold the agent's tunnel; tells how current its knowledge is.
    #[error("the agent is not at this proxy")]
    NotHere {
        /// The answering proxy's life.
        incarnation: Incarnation,
        /// The sequence of its routes.
        sequence: u64,
    },
    /// The caller may not do this.
    #[error("{detail}")]
    Denied {
        /// What the caller may know.
        detail: String,
    },
    /// The proxy or agent is leaving or full; another one may serve.
    #[error("not now: {detail}")]
    Unavailable {
        /// What is short or ending.
        detail: String,
    },
    /// The request cannot be understood by this version.
    #[error("{detail}")]
    Invalid {
        /// What is wrong with it.
        detail: String,
        /// The capability that it needs and somebody on the way has not got: without it the request may be good.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missing: Option<String>,
    },
    /// It took too long.
    #[error("no answer in time: {detail}")]
    TimedOut {
        /// What did not answer.
        detail: String,
    },
}

impl DialRefusal {
    /// A request that is wrong whatever is left out of it.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into(), missing: None }
    }
}

/// What a proxy puts in front of a client's own TLS when it passes a connection on to Auth. Auth believes it because
/// the stream is authenticated as Proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardHeader {
    /// Version of this message.
    pub v: u8,
    /// Where the client connected from.
    pub client_address: std::net::SocketAddr,
}

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The declared length is over [`MESSAGE_BYTES_MAX`].
    #[error("a dial message of {0} bytes, at most {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The bytes are not such a message.
    #[error("a malformed dial message: {0}")]
    Malformed(String),
}

/// A message with its length in front.
///
/// # Errors
/// [`DecodeError::TooLong`] when the fields add up to more than a message may hold.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, DecodeError> {
    let body = serde_json::to_vec(message).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong(body.len()));
    }
    let length = u16::try_from(body.len()).map_err(|_| DecodeError::TooLong(body.len()))?;
    let mut out = Vec::with_capacity(2 + body.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// How many bytes follow a two-byte length prefix.
///
/// # Errors
/// [`DecodeError::TooLong`] before anything is allocated for it.
pub fn body_length(prefix: [u8; 2]) -> Result<usize, DecodeError> {
    let length = usize::from(u16::from_be_bytes(prefix));
    if length > MESSAGE_BYTES_MAX { Err(DecodeError::TooLong(length)) } else { Ok(length) }
}

/// A message from the bytes behind its length.
///
/// # Errors
/// [`DecodeError::Malformed`] when they are not such a message.
pub fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, DecodeError> {
    serde_json::from_slice(body).map_err(|e| DecodeError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> DialRequest {
        DialRequest {
            v: VERSION,
            target: DialTarget::Ssh { node: NodeName::parse("web-1").unwrap() },
            host_id: None,
            client_address: Some("127.0.0.1:5000".parse().unwrap()),
            trace_id: TraceId::from_random([1; 16]),
            from_peer: false,
            report_route: false,
            resume: None,
            needs: BTreeSet::new(),
        }
    }

    #[test]
    fn the_request_looks_as_the_golden_file_says() {
        let bytes = encode(&request()).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes[2..]).unwrap(),
            include_str!("../golden/dial_request_v1.json").trim_end()
        );
    }

    #[test]
    fn a_request_for_an_application_looks_as_the_golden_file_says() {
        let target = DialTarget::App { app: NodeName::parse("db-1").unwrap() };
        let bytes = encode(&DialRequest { target, ..request() }).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes[2..]).unwrap(),
            include_str!("../golden/dial_request_app_v1.json").trim_end()
        );
        assert_eq!(decode_body::<DialRequest>(&bytes[2..]).unwrap().target.name().as_str(), "db-1");
    }

    #[test]
    fn a_request_for_a_resumable_stream_looks_as_the_golden_file_says() {
        let bytes = encode(&DialRequest { resume: Some(Resume::Reattach), ..request() }).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes[2..]).unwrap(),
            include_str!("../golden/dial_request_reattach_v1.json").trim_end()
        );
    }

    #[test]
    fn messages_read_back() {
        let bytes = encode(&request()).unwrap();
        assert_eq!(body_length([bytes[0], bytes[1]]), Ok(bytes.len() - 2));
        assert_eq!(decode_body::<DialRequest>(&bytes[2..]), Ok(request()));
        let refused = DialResponse::Refused { refusal: DialRefusal::UnknownTarget { name: "x".into() } };
        let bytes = encode(&refused).unwrap();
        assert_eq!(decode_body::<DialResponse>(&bytes[2..]), Ok(refused));
    }

    fn heard(json: &str) -> Heard {
        decode_request(json.as_bytes(), "the proxy").unwrap()
    }

    /// A request of the golden file with more in it.
    fn with(more: &str) -> String {
        include_str!("../golden/dial_request_v1.json").trim_end().replacen('{', &format!("{{{more},"), 1)
    }

    #[test]
    fn fields_of_newer_releases_say_nothing() {
        let newer = with(r#""colour":"red","nested":{"a":[1]}"#).replace(r#""kind":"#, r#""hue":3,"kind":"#);
        assert_eq!(heard(&newer), Heard::Request(Box::new(request())));
    }

    #[test]
    fn a_need_that_is_not_known_is_refused_by_name() {
        match heard(&with(r#""needs":["teleportation"]"#)) {
            Heard::Refused(DialRefusal::Invalid { detail, missing }) => {
                assert_eq!(missing.as_deref(), Some("teleportation"));
                assert!(detail.ends_with("upgrade the proxy"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(heard(&with(r#""needs":["resume"],"resume":"new""#)), Heard::Request(_)));
    }

    #[test]
    fn what_another_process_lacks_is_known_before_it_is_asked() {
        let resumable = DialRequest { resume: Some(Resume::New), ..request() };
        let (old, own) = (Capabilities::default(), Capabilities::own());
        assert_eq!((request().check("a", &old), resumable.check("a", &own)), (Ok(()), Ok(())));
        let refused = resumable.check("the agent", &old).unwrap_err();
        assert!(
            matches!(refused, DialRefusal::Invalid { missing: Some(missing), .. } if missing == "resume")
        );
    }

    #[test]
    fn another_version_is_refused_with_both_versions() {
        let other = include_str!("../golden/dial_request_v1.json").replace(r#""v":1"#, r#""v":900"#);
        let said = "the proxy speaks version 1 and who dials version 900: upgrade the proxy";
        assert_eq!(heard(&other), Heard::Refused(DialRefusal::invalid(said)));
        assert_eq!(heard(r#"{"v":0}"#), {
            let said = "the proxy speaks version 1 and who dials version 0: upgrade who dials";
            Heard::Refused(DialRefusal::invalid(said))
        });
    }

    #[test]
    fn a_target_of_a_newer_release_is_refused_and_garbage_is_not_answered() {
        let target =
            include_str!("../golden/dial_request_v1.json").replace(r#""kind":"ssh""#, r#""kind":"desktop""#);
        match heard(&target) {
            Heard::Refused(DialRefusal::Invalid { detail, missing: None }) => {
                assert!(detail.contains("desktop") && detail.ends_with("upgrade the proxy"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
        for garbage in ["", "{}", "[]", "{\"v\":\"1\"}", "{\"v\":1"] {
            assert!(decode_request(garbage.as_bytes(), "the proxy").is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_allocation() {
        assert_eq!(body_length([0xff, 0xff]), Err(DecodeError::TooLong(0xffff)));
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_body::<DialRequest>(&bytes);
            let _ = decode_request(&bytes, "the proxy");
            let _ = decode_body::<DialResponse>(&bytes);
        }
    }
}
