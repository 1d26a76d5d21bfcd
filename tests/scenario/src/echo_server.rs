//! A server that says what it was told, for forwarded connections to end at.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Says everything back until its peer ends. It ends when it is dropped.
pub struct EchoServer {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens on a free port of loopback.
    ///
    /// # Panics
    /// When there is none.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_ended.load(Ordering::Acquire) {
                    return;
                }
                std::thread::spawn(move || echo(stream));
            }
        });
        Self { address, ended, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says something to whoever answers at `address`, and whether it came back.
    pub fn is_behind(address: SocketAddr) -> bool {
        let Ok(stream) = TcpStream::connect(address) else { return false };
        Self::is_at_the_end_of(stream)
    }

    /// Says something into a connection, and whether it came back.
    pub fn is_at_the_end_of(mut stream: TcpStream) -> bool {
        let said = b"is anybody there?";
        let _unsupported = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let mut heard = vec![0; said.len()];
        stream.write_all(said).is_ok() && stream.read_exact(&mut heard).is_ok() && heard == said
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
