//! What the certificate of a publisher says: whoever holds its key may publish machines by `ssh -R`, and nothing else.

use crate::DecodePrincipalError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wayleave_vocab::{ClusterName, NodeName, TokenName};

/// Name of the critical option in SSH certificates. Whoever does not know it must refuse the certificate.
pub const PUBLISH_OPTION: &str = "publish@wayleave";
/// Longest encoding in bytes.
const ENCODED_BYTES_MAX: usize = 6 * 1024;
/// The version this build writes.
const VERSION: u8 = 1;

/// What a publisher's certificate allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publisher {
    /// The token that it was issued for.
    pub token: TokenName,
    /// The cluster that issued it.
    pub cluster: ClusterName,
    /// Names of machines.
    pub names: BTreeSet<NodeName>,
    /// Ports under each of the names.
    pub ports: BTreeSet<u16>,
    /// Port 22 is a TCP port like the others: the machines' sshd do not trust the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tcp_only: bool,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u8,
    #[serde(flatten)]
    publisher: Publisher,
}

impl Publisher {
    /// The text of the critical option.
    pub fn encode(&self) -> String {
        let envelope = Envelope { v: VERSION, publisher: self.clone() };
        serde_json::to_string(&envelope).expect("sets of strings and numbers always serialise")
    }

    /// Reads what [`Publisher::encode`] wrote.
    ///
    /// # Errors
    /// When the text is too long, of another version or misshapen.
    pub fn decode(text: &str) -> Result<Self, DecodePrincipalError> {
        if text.len() > ENCODED_BYTES_MAX {
            return Err(DecodePrincipalError::TooLong(text.len()));
        }
        let envelope: Envelope =
            serde_json::from_str(text).map_err(|e| DecodePrincipalError::Malformed(e.to_string()))?;
        if envelope.v != VERSION {
            let text = format!("version {}, this build reads {VERSION}", envelope.v);
            return Err(DecodePrincipalError::Malformed(text));
        }
        Ok(envelope.publisher)
    }

    /// Whether it allows to publish a port of a machine. Letter case makes no difference, as in DNS.
    pub fn covers(&self, name: &NodeName, port: u16) -> bool {
        self.ports.contains(&port)
            && self.names.iter().any(|own| own.as_str().eq_ignore_ascii_case(name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher() -> Publisher {
        Publisher {
            token: TokenName::parse("web").unwrap(),
            cluster: ClusterName::parse("demo").unwrap(),
            names: [NodeName::parse("web-1").unwrap()].into(),
            ports: [22, 8080].into(),
            tcp_only: false,
        }
    }

    #[test]
    fn it_looks_as_the_golden_text_says() {
        let text = r#"{"v":1,"token":"web","cluster":"demo","names":["web-1"],"ports":[22,8080]}"#;
        assert_eq!(publisher().encode(), text);
        assert_eq!(Publisher::decode(text), Ok(publisher()));
    }

    #[test]
    fn d_only_what_is_listed_is_covered() {
        let covers = |name: &str, port| publisher().covers(&NodeName::parse(name).unwrap(), port);
        assert!(covers("web-1", 22) && covers("WEB-1", 8080));
        assert!(!covers("web-2", 22) && !covers("web-1", 23) && !covers("web-1.demo", 22));
    }

    #[test]
    fn d_what_this_build_does_not_know_is_refused() {
        let text = publisher().encode();
        for wrong in [text.replace("\"v\":1", "\"v\":2"), text.replace("names", "name"), String::new()] {
            assert!(Publisher::decode(&wrong).is_err(), "{wrong}");
        }
    }
}
