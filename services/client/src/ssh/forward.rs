//! `-L`, `-R` and `-D`: what is asked for, and the listeners of this side.

use crate::failure::Failure;
use crate::output::note;
use crate::ssh::socks::{self, Version};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;
use wayleave_runtime::TaskGroup;
use wayleave_ssh::TcpEndpoint;

/// `[BIND:]PORT:HOST:PORT`, for `-L` and `-R`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardSpec {
    /// Where connections are taken: here for `-L`, on the node for `-R`.
    pub(crate) listen: TcpEndpoint,
    /// Where they go: from the node for `-L`, from here for `-R`.
    pub(crate) target: TcpEndpoint,
}

/// `[BIND:]PORT`, for `-D`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DynamicSpec(TcpEndpoint);

/// A connection that was taken here and wants to go somewhere from the node.
pub(crate) struct Taken {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Where to.
    pub(crate) target: TcpEndpoint,
    /// Who connected.
    pub(crate) originator: TcpEndpoint,
    /// Set when the client waits for an answer in SOCKS.
    pub(crate) socks: Option<Version>,
}

impl FromStr for ForwardSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        let (bind, port, host, host_port) = match parts.as_slice() {
            [port, host, host_port] => ("localhost", port, host, host_port),
            [bind, port, host, host_port] => (bind.as_str(), port, host, host_port),
            _ => return Err(format!("{text:?} is not [BIND:]PORT:HOST:PORT")),
        };
        if host.is_empty() {
            return Err(format!("{text:?} names no host"));
        }
        Ok(Self {
            listen: TcpEndpoint { host: bind.to_owned(), port: number(port)? },
            target: TcpEndpoint { host: host.clone(), port: number(host_port)? },
        })
    }
}

impl FromStr for DynamicSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match split(text)?.as_slice() {
            [port] => Ok(Self(TcpEndpoint { host: "localhost".to_owned(), port: number(port)? })),
            [bind, port] => Ok(Self(TcpEndpoint { host: bind.clone(), port: number(port)? })),
            _ => Err(format!("{text:?} is not [BIND:]PORT")),
        }
    }
}

/// Parts between colons; an IPv6 address stands in brackets.
fn split(text: &str) -> Result<Vec<String>, String> {
    if text.contains('/') {
        return Err(format!("{text:?}: forwarding of Unix sockets is not supported, only of ports"));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, tail) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (part, tail) = inner.split_once(']').ok_or_else(|| format!("{text:?} lacks a ]"))?;
                match tail.strip_prefix(':') {
                    Some(tail) => (part, Some(tail)),
                    None if tail.is_empty() => (part, None),
                    None => return Err(format!("{text:?} has something behind the ]")),
                }
            }
            None => match rest.split_once(':') {
                Some((part, tail)) => (part, Some(tail)),
                None => (rest, None),
            },
        };
        parts.push(part.to_owned());
        match tail {
            Some(tail) => rest = tail,
            None => return Ok(parts),
        }
    }
}

fn number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port"))
}

/// Starts to listen for `-L`.
pub(crate) async fn listen(
    spec: &ForwardSpec,
    taken: Sender<Taken>,
    tasks: &TaskGroup,
) -> Result<(), Failure> {
    let target = spec.target.clone();
    for listener in bind(&spec.listen).await? {
        let (target, taken, shutdown) = (target.clone(), taken.clone(), tasks.shutdown());
        tasks.spawn("local forward", async move {
            while let Some(Some((stream, originator))) = shutdown.until(accept(&listener)).await {
                let new = Taken { stream, target: target.clone(), originator, socks: None };
                if taken.send(new).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Starts to listen for `-D`.
pub(crate) async fn listen_socks(
    spec: &DynamicSpec,
    taken: Sender<Taken>,
    tasks: &TaskGroup,
) -> Result<(), Failure> {
    for listener in bind(&spec.0).await? {
        let (taken, group, shutdown) = (taken.clone(), tasks.clone(), tasks.shutdown());
        tasks.spawn("dynamic forward", async move {
            while let Some(Some((mut stream, originator))) = shutdown.until(accept(&listener)).await {
                let taken = taken.clone();
                group.spawn_many(async move {
                    match socks::handshake(&mut stream).await {
                        Ok((version, target)) => {
                            let new = Taken { stream, target, originator, socks: Some(version) };
                            // The connection to the node may be over.
                            let _ = taken.send(new).await;
                        }
                        Err(error) => tracing::debug!(%error, "a SOCKS client was refused"),
                    }
                });
            }
        });
    }
    Ok(())
}

/// Listens on every address of the name.
async fn bind(listen: &TcpEndpoint) -> Result<Vec<TcpListener>, Failure> {
    let fail = |error: std::io::Error| {
        Failure::failed(format!("cannot listen on {}:{}: {error}", listen.host, listen.port))
            .hint("choose another port, or end what uses this one")
    };
    let addresses = addresses(listen).await.map_err(fail)?;
    let is_everywhere = is_everywhere(&listen.host);
    let mut listeners = Vec::new();
    let mut last = None;
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            // Half of a name is not enough when somebody else has the other half.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && !is_everywhere => {
                return Err(fail(error));
            }
            Err(error) => last = Some(error),
        }
    }
    match (listeners.is_empty(), last) {
        (true, Some(error)) => Err(fail(error)),
        (true, None) => Err(fail(std::io::ErrorKind::AddrNotAvailable.into())),
        (false, _) => Ok(listeners),
    }
}

/// Empty and `*` are every address, as OpenSSH has it.
fn is_everywhere(host: &str) -> bool {
    matches!(host, "" | "*")
}

async fn addresses(listen: &TcpEndpoint) -> std::io::Result<Vec<SocketAddr>> {
    if is_everywhere(&listen.host) {
        // The first serves IPv4 too where the system lets it, and the second then fails.
        return Ok(vec![
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, listen.port)),
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port)),
        ]);
    }
    Ok(tokio::net::lookup_host((listen.host.as_str(), listen.port)).await?.collect())
}

async fn accept(listener: &TcpListener) -> Option<(TcpStream, TcpEndpoint)> {
    match listener.accept().await {
        Ok((stream, from)) => {
            // A keystroke does not wait for more.
            let _ = stream.set_nodelay(true);
            Some((stream, TcpEndpoint { host: from.ip().to_string(), port: from.port() }))
        }
        Err(error) => {
            note(&format!("a forwarded port takes no more connections: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(host: &str, port: u16) -> TcpEndpoint {
        TcpEndpoint { host: host.into(), port }
    }

    #[test]
    fn forwards_are_read_as_ssh_reads_them() {
        let check = |text: &str, expected: Option<(TcpEndpoint, TcpEndpoint)>| {
            let got = text.parse::<ForwardSpec>().ok().map(|spec| (spec.listen, spec.target));
            assert_eq!(got, expected, "{text}");
        };
        check("8080:db-1:5432", Some((endpoint("localhost", 8080), endpoint("db-1", 5432))));
        check("*:80:[::1]:81", Some((endpoint("*", 80), endpoint("::1", 81))));
        check(":80:h:81", Some((endpoint("", 80), endpoint("h", 81))));
        check("[::1]:80:h:81", Some((endpoint("::1", 80), endpoint("h", 81))));
        for bad in
            ["", "80", "80:h", "x:h:80", "80:h:99999", "80::81", "/run/x:h:80", "[::1:80:h:81", "1:2:3:4:5"]
        {
            check(bad, None);
        }
        assert_eq!("1080".parse::<DynamicSpec>().unwrap().0, endpoint("localhost", 1080));
        assert_eq!("10.0.0.1:1080".parse::<DynamicSpec>().unwrap().0, endpoint("10.0.0.1", 1080));
        assert!("a:b:c".parse::<DynamicSpec>().is_err());
    }

    #[tokio::test]
    async fn a_taken_connection_says_where_it_goes() {
        let tasks = TaskGroup::new();
        let (sender, mut taken) = tokio::sync::mpsc::channel(1);
        let listeners = bind(&endpoint("127.0.0.1", 0)).await.unwrap();
        let address = listeners[0].local_addr().unwrap();
        drop(listeners);
        let spec = ForwardSpec { listen: endpoint("127.0.0.1", address.port()), target: endpoint("db", 1) };
        listen(&spec, sender, &tasks).await.unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let new = taken.recv().await.unwrap();
        assert_eq!(new.target, endpoint("db", 1));
        assert_eq!(new.originator.port, client.local_addr().unwrap().port());
        assert!(
            bind(&endpoint("127.0.0.1", address.port())).await.unwrap_err().message.contains("cannot listen")
        );
    }

    proptest! {
        #[test]
        fn f_arbitrary_forwards_never_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<ForwardSpec>();
            let _ = text.parse::<DynamicSpec>();
        }
    }
}
