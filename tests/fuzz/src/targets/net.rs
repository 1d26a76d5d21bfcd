//! What strangers send first: TLS hellos, PROXY headers on a stream, WebSockets; and X.509.

use super::{CONNECTION, SMALL, owned};
use crate::{Target, text};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use wayleave_net::{UpgradedStream, read_hello, read_proxy_header};
use wayleave_vocab::Secret;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "client_hello", memory_bytes_max: SMALL, seeds: hellos, run: hello },
    Target {
        name: "websocket_server",
        memory_bytes_max: CONNECTION,
        seeds: from_browser,
        run: websocket_server,
    },
    Target {
        name: "websocket_client",
        memory_bytes_max: CONNECTION,
        seeds: from_balancer,
        run: websocket_client,
    },
    Target { name: "x509", memory_bytes_max: SMALL, seeds: certificates, run: certificate },
];

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
}

/// A peer that has said everything and takes whatever it is told.
struct Said<'a>(&'a [u8]);

impl AsyncRead for Said<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, rest) = self.0.split_at(out.remaining().min(self.0.len()).min(1000));
        out.put_slice(now);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A hello by hand: version, random, one suite, server name and ALPN.
fn hellos() -> Vec<Vec<u8>> {
    let prefixed = |width: usize, body: &[u8]| {
        let length = body.len().to_be_bytes();
        [&length[length.len() - width..], body].concat()
    };
    let extension = |kind: u16, body: &[u8]| [kind.to_be_bytes().to_vec(), prefixed(2, body)].concat();
    let name = prefixed(2, &[vec![0], prefixed(2, b"proxy.example.com")].concat());
    let alpn = prefixed(2, &[prefixed(1, b"wayleave-dial/1"), prefixed(1, b"h2")].concat());
    let extensions = [
        extension(0, &name),
        extension(16, &alpn),
        extension(43, &prefixed(1, &[3, 4])),
        extension(10, &prefixed(2, &[0, 29])),
        extension(13, &prefixed(2, &[8, 7, 4, 3])),
        extension(51, &prefixed(2, &[&[0, 29][..], &prefixed(2, &[7; 32])].concat())),
    ];
    let body = [
        vec![3, 3],
        vec![5; 32],
        prefixed(1, &[1; 32]),
        prefixed(2, &[0x13, 1, 0x13, 2]),
        prefixed(1, &[0]),
        prefixed(2, &extensions.concat()),
    ];
    let handshake = [vec![1], prefixed(3, &body.concat())].concat();
    let record = [vec![22, 3, 1], prefixed(2, &handshake)].concat();
    let half = handshake.len() / 2;
    let split = [
        [vec![22, 3, 1], prefixed(2, &handshake[..half])].concat(),
        [vec![22, 3, 1], prefixed(2, &handshake[half..])].concat(),
    ];
    let behind = [b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n".to_vec(), record.clone()].concat();
    vec![record, split.concat(), behind]
}

fn hello(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let _ = read_hello(Said(bytes)).await;
            if let Ok((_, rest)) = read_proxy_header(Said(bytes)).await {
                let _ = read_hello(rest).await;
            }
        });
    });
}

fn from_browser() -> Vec<Vec<u8>> {
    owned(&[
        &[0x82, 0x85, 1, 2, 3, 4, b'h', b'e', b'l', b'l', b'o'],
        &[0x89, 0x80, 0, 0, 0, 0, 0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
        &[0x02, 0x81, 0, 0, 0, 0, 7, 0x80, 0xfe, 0, 1, 0, 0, 0, 0, 7],
        &[0x82, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
    ])
}

fn websocket_server(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut stream = UpgradedStream::accepted(Said(bytes)).await;
            drain(&mut stream).await;
        });
    });
}

fn from_balancer() -> Vec<Vec<u8>> {
    owned(&[
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: wayleave\r\n\r\n\x82\x05hello",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
    ])
}

fn websocket_client(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            if let Ok(mut stream) = UpgradedStream::request(Said(bytes), "proxy.example.com").await {
                drain(&mut stream).await;
            }
        });
    });
}

async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// An authority of ours, as PEM and as DER.
fn certificates() -> Vec<Vec<u8>> {
    let pem = include_str!("../../corpus/authority.pem");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    vec![pem.as_bytes().to_vec(), decode_base64(&base64)]
}

fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        let Some(value) = ALPHABET.iter().position(|letter| *letter == byte) else { continue };
        bits = bits << 6 | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

fn certificate(bytes: &[u8]) {
    let _ = wayleave_keystore::principal_from_certificate(bytes);
    let _ = wayleave_keystore::pin_of_certificate(bytes);
    let text = text(bytes);
    let _ = wayleave_keystore::Credentials::from_pem(&text, &Secret::new(text.to_string()));
    let _ = wayleave_keystore::TlsKey::from_pem(&Secret::new(text.to_string()));
}
