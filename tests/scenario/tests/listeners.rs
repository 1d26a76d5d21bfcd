//! Every port under peers that say nothing, half of something, too much, or nonsense: they cost one slot each and
//! nobody else notices.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use wayleave_scenario::{
    Checks, Cluster, TlsClient, is_timeout, resident_bytes, tls_connect, tls_over, wait_until, web_ping,
};

/// Stalled peers of each kind on each port.
const STALLED: usize = 40;
/// Good clients that come while they stall.
const GOOD: usize = 30;
/// What all stalled peers together may cost a process.
const GROWTH_BYTES_MAX: u64 = 96 * 1024 * 1024;

const HALF_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
const HALF_PROXY_HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 ";
const HALF_BINARY_PROXY_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0";
const HALF_BANNER: &[u8] = b"SSH-2.0-half";

#[test]
fn listeners() {
    let mut cluster = Cluster::builder("listeners").proxies(2).nodes(&["web-1"]).peering(1).start();
    let mut balanced = cluster.proxy_file("balanced");
    balanced.lines = vec!["proxy_protocol: on".into(), "proxy_protocol_from: [127.0.0.0/8]".into()];
    cluster.add_proxy(balanced);
    let cluster = cluster;
    wait_until("the third proxy", || cluster.known_proxies() == 3);
    let mut checks = Checks::default();
    checks.run("a_peers_that_stall_delay_nobody_and_lose_their_slots", || {
        a_peers_that_stall_delay_nobody(&cluster)
    });
    checks
        .run("f_what_is_no_protocol_is_closed_in_time", || f_what_is_no_protocol_is_closed_in_time(&cluster));
    checks.run("f_frames_inside_tls_are_bounded", || f_frames_inside_tls_are_bounded(&cluster));
    checks.run("c_users_are_neither_proxies_nor_agents", || c_users_are_neither_proxies_nor_agents(&cluster));
    checks.run("a_proxy_header_is_demanded_where_it_is_configured", || {
        a_proxy_header_is_demanded_where_it_is_configured(&cluster);
    });
    checks.run("everybody_is_well_afterwards", || everybody_is_well(&cluster));
    checks.end();
}

/// Every port of the cluster.
fn ports(cluster: &Cluster) -> Vec<SocketAddr> {
    let mut ports = vec![cluster.auth_file.listen];
    for proxy in &cluster.proxies {
        ports.extend([proxy.file.web, proxy.file.ssh, proxy.file.peer]);
    }
    ports
}

fn everybody_is_well(cluster: &Cluster) {
    for proxy in 0..2 {
        cluster
            .ssh(&cluster.identity(), proxy)
            .run("web-1", &[], "echo well")
            .output()
            .succeeded()
            .printed("well");
    }
    assert_eq!(cluster.status()["cluster_name"], "scenario");
    for daemon in cluster.daemons() {
        assert!(!daemon.log_text().contains("panicked"), "{}", daemon.tail());
    }
}

/// Good clients are served before a peer that began to stall just before each of them loses its slot: nobody waits for
/// a peer's deadline. That holds however slow the machine is.
fn good_clients_wait_for_nobody(address: SocketAddr) {
    for _ in 0..GOOD {
        let mut last = TcpStream::connect(address).unwrap();
        last.write_all(HALF_HELLO).unwrap();
        web_ping(address);
        assert!(!is_closed(&mut last), "a client was served only after a stalled peer was given up");
    }
}

fn resident(cluster: &Cluster) -> Vec<u64> {
    cluster.daemons().map(|daemon| resident_bytes(daemon.pid())).collect()
}

fn a_peers_that_stall_delay_nobody(cluster: &Cluster) {
    let web = cluster.web(0);
    web_ping(web);
    let before = resident(cluster);
    let mut stalled: Vec<TcpStream> = Vec::new();
    for port in ports(cluster) {
        for said in [&b""[..], HALF_HELLO, HALF_PROXY_HEADER, HALF_BINARY_PROXY_HEADER, HALF_BANNER] {
            for _ in 0..STALLED {
                let mut stream = TcpStream::connect(port).unwrap();
                stream.write_all(said).unwrap();
                stalled.push(stream);
            }
        }
    }
    // Those who shook hands and then say no more.
    let mut shaken: Vec<TlsClient> = Vec::new();
    for (port, protocol) in
        [(web, &b"http/1.1"[..]), (cluster.auth_file.listen, b"h2"), (web, b"wayleave-auth/1")]
    {
        for _ in 0..STALLED {
            shaken.extend(tls_connect(port, protocol, None).ok());
        }
    }
    assert!(shaken.len() >= STALLED);
    for stream in shaken.iter_mut().take(STALLED) {
        stream.write_all(b"GET /webapi/ping HTTP/1.1\r\nHost: x\r\nX-Half").unwrap();
    }
    good_clients_wait_for_nobody(web);
    everybody_is_well(cluster);
    let grown: Vec<u64> =
        resident(cluster).iter().zip(&before).map(|(now, then)| now.saturating_sub(*then)).collect();
    assert!(grown.iter().all(|bytes| *bytes < GROWTH_BYTES_MAX), "{grown:?}");
    stalled.extend(shaken.into_iter().map(|stream| stream.sock));
    wait_until("the slots of all stalled peers to be free", || {
        stalled.retain_mut(|stream| !is_closed(stream));
        stalled.is_empty()
    });
}

/// Whether the other side has ended it; what it said before is dropped.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut said = [0; 4096];
    loop {
        match stream.read(&mut said) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Nonsense for any port.
fn nonsense() -> Vec<Vec<u8>> {
    let mut ssh_packet = b"SSH-2.0-nonsense\r\n".to_vec();
    ssh_packet.extend([0xff; 4096]);
    let mut endless_banner = b"SSH-2.0-".to_vec();
    endless_banner.extend(vec![b'x'; 200_000]);
    let mut long_v1 = b"PROXY TCP4 ".to_vec();
    long_v1.extend(vec![b'1'; 70_000]);
    let mut long_v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    long_v2.extend(vec![0; 70_000]);
    let mut large_hello = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03".to_vec();
    large_hello.extend(vec![0; 16_384]);
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    h2.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    vec![
        vec![0xff; 70_000],
        vec![0; 70_000],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ssh_packet,
        endless_banner,
        long_v1,
        long_v2,
        large_hello,
        b"\x16\x03\x01\xff\xff".to_vec(),
        b"\x16\x03\x01\x00\x00\x16\x03\x01\x00\x00\x16\x03\x01\x00\x00".to_vec(),
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10".to_vec(),
        h2,
        vec![0x16],
    ]
}

fn f_what_is_no_protocol_is_closed_in_time(cluster: &Cluster) {
    let mut open = Vec::new();
    for port in ports(cluster) {
        for bytes in nonsense() {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            // It may be closed before everything was said.
            let _closed = stream.write_all(&bytes);
            open.push((port, bytes, stream));
        }
    }
    wait_until("nonsense to be closed everywhere", || {
        open.retain_mut(|(_, _, stream)| !is_closed(stream));
        open.is_empty()
    });
    everybody_is_well(cluster);
}

/// Sends bytes over TLS and reads to the end, which must come in time.
fn said_to(
    address: SocketAddr,
    protocol: &[u8],
    identity: Option<&std::path::Path>,
    bytes: &[u8],
) -> Vec<u8> {
    let mut answer = Vec::new();
    let Ok(mut stream) = tls_connect(address, protocol, identity) else { return answer };
    let _closed = stream.write_all(bytes).and_then(|()| stream.flush());
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) => {
                assert!(!is_timeout(&error), "{address} {protocol:?} held on to {} bytes", bytes.len());
                return answer;
            }
        }
    }
}

fn f_frames_inside_tls_are_bounded(cluster: &Cluster) {
    let (web, auth, identity) = (cluster.web(0), cluster.auth_file.listen, cluster.identity());
    let mut header = b"GET /webapi/ping HTTP/1.1\r\nHost: x\r\nX-Long: ".to_vec();
    header.extend(vec![b'x'; 1_000_000]);
    let mut body =
        b"POST /webapi/ping HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec();
    body.extend(vec![b'x'; 100_000]);
    let mut upgrade = b"GET /webapi/connectionupgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wayleave\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        .to_vec();
    upgrade.extend([0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]);
    let smuggled = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n".to_vec();
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    h2.extend([0xff, 0xff, 0xff, 0x00, 0, 0, 0, 0, 1]);
    h2.extend(vec![0; 20_000]);
    let mut pings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    pings.extend([1, 0, 0, 0x01, 0, 0, 0, 0, 1].repeat(100));
    std::thread::scope(|scope| {
        for bytes in [&header, &body, &upgrade, &smuggled, &h2] {
            scope.spawn(move || said_to(web, b"http/1.1", None, bytes));
        }
        for (address, protocol) in [(auth, &b"h2"[..]), (auth, b"wayleave-auth/1"), (web, b"wayleave-auth/1")]
        {
            for bytes in [&header, &h2, &pings] {
                scope.spawn(move || said_to(address, protocol, None, bytes));
            }
        }
        // A user may dial, but not with these.
        for bytes in [&b"\xff\xff"[..], b"\x00", b"\x00\x00", b"\x00\x10{\"version\":99999", &header] {
            let identity = &identity;
            scope.spawn(move || {
                let answer = said_to(web, b"wayleave-dial/1", Some(identity), bytes);
                assert!(answer.len() < 4096, "{} bytes came back", answer.len());
            });
        }
    });
    everybody_is_well(cluster);
}

/// Streams that are for processes only end for everybody else in the handshake, or with its first bytes.
fn c_users_are_neither_proxies_nor_agents(cluster: &Cluster) {
    let identity = cluster.identity();
    let (web, peer, auth) = (cluster.web(0), cluster.proxies[0].file.peer, cluster.auth_file.listen);
    let cases = [
        (web, &b"wayleave-tunnel/1"[..]),
        (peer, b"h2"),
        (peer, b"wayleave-peer/1"),
        (auth, b"wayleave-forward/1"),
    ];
    std::thread::scope(|scope| {
        for (address, protocol) in cases {
            for identity in [None, Some(identity.as_path())] {
                scope.spawn(move || {
                    let answer = said_to(
                        address,
                        protocol,
                        identity,
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                    );
                    assert!(answer.len() < 256, "{protocol:?} at {address} told {answer:?}");
                });
            }
        }
        // Who dials is a user: nobody else is asked what he wants.
        scope.spawn(|| assert!(said_to(web, b"wayleave-dial/1", None, b"\x00\x02{}").is_empty()));
    });
}

fn a_proxy_header_is_demanded_where_it_is_configured(cluster: &Cluster) {
    let is_served = |header: &[u8]| {
        let mut stream = TcpStream::connect(cluster.web(2)).unwrap();
        stream.write_all(header).unwrap();
        tls_over(stream, b"http/1.1", None).is_ok()
    };
    assert!(is_served(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n"));
    assert!(is_served(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x10\0\x01\xbb"));
    assert!(!is_served(b""));
    assert!(!is_served(b"PROXY TCP4 nobody nowhere 1 2\r\n"));
    // And nobody may say where he comes from who was not asked.
    let mut uninvited = TcpStream::connect(cluster.web(0)).unwrap();
    uninvited.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n").unwrap();
    assert!(tls_over(uninvited, b"http/1.1", None).is_err());
}
