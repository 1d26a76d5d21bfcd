//! Messages between processes: dial messages, the multiplexer, PROXY headers, protobuf.

use super::{CONNECTION, SMALL, lines, owned};
use crate::{Target, text};
use bytes::{Buf, BytesMut};
use prost::Message;
use std::time::Duration;
use wayleave_api::{agent, auth};
use wayleave_dial::{DialRequest, DialResponse, Heard, body_length, decode_body, decode_request, encode};
use wayleave_mux::{Config, Event, Mux, Role};
use wayleave_resume_wire::Frame;
use wayleave_vocab::Mono;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "dial", memory_bytes_max: SMALL, seeds: dials, run: dial },
    Target { name: "mux_connector", memory_bytes_max: CONNECTION, seeds: muxes, run: mux_connector },
    Target { name: "mux_acceptor", memory_bytes_max: CONNECTION, seeds: muxes, run: mux_acceptor },
    Target { name: "proxy_protocol", memory_bytes_max: SMALL, seeds: headers, run: header },
    Target { name: "http_proxy", memory_bytes_max: SMALL, seeds: answers, run: http_proxy },
    Target { name: "resume", memory_bytes_max: SMALL, seeds: frames, run: frame },
    Target { name: "protobuf", memory_bytes_max: SMALL, seeds: messages, run: message },
];

fn dials() -> Vec<Vec<u8>> {
    let mut seeds = lines(include_str!("../../../../wire/dial/golden/dial_request_v1.json"));
    seeds.push(encode(&DialResponse::Established { route: None }).unwrap()[2..].to_vec());
    seeds.push(b"{\"result\":\"refused\",\"reason\":\"offline\",\"name\":\"a\",\"detail\":\"b\"}".to_vec());
    seeds
}

fn dial(bytes: &[u8]) {
    if let Some(prefix) = bytes.first_chunk() {
        let _ = body_length(*prefix);
    }
    if let Ok(request) = decode_body::<DialRequest>(bytes) {
        let again = encode(&request).unwrap();
        assert_eq!(decode_body::<DialRequest>(&again[2..]).unwrap(), request);
    }
    let _ = decode_body::<DialResponse>(bytes);
    if let Ok(Heard::Request(request)) = decode_request(bytes, "the proxy") {
        assert_eq!(decode_body::<DialRequest>(bytes).unwrap(), *request);
    }
}

/// The frames of resumable streams, from their golden file.
fn frames() -> Vec<Vec<u8>> {
    include_str!("../../../../wire/resume/golden/frames_v1.txt")
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(_, hex)| {
            let digits: Vec<u8> = hex.trim().chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
            digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
        })
        .collect()
}

fn frame(bytes: &[u8]) {
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(frame)) = Frame::decode(&mut input) {
        if let Frame::Data { bytes } = frame {
            input.advance(bytes.min(input.len()));
        }
    }
}

/// What each role says to the other while streams carry data.
fn muxes() -> Vec<Vec<u8>> {
    let mut ends =
        [Role::Connector, Role::Acceptor].map(|role| Mux::new(role, Config::default(), Mono::ZERO));
    let mut said = [BytesMut::new(), BytesMut::new()];
    let mut carry = |ends: &mut [Mux; 2]| {
        for from in [0, 1, 0, 1] {
            let mut out = BytesMut::new();
            ends[from].poll_output(&mut out, 1 << 20, Mono::ZERO);
            said[from].extend_from_slice(&out);
            ends[1 - from].handle_input(&mut out, Mono::ZERO).unwrap();
        }
    };
    carry(&mut ends);
    for end in 0..2 {
        let id = ends[end].open(wayleave_mux::Class::Bulk, Mono::ZERO).unwrap();
        ends[end].send(id, bytes::Bytes::from(vec![7; 300]), Mono::ZERO).unwrap();
        ends[end].send_control(bytes::Bytes::from_static(b"{\"kind\":\"x\"}")).unwrap();
        ends[end].ping();
        carry(&mut ends);
        ends[end].finish(id, Mono::ZERO);
        carry(&mut ends);
    }
    said.map(|said| said.to_vec()).to_vec()
}

fn mux_connector(bytes: &[u8]) {
    mux(Role::Connector, bytes);
}

fn mux_acceptor(bytes: &[u8]) {
    mux(Role::Acceptor, bytes);
}

/// Takes the input in pieces, opens streams of its own, answers what comes and lets time pass.
fn mux(role: Role, bytes: &[u8]) {
    let mut mux = Mux::new(role, Config::default(), Mono::ZERO);
    let mut input = BytesMut::new();
    let mut now = Mono::ZERO;
    let piece = usize::from(bytes.last().copied().unwrap_or(1)).max(1);
    for chunk in bytes.chunks(piece) {
        input.extend_from_slice(chunk);
        if mux.handle_input(&mut input, now).is_err() {
            break;
        }
        answer(&mut mux, now);
    }
    now = now.after(Duration::from_secs(60));
    let _ = mux.handle_timeout(now);
    answer(&mut mux, now);
}

fn answer(mux: &mut Mux, now: Mono) {
    let mut out = BytesMut::new();
    while let Some(event) = mux.poll_event() {
        match event {
            Event::Ready => {
                let _ = mux.open(wayleave_mux::Class::Bulk, now);
            }
            Event::Data { id, bytes } => mux.consumed(id, bytes.len(), now),
            _ => {}
        }
    }
    mux.poll_output(&mut out, 1 << 16, now);
}

fn headers() -> Vec<Vec<u8>> {
    let mut seeds = owned(&[
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY TCP6 2001:db8::1 ::1 1 2\r\nGET",
        b"PROXY UNKNOWN\r\n",
    ]);
    seeds.push(
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb]]
            .concat(),
    );
    seeds
}

fn header(bytes: &[u8]) {
    let _ = wayleave_proxy_protocol::parse(bytes);
}

fn answers() -> Vec<Vec<u8>> {
    owned(&[
        b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n",
        b"HTTP/1.0 407 Proxy Authentication Required\r\n",
        b"http://user:p%40ss@proxy.example.com:3128",
        b".example.com,10.0.0.0/8,host:8080,*",
    ])
}

fn http_proxy(bytes: &[u8]) {
    let _ = wayleave_http_proxy::parse_answer(bytes);
    let text = &*text(bytes);
    let _ = wayleave_http_proxy::HttpProxy::parse(text);
    let _ = wayleave_http_proxy::Bypass::parse(text);
}

fn messages() -> Vec<Vec<u8>> {
    let join = auth::JoinRequest {
        token_name: "t".into(),
        hostname: "web-1".into(),
        system_roles: vec!["Node".into()],
        ..Default::default()
    };
    let record = auth::AuditRecord { sequence: 3, event_json: b"{}".to_vec() };
    let routes =
        auth::RouteUpdate { incarnation: 1, sequence: 2, added: vec![vec![7; 16]], ..Default::default() };
    let search = auth::SearchEventsRequest { codes: vec!["T2000I".into()], limit: 5, ..Default::default() };
    vec![
        join.encode_to_vec(),
        auth::EmitEventsRequest { records: vec![record] }.encode_to_vec(),
        routes.encode_to_vec(),
        search.encode_to_vec(),
    ]
}

/// Messages from strangers, from processes and from users; prost decodes all by the same code.
fn message(bytes: &[u8]) {
    let _ = auth::JoinRequest::decode(bytes);
    let _ = auth::LoginRequest::decode(bytes);
    let _ = auth::AcceptInviteRequest::decode(bytes);
    let _ = auth::EmitEventsRequest::decode(bytes);
    let _ = auth::RouteUpdate::decode(bytes);
    let _ = auth::ClusterEvent::decode(bytes);
    let _ = auth::SearchEventsRequest::decode(bytes);
    let _ = agent::AgentToProxy::decode(bytes);
    let _ = agent::ProxyToAgent::decode(bytes);
}
