//! Streams to nodes that outlive their connections: dialled again through any proxy, by the identity of the moment.

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::dial::{Dialled, NodeStream, Proxies, dial};
use crate::failure::Failure;
use futures::future::BoxFuture;
use std::io::Write;
use std::sync::Arc;
use wayleave_dial::Resume;
use wayleave_resumable::{Agent, ClientStream, News, Redial, RedialError, RedialTo, Redialled};
use wayleave_vocab::{HostPort, NodeName, SystemRole};

/// Most addresses of proxies that an agent may name.
const PROXIES_MAX: usize = 32;

/// Whether a person is told that the connection is being made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// Nobody looks on.
    Quiet,
    /// Somebody sits at a terminal.
    Terminal,
}

/// A stream to a node.
pub(crate) struct Opened {
    pub(crate) stream: NodeStream,
    /// It sees to its own life, and may be silent for longer than who speaks over it would bear.
    pub(crate) is_resumable: bool,
}

/// Opens a stream to a node. It is resumed when its connection is lost, if the agent can do that.
pub(crate) async fn open(access: &Access, node: &NodeName, voice: Voice) -> Result<Opened, Failure> {
    let proxies = Proxies::of(access)?;
    let Dialled { stream, resume, .. } = dial(access, &proxies, node, Resume::New).await?;
    if resume.is_none() {
        return Ok(Opened { stream, is_resumable: false });
    }
    let identity = &access.identity;
    let cluster = &identity.parts().cluster;
    let names = vec![node.to_string(), format!("{node}.{cluster}")];
    let agent = Agent { names, role: SystemRole::Node, trust: identity.trust() };
    let redial = Redialler { global: access.global.clone(), node: node.to_string(), voice };
    let stream = ClientStream::new(stream, identity.credentials(), agent, Arc::new(redial))
        .map_err(Failure::doing("cannot sign for a stream that can be resumed"))?;
    Ok(Opened { stream: Box::new(stream), is_resumable: true })
}

/// Finds the identity anew each time: a login in between counts.
struct Redialler {
    global: GlobalArgs,
    node: String,
    voice: Voice,
}

impl Redialler {
    async fn dial(&self, to: RedialTo<'_>) -> Result<Redialled, RedialError> {
        let again = |failure: Failure| RedialError(failure.message);
        let access = Access::find(&self.global).map_err(again)?;
        let node = NodeName::parse(to.agent.to_string()).map_err(|error| RedialError(error.to_string()))?;
        let proxies = every_proxy(&access, to.proxies);
        let tried = to.tried.iter().filter_map(|address| HostPort::parse(address, None).ok()).collect();
        let proxies = Proxies { tried, ..proxies };
        let dialled = dial(&access, &proxies, &node, Resume::Reattach).await.map_err(again)?;
        Ok(Redialled {
            connection: dialled.stream,
            credentials: access.identity.credentials().clone(),
            trust: access.identity.trust(),
            proxy: dialled.proxy.to_string(),
        })
    }
}

/// The proxies that are used, then the others that the identity names, then those that the agent knows.
fn every_proxy(access: &Access, told: &[String]) -> Proxies {
    let mut own = access.proxies.clone();
    for known in &access.identity.parts().proxies {
        if !own.contains(known) {
            own.push(known.clone());
        }
    }
    let told = told.iter().filter_map(|address| HostPort::parse(address, None).ok());
    let told = told.filter(|address| !own.contains(address)).take(PROXIES_MAX).collect();
    Proxies { own, told, tried: Vec::new() }
}

impl Redial for Redialler {
    fn redial<'a>(&'a self, to: RedialTo<'a>) -> BoxFuture<'a, Result<Redialled, RedialError>> {
        Box::pin(self.dial(to))
    }

    fn tell(&self, news: &News) {
        let text = match news {
            News::Reconnecting => format!("the connection to {} was lost: reconnecting", self.node),
            News::Reconnected => format!("connected to {} again", self.node),
            News::NotResumable { reason } => {
                return tracing::debug!(reason, "a loss of the connection will end this stream");
            }
        };
        if self.voice == Voice::Terminal {
            // The terminal is raw: the line ends in both ways. Nobody to tell when standard error is gone.
            let _ = write!(std::io::stderr().lock(), "\r\nway: {text}\r\n");
        }
    }
}
