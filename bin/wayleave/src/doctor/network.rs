//! The way to the cluster: names, ports, balancers, packets that are too large, clocks, and the peers of a proxy.
//!
//! Handshakes here verify nobody ([`probe_config`]): what is wrong with the certificates of the other side must not keep
//! the doctor from looking, and nothing is sent that is worth anything.

use super::report::Report;
use crate::edge;
use crate::storage::Storage;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_api::auth::{PingRequest, PingResponse, ProxyRecord, WatchClusterRequest};
use wayleave_api::{ALPN_AUTH, ALPN_TUNNEL};
use wayleave_config::{Config, Upstream};
use wayleave_instance::{Instance, InstanceConfig};
use wayleave_keystore::{Audience, HelloSize, client_config, probe_config, public_client_config};
use wayleave_net::{AddressBook, ConnectError, connect_tls, connect_told_straight};
use wayleave_rpc::channel_through;
use wayleave_runtime::{Clock, SystemClock};
use wayleave_store::Key;
use wayleave_vocab::{HostId, HostPort, SystemRole};

/// What every web server and balancer speaks.
const ALPN_WEB: &[u8] = b"http/1.1";
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Clocks that differ by more are a problem: one-time codes and fresh certificates are refused.
const CLOCK_OFF_MAX_MS: u64 = 20_000;
/// Longest event of the cluster: a policy of 64 MiB, its head, and their envelope.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024 + 64 * 1024;

pub(super) async fn check(file: &Path, config: &Config, report: &mut Report) {
    check_names(config, report).await;
    match &config.instance.upstream {
        Upstream::ProxyServer(address) => {
            check_public_port(address, report).await;
            check_auth(address, config, report).await;
        }
        Upstream::AuthServers(addresses) => {
            for address in addresses {
                check_auth(address, config, report).await;
            }
        }
        Upstream::LocalAuth { .. } => {}
    }
    if config.proxy.is_some() {
        check_peers(config, report).await;
    }
    if config.auth.is_some() {
        check_backend(config, report).await;
        check_proxies(file, report).await;
    }
}

/// A backend on a server is opened and asked; one in a file may be in use, which is no problem.
async fn check_backend(config: &Config, report: &mut Report) {
    let storage = match Storage::configured(&config.instance.storage) {
        Ok(storage) => storage,
        Err(error) => {
            let mend = "mend wayleave.storage, or the file that it points at";
            return report.bad("backend", &format!("{error:#}"), mend);
        }
    };
    match &storage {
        Storage::Memory => {
            report.good("backend", "the backend is memory: everything is lost when Auth stops");
        }
        Storage::Sqlite(_) => {}
        Storage::Postgresql(_) | Storage::Etcd(_) => {
            let opening = async {
                let backend = storage.open(Arc::new(SystemClock::new())).await?;
                backend.range(&Key::root(), None, 1).await?;
                backend.close().await;
                anyhow::Ok(())
            };
            match opening.await {
                Ok(()) => report.good("backend", &format!("{} answers", storage.shown())),
                Err(error) => report.bad(
                    "backend",
                    &format!("{error:#}"),
                    "check that the server runs, the address, the user and password, and the files of TLS",
                ),
            }
        }
    }
}

/// Every name of the file must mean something.
async fn check_names(config: &Config, report: &mut Report) {
    let mut names: BTreeSet<(&'static str, HostPort)> = BTreeSet::new();
    match &config.instance.upstream {
        Upstream::ProxyServer(address) => names.extend([("wayleave.proxy_server", address.clone())]),
        Upstream::AuthServers(addresses) => {
            names.extend(addresses.iter().map(|address| ("wayleave.auth_server", address.clone())));
        }
        Upstream::LocalAuth { .. } => {}
    }
    if let Some(proxy) = &config.proxy {
        names.extend(proxy.public_addrs.iter().map(|address| ("proxy_service.public_addr", address.clone())));
        names.extend(proxy.peer.public_addr.iter().map(|a| ("proxy_service.peer_public_addr", a.clone())));
    }
    for (key, address) in names {
        let found =
            tokio::time::timeout(ASK_TIMEOUT, tokio::net::lookup_host((address.host(), address.port())));
        match found.await {
            Ok(Ok(found)) => {
                let found: BTreeSet<String> = found.map(|address| address.ip().to_string()).collect();
                let list = found.iter().cloned().collect::<Vec<_>>().join(", ");
                if key.ends_with("peer_public_addr") && found.len() > 1 {
                    let text = format!("{key}: {} stands for several addresses: {list}", address.host());
                    let mend =
                        "the peer address is this one proxy's: give it a name or an address of its own";
                    report.bad("dns", &text, mend);
                } else {
                    report.good("dns", &format!("{key}: {} is {list}", address.host()));
                }
            }
            Ok(Err(error)) => {
                let text = format!("{key}: the name {} is not known: {error}", address.host());
                report.bad(
                    "dns",
                    &text,
                    "correct the name, or the name servers of this machine (/etc/resolv.conf)",
                );
            }
            Err(_) => {
                let text = format!("{key}: no name server answers for {}", address.host());
                report.bad("dns", &text, "check the name servers of this machine (/etc/resolv.conf)");
            }
        }
    }
}

/// The public port of a proxy, or what stands before it.
async fn check_public_port(address: &HostPort, report: &mut Report) {
    let (protocol, alpn) = match handshake(address, ALPN_TUNNEL, HelloSize::Small).await {
        Ok(alpn) => (ALPN_TUNNEL, alpn),
        // Some refuse protocols that they do not know; then it is a web server that stands there.
        Err(error @ ConnectError::Tls { .. }) => match handshake(address, ALPN_WEB, HelloSize::Small).await {
            Ok(alpn) => (ALPN_WEB, alpn),
            Err(_) => return unreachable(&error, report),
        },
        Err(error) => return unreachable(&error, report),
    };
    report.good("reach", &format!("{address} answers by TLS"));
    let large = handshake(address, protocol, HelloSize::Large).await;
    match large {
        Ok(_) => report.good("mtu", &format!("{address} takes long ClientHellos")),
        Err(error) => report.bad(
            "mtu",
            &format!("{address} answers short ClientHellos, and not those of several packets: {}", chain(&error)),
            "something on the way loses large packets or cannot read a hello in parts: let ICMP \"fragmentation needed\" \
             through, lower the MTU of the interface, or renew the firewall or balancer; keys of these days make hellos \
             longer than one packet",
        ),
    }
    if alpn.as_deref() == Some(ALPN_TUNNEL) {
        return report.good("alpn", &format!("{address} lets the protocols of Wayleave through"));
    }
    let answered = alpn.map_or_else(|| "none".to_owned(), |alpn| String::from_utf8_lossy(&alpn).into_owned());
    let what =
        format!("{address} does not let the protocols of Wayleave through (ALPN answered: {answered})");
    match upgraded(address).await {
        Ok(()) => report.note(
            "alpn",
            &format!("{what}: a balancer ends TLS there, and WebSockets get through"),
            "it works, with one connection inside another; have the balancer pass TCP through (layer 4) if you can",
        ),
        Err(error) => report.bad(
            "alpn",
            &format!("{what}, and no WebSocket gets through either: {error}"),
            "have the balancer pass TCP through (layer 4), or let it forward WebSockets and give it a certificate that \
             this machine's authorities vouch for",
        ),
    }
}

fn unreachable(error: &ConnectError, report: &mut Report) {
    let mend = match error {
        ConnectError::Tcp { .. } | ConnectError::TimedOut { .. } => {
            "check the name, the port and the firewall between here and there"
        }
        _ => {
            "something answers there that does not speak TLS as a proxy does: check the port, and what stands before it"
        }
    };
    report.bad("reach", &chain(error), mend);
}

async fn handshake(
    address: &HostPort,
    alpn: &[u8],
    size: HelloSize,
) -> Result<Option<Vec<u8>>, ConnectError> {
    let tls = probe_config(alpn, size).map_err(|_| ConnectError::NoAddress)?;
    let stream = connect_tls(address, tls).await?;
    Ok(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
}

/// The cluster's protocols inside a WebSocket, as agents go when a balancer ends TLS.
async fn upgraded(address: &HostPort) -> Result<(), String> {
    let outer = public_client_config(None).map_err(|error| error.to_string())?;
    let stream = connect_tls(address, outer).await.map_err(|error| chain(&error))?;
    let host = address.to_string();
    let asking = wayleave_net::UpgradedStream::request(stream, &host);
    match tokio::time::timeout(ASK_TIMEOUT, asking).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Auth, directly or through a proxy: its clock, its cluster, its pins.
async fn check_auth(address: &HostPort, config: &Config, report: &mut Report) {
    let (before, asked) = (now_ms(), ask(address).await);
    let after = now_ms();
    let pong = match asked {
        Ok(pong) => pong,
        Err(error) => {
            let text = format!("the Auth Service is not reached through {address}: {error}");
            let mend = "check that Auth runs, and that the proxies reach it (their /readyz says so)";
            return report.bad("auth", &text, mend);
        }
    };
    report.good("auth", &format!("the Auth Service of {} answers ({})", pong.cluster_name, pong.version));
    check_clock(&pong, before, after, report);
    check_pins(&pong, config, report);
}

async fn ask(address: &HostPort) -> Result<PingResponse, String> {
    let tls = probe_config(ALPN_AUTH, HelloSize::Usual).map_err(|error| error.to_string())?;
    let outer = public_client_config(None).map_err(|error| error.to_string())?;
    let mut auth = PublicClient::new(channel_through(AddressBook::new(vec![address.clone()]), tls, outer));
    match tokio::time::timeout(ASK_TIMEOUT, auth.ping(PingRequest {})).await {
        Ok(Ok(pong)) => Ok(pong.into_inner()),
        Ok(Err(status)) => Err(told(&status)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn check_clock(pong: &PingResponse, before: u64, after: u64, report: &mut Report) {
    if pong.now_ms == 0 {
        return;
    }
    let (early, late) = (before.saturating_sub(pong.now_ms), pong.now_ms.saturating_sub(after));
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let mend = "set the clock, here or on the Auth host, whichever is wrong (chrony, ntpd, timedatectl): certificates and \
                one-time codes depend on it";
    match (early > CLOCK_OFF_MAX_MS, late > CLOCK_OFF_MAX_MS) {
        (true, _) => {
            let text = format!("the clock here is {} ahead of that of Auth", seconds(early));
            report.bad("clock", &text, mend);
        }
        (_, true) => {
            let text = format!("the clock here is {} behind that of Auth", seconds(late));
            report.bad("clock", &text, mend);
        }
        (false, false) => {
            report.good(
                "clock",
                &format!("the clock agrees with that of Auth to {}", seconds(early.max(late))),
            );
        }
    }
}

fn check_pins(pong: &PingResponse, config: &Config, report: &mut Report) {
    let Ok(pins) = edge::pins(&config.instance) else { return };
    let theirs: Result<wayleave_keystore::Pins, _> = pong.ca_pins.join(",").parse();
    let Ok(theirs) = theirs else { return };
    if pins.is_empty() || theirs.is_empty() {
        return;
    }
    if pins.shares_one_with(&theirs) {
        report.good("pins", "wayleave.ca_pin is a pin of this cluster");
    } else {
        report.bad(
            "pins",
            &format!("wayleave.ca_pin is no pin of the cluster {} that answers", pong.cluster_name),
            "compare with `way -c FILE status` on the Auth host: another cluster answers here, or somebody in between",
        );
    }
}

/// The peers of a proxy, each as it would connect to them.
async fn check_peers(config: &Config, report: &mut Report) {
    if !config.instance.data_dir.join("identity/process.json").exists() {
        return report.note(
            "peers",
            "this proxy has not joined yet: its peers are not known",
            "start it once, then ask again",
        );
    }
    let (instance, proxies) = match known_proxies(config).await {
        Ok(known) => known,
        Err(error) => {
            let mend = "Auth must answer, and this user must be able to read the data directory";
            return report.bad(
                "peers",
                &format!("the peers of this proxy cannot be asked for: {error}"),
                mend,
            );
        }
    };
    let own = instance.host_id();
    for proxy in proxies.iter().filter(|proxy| !proxy.peer_address.is_empty()) {
        let (Ok(id), Ok(address)) = (proxy.host_id.parse::<HostId>(), proxy.peer_address.parse::<HostPort>())
        else {
            continue;
        };
        if id == own {
            continue;
        }
        let place = format!("the proxy {} ({id}) at {address}", proxy.name);
        match who_answers(&instance, &address).await {
            Ok(found) if found == id => report.good("peers", &format!("{place} is reached from here")),
            Ok(found) => report.bad(
                "peers",
                &format!("at {address}, the peer address of {} ({id}), {found} answers", proxy.name),
                "a balancer stands there or the address is another machine's: give that proxy a peer_public_addr of its \
                 own",
            ),
            Err(error) => report.bad(
                "peers",
                &format!("{place} is not reached from here: {error}"),
                "check that it runs, and the firewall between the proxies (port 3021)",
            ),
        }
    }
}

/// On the Auth host: what every proxy finds wrong, with its peers as it sees them.
async fn check_proxies(file: &Path, report: &mut Report) {
    let asked = tokio::time::timeout(ASK_TIMEOUT, wayleave_client::overview(file)).await;
    let overview = match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
        Ok(overview) => overview,
        Err(error) => {
            let text = format!("what the proxies find is not known: {error}");
            return report.note("proxies", &text, "start the Auth Service, then ask again as its user");
        }
    };
    for proxy in overview.proxies {
        let Some(record) = proxy.record else { continue };
        let name = format!("the proxy {} ({})", record.name, record.host_id);
        if !proxy.online {
            let mend = "start it, or look why it does not reach Auth; one that is gone for good is forgotten";
            report.note("proxies", &format!("{name} publishes no routes at Auth now"), mend);
        } else if record.problems.is_empty() {
            report.good("proxies", &format!("{name} finds nothing wrong with its peers"));
        }
        for problem in record.problems {
            let mend = "check the firewall between the proxies (port 3021) and their peer_public_addr";
            report.bad("proxies", &format!("{name} says: {problem}"), mend);
        }
    }
}

async fn known_proxies(config: &Config) -> Result<(Instance, Vec<ProxyRecord>), String> {
    let addresses = AddressBook::new(match &config.instance.upstream {
        Upstream::ProxyServer(address) => vec![address.clone()],
        Upstream::AuthServers(addresses) => addresses.clone(),
        Upstream::LocalAuth { .. } => {
            let auth = config.auth.as_ref().map(|auth| local(auth.listen_addr));
            auth.into_iter().collect()
        }
    });
    let settings = InstanceConfig {
        data_dir: config.instance.data_dir.clone(),
        node_name: edge::node_name(&config.instance).map_err(|error| format!("{error:#}"))?,
        roles: BTreeSet::new(),
        token: None,
        pins: wayleave_keystore::Pins::default(),
        addresses: addresses.clone(),
        additional_principals: Vec::new(),
    };
    let clock = SystemClock::new();
    let opened = Instance::open(settings, &clock as &dyn Clock).await;
    let instance = opened.map_err(|error| chain(&error))?;
    let auth = instance.channel_as(SystemRole::Proxy, &addresses).map_err(|error| chain(&error))?;
    let asking = async {
        let mut client = HostClient::new(auth).max_decoding_message_size(EVENT_BYTES_MAX);
        let mut events = client.watch_cluster(WatchClusterRequest::default()).await?.into_inner();
        let mut proxies = Vec::new();
        while let Some(event) = events.message().await? {
            match event.event {
                Some(Event::ProxyPut(proxy)) => proxies.push(proxy),
                Some(Event::InitialStateSent(_)) => break,
                _ => {}
            }
        }
        Ok::<_, tonic::Status>(proxies)
    };
    match tokio::time::timeout(ASK_TIMEOUT, asking).await {
        Ok(Ok(proxies)) => Ok((instance, proxies)),
        Ok(Err(status)) => Err(told(&status)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn who_answers(instance: &Instance, address: &HostPort) -> Result<HostId, String> {
    let Some(identity) = instance.role(SystemRole::Proxy) else {
        return Err("this process has no certificate of a proxy".to_owned());
    };
    let trust = instance.trust();
    let tls =
        client_config(&identity.tls, trust, SystemRole::Proxy, None, &[b"h2"]).map_err(|e| chain(&e))?;
    let stream = connect_told_straight(address, tls).await.map_err(|error| chain(&error))?;
    let chain_of = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let now = SystemClock::new().wall();
    let principal = trust.identify(chain_of, Audience::Server, now).map_err(|error| chain(&error))?;
    let host = principal.as_host_with(SystemRole::Proxy).ok_or("it is no proxy")?;
    Ok(host.host_id)
}

fn local(mut address: std::net::SocketAddr) -> HostPort {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    HostPort::from_socket(address)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a call failed for: the connection, or what was answered.
fn told(status: &tonic::Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), chain)
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now_ms: u64, problem: bool, part: &str) {
        let pong = PingResponse { now_ms, ..PingResponse::default() };
        let mut report = Report::default();
        check_clock(&pong, 1_000_000, 1_000_100, &mut report);
        assert_eq!(report.problems() == 1, problem, "{now_ms}");
        assert!(report.text().contains(part), "{}", report.text());
    }

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        check(1_000_050, false, "agrees");
        check(1_010_000, false, "agrees with that of Auth to 9.9 s");
        check(970_000, true, "30.0 s ahead");
        check(1_090_100, true, "90.0 s behind");
        check(0, false, "nothing to mend");
    }
}
