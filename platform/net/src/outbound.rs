//! The way out of this machine: straight, or through the HTTP proxy that `HTTPS_PROXY` names.

use crate::connect::ConnectError;
use std::env::VarError;
use std::io;
use std::sync::LazyLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wayleave_http_proxy::{
    ANSWER_BYTES_MAX, AnswerError, Bypass, HttpProxy, ParseHttpProxyError, connect_request, parse_answer,
};
use wayleave_vocab::HostPort;

/// Read once: a process keeps the way that it began with.
static OUTBOUND: LazyLock<Result<Outbound, OutboundError>> = LazyLock::new(Outbound::from_environment);

/// Which targets are reached through which proxy.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    proxy: Option<HttpProxy>,
    bypass: Bypass,
}

/// Settings of the environment that cannot be used. Nothing is reached past them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutboundError {
    /// The proxy cannot be read.
    #[error("{variable} cannot be used")]
    Proxy {
        /// Which variable.
        variable: &'static str,
        /// Why not.
        #[source]
        source: ParseHttpProxyError,
    },
    /// The variable holds something that is no text.
    #[error("{0} is no text")]
    NoText(&'static str),
}

/// A proxy that gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum HttpProxyError {
    /// It cannot be reached.
    #[error("the HTTP proxy cannot be reached")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection to the HTTP proxy broke")]
    Broken(#[source] io::Error),
    /// It closed the connection in the middle of its answer.
    #[error("the HTTP proxy ended the connection without an answer")]
    Ended,
    /// Its answer is no connection.
    #[error(transparent)]
    Answer(AnswerError),
}

impl Outbound {
    /// The proxy's setting and the exceptions, as the environment has them.
    ///
    /// # Errors
    /// See [`OutboundError`].
    fn from_environment() -> Result<Self, OutboundError> {
        let proxy = match first_set(["HTTPS_PROXY", "https_proxy"])? {
            None => None,
            Some((variable, text)) => {
                Some(HttpProxy::parse(&text).map_err(|source| OutboundError::Proxy { variable, source })?)
            }
        };
        let exceptions = first_set(["NO_PROXY", "no_proxy"])?;
        let bypass = exceptions.map(|(_, text)| Bypass::parse(&text)).unwrap_or_default();
        Ok(Self { proxy, bypass })
    }

    /// The settings of this process.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub fn of_process() -> Result<&'static Self, &'static OutboundError> {
        OUTBOUND.as_ref()
    }

    /// Where the HTTP proxy is, if there is one.
    pub fn proxy_address(&self) -> Option<&HostPort> {
        self.proxy.as_ref().map(HttpProxy::address)
    }

    /// True if the HTTP proxy leads to this target.
    pub(crate) fn is_proxied(&self, target: &HostPort) -> bool {
        self.proxy.is_some() && !self.bypass.has(target)
    }

    /// A TCP connection to `target`. Has no deadline of its own.
    pub(crate) async fn connect(&self, target: &HostPort) -> Result<TcpStream, ConnectError> {
        let Some(proxy) = self.proxy.as_ref().filter(|_| !self.bypass.has(target)) else {
            return TcpStream::connect((target.host(), target.port()))
                .await
                .map_err(|source| ConnectError::Tcp { address: target.clone(), source });
        };
        connect_through(proxy, target).await.map_err(|source| ConnectError::HttpProxy {
            address: target.clone(),
            proxy: proxy.address().clone(),
            source,
        })
    }
}

/// The first of these variables that says something.
fn first_set(variables: [&'static str; 2]) -> Result<Option<(&'static str, String)>, OutboundError> {
    for variable in variables {
        match std::env::var(variable) {
            Ok(text) if !text.trim().is_empty() => return Ok(Some((variable, text))),
            Ok(_) | Err(VarError::NotPresent) => {}
            Err(VarError::NotUnicode(_)) => return Err(OutboundError::NoText(variable)),
        }
    }
    Ok(None)
}

async fn connect_through(proxy: &HttpProxy, target: &HostPort) -> Result<TcpStream, HttpProxyError> {
    let address = proxy.address();
    let mut stream =
        TcpStream::connect((address.host(), address.port())).await.map_err(HttpProxyError::Connect)?;
    let request = connect_request(proxy, target);
    stream.write_all(request.expose_secret()).await.map_err(HttpProxyError::Broken)?;
    let mut answer = Vec::new();
    loop {
        // The other end says nothing before it is spoken to: what is read here is the proxy's alone.
        let room = u64::try_from(ANSWER_BYTES_MAX.saturating_sub(answer.len())).unwrap_or_default();
        if (&mut stream).take(room).read_buf(&mut answer).await.map_err(HttpProxyError::Broken)? == 0 {
            return Err(HttpProxyError::Ended);
        }
        if parse_answer(&answer).map_err(HttpProxyError::Answer)? {
            return Ok(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use wayleave_runtime::{Shutdown, TaskGroup};

    /// A listener that answers every connection with `answer`, and then keeps it open.
    async fn adversary(answer: Vec<u8>, endless: bool, tasks: &TaskGroup) -> HostPort {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort::from_socket(listener.local_addr().unwrap());
        let shutdown: Shutdown = tasks.shutdown();
        tasks.spawn("adversary", async move {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.write_all(&answer).await;
            while endless && stream.write_all(b"x: y\r\n").await.is_ok() {}
            shutdown.requested().await;
        });
        address
    }

    async fn dial(proxy: &str, target: &str) -> Result<TcpStream, ConnectError> {
        let outbound = Outbound { proxy: Some(HttpProxy::parse(proxy).unwrap()), bypass: Bypass::default() };
        let target = target.parse().unwrap();
        crate::connect::connect_tcp_by(&outbound, &target).await
    }

    async fn refusal(answer: &str, endless: bool) -> String {
        let tasks = TaskGroup::new();
        let proxy = adversary(answer.as_bytes().to_vec(), endless, &tasks).await;
        let error = dial(&format!("http://ann:secret@{proxy}"), "target.example.com:443").await.unwrap_err();
        let ConnectError::HttpProxy { source, .. } = &error else { panic!("{error:?}") };
        let text = format!("{error}: {source}");
        assert!(!format!("{text} {error:?}").contains("secret") && !text.contains("YW5u"), "{text}");
        tasks.finish(Duration::from_secs(5)).await;
        text
    }

    #[tokio::test]
    async fn f_a_proxy_that_lies_or_talks_without_end_is_refused() {
        for (answer, endless, expected) in [
            ("HTTP/1.1 200 OK\r\n", true, "longer than"),
            ("HTTP/1.1 407 No\r\n\r\n", false, "asks for a login (407)"),
            ("HTTP/1.1 403 No\r\n\r\n", false, "refused: 403 No"),
            ("HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n", false, "in place of the connection"),
            ("SSH-2.0-OpenSSH_9.2\r\n", false, "no HTTP proxy"),
            ("\0\0\0\0", true, "no HTTP proxy"),
        ] {
            let text = refusal(answer, endless).await;
            assert!(text.contains(expected), "{answer:?}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g_a_silent_proxy_has_a_deadline() {
        let tasks = TaskGroup::new();
        for beginning in ["", "HTTP/1.1 200 OK\r\nx"] {
            let proxy = adversary(beginning.as_bytes().to_vec(), false, &tasks).await;
            let error = dial(&proxy.to_string(), "target.example.com:443").await.unwrap_err();
            assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_is_not_there_is_named() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let error = dial(&format!("http://{address}"), "target.example.com:443").await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        // What is on this machine is reached without it.
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        dial(&format!("http://{address}"), &near.local_addr().unwrap().to_string()).await.unwrap();
    }
}
