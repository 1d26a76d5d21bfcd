//! The dial request: what opens every stream between client, proxies and agent.
//!
//! It routes and traces, and grants nothing: whoever decides takes the identity from proof it verified
//! itself. On the wire a message is a big-endian u16 length and that many bytes of JSON with a version.
//! After an accepting [`DialResponse`] the stream is raw bytes.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wayleave_vocab::{HostId, Incarnation, NodeName, TraceId};

/// Longest message in bytes, checked before anything is allocated.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// The version this build writes.
pub const VERSION: u8 = 1;

/// Asks for a connection to a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DialRequest {
    /// Version of this message.
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
    /// pass it on. An agent that cannot do it answers [`DialRefusal::Invalid`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
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
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
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
    },
    /// It took too long.
    #[error("no answer in time: {detail}")]
    TimedOut {
        /// What did not answer.
        detail: String,
    },
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

    #[test]
    fn a_length_over_the_bound_is_refused_before_allocation() {
        assert_eq!(body_length([0xff, 0xff]), Err(DecodeError::TooLong(0xffff)));
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_body::<DialRequest>(&bytes);
            let _ = decode_body::<DialResponse>(&bytes);
        }
    }
}
