//! The server's side of SOCKS 4a and 5 (RFC 1928), as far as `-D` needs it: CONNECT, without authentication.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wayleave_ssh::TcpEndpoint;

/// How long a client may take to say where it wants to go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest name or user id in SOCKS 4, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// The version spoken, which the answer repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// SOCKS 4 or 4a.
    Four,
    /// SOCKS 5.
    Five,
}

impl Version {
    /// The answer to a request, once it is known whether the target was reached.
    pub(crate) fn answer(self, is_connected: bool) -> &'static [u8] {
        match (self, is_connected) {
            (Self::Four, true) => &[0, 0x5a, 0, 0, 0, 0, 0, 0],
            (Self::Four, false) => &[0, 0x5b, 0, 0, 0, 0, 0, 0],
            (Self::Five, true) => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            (Self::Five, false) => &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// Reads where a client wants to go.
///
/// # Errors
/// When it speaks something else, wants something else, or takes too long.
pub(crate) async fn handshake<S>(stream: &mut S) -> io::Result<(Version, TcpEndpoint)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let read = async {
        match stream.read_u8().await? {
            4 => Ok((Version::Four, read_four(stream).await?)),
            5 => Ok((Version::Five, read_five(stream).await?)),
            _ => Err(refused("this is no SOCKS")),
        }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, read)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_four<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<TcpEndpoint> {
    let command = stream.read_u8().await?;
    let port = stream.read_u16().await?;
    let address = stream.read_u32().await?;
    read_text(stream).await?;
    // 0.0.0.x with x not 0 says that a name follows.
    let host = if address != 0 && address < 256 {
        read_text(stream).await?
    } else {
        Ipv4Addr::from(address).to_string()
    };
    if command != 1 {
        stream.write_all(Version::Four.answer(false)).await?;
        return Err(refused("only CONNECT is supported"));
    }
    Ok(TcpEndpoint { host, port })
}

async fn read_five<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<TcpEndpoint> {
    let count = stream.read_u8().await?;
    let mut methods = vec![0; usize::from(count)];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&0) {
        stream.write_all(&[5, 0xff]).await?;
        return Err(refused("authentication is not supported"));
    }
    stream.write_all(&[5, 0]).await?;
    stream.flush().await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    let host = match kind {
        1 => Ipv4Addr::from(stream.read_u32().await?).to_string(),
        4 => Ipv6Addr::from(stream.read_u128().await?).to_string(),
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| refused("the name is not text"))?
        }
        _ => return Err(refused("an unknown kind of address")),
    };
    let port = stream.read_u16().await?;
    if version != 5 || command != 1 {
        stream.write_all(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        return Err(refused("only CONNECT is supported"));
    }
    Ok(TcpEndpoint { host, port })
}

async fn read_text<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut text = Vec::new();
    loop {
        match stream.read_u8().await? {
            0 => return String::from_utf8(text).map_err(|_| refused("the name is not text")),
            byte if text.len() < TEXT_BYTES_MAX => text.push(byte),
            _ => return Err(refused("the name is too long")),
        }
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn check(sent: &[u8], expected: Option<(Version, &str, u16)>) {
        let (mut near, mut far) = duplex(1024);
        far.write_all(sent).await.unwrap();
        far.shutdown().await.unwrap();
        let got = handshake(&mut near).await.ok();
        let expected =
            expected.map(|(version, host, port)| (version, TcpEndpoint { host: host.into(), port }));
        assert_eq!(got, expected, "{sent:?}");
    }

    #[tokio::test]
    async fn both_versions_are_understood() {
        check(&[4, 1, 0, 80, 127, 0, 0, 1, b'u', 0], Some((Version::Four, "127.0.0.1", 80))).await;
        check(b"\x04\x01\x00\x50\x00\x00\x00\x01u\x00db-1\x00", Some((Version::Four, "db-1", 80))).await;
        check(&[5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 1, 0], Some((Version::Five, "10.0.0.1", 256))).await;
        check(b"\x05\x02\x02\x00\x05\x01\x00\x03\x04db-1\x00\x50", Some((Version::Five, "db-1", 80))).await;
    }

    #[tokio::test]
    async fn f_anything_else_is_refused() {
        check(b"GET / HTTP/1.1\r\n", None).await;
        check(&[5, 1, 2], None).await;
        check(&[5, 1, 0, 5, 2, 0, 1, 10, 0, 0, 1, 1, 0], None).await;
        check(&[4, 2, 0, 80, 127, 0, 0, 1, 0], None).await;
        check(&[5, 1, 0, 5, 1, 0, 9], None).await;
        check(&[4, 1, 0, 80, 0, 0, 0, 1, 0].iter().copied().chain([b'x'; 300]).collect::<Vec<_>>(), None)
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_not_waited_for() {
        let (mut near, _far) = duplex(16);
        assert_eq!(handshake(&mut near).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
