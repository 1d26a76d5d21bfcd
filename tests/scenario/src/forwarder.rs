//! A TCP relay that records what passes, and can go silent: a wire with somebody at it.

use crate::wait::wait_until;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most bytes that are kept.
const RECORDED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a relay looks whether it was told to behave otherwise.
const LOOK: Duration = Duration::from_millis(20);

/// How the wire treats what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Passes everything on.
    Pass,
    /// Keeps connections open and passes nothing: a peer behind a firewall that drops.
    Blackhole,
    /// Closes what is open, and whatever is opened.
    Cut,
}

struct Shared {
    target: SocketAddr,
    source: Ipv4Addr,
    manner: AtomicU8,
    ended: AtomicBool,
    accepted: AtomicUsize,
    recorded: Mutex<Vec<u8>>,
}

/// A relay on a port of its own to a target. It ends when it is dropped.
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Listens on a free port.
    ///
    /// # Panics
    /// When there is none.
    pub fn start(target: SocketAddr) -> Self {
        Self::start_from(Ipv4Addr::LOCALHOST, target)
    }

    /// Listens on a free port, and comes from another address of loopback: to who counts addresses, somebody else.
    ///
    /// # Panics
    /// When there is none.
    pub fn start_from(source: Ipv4Addr, target: SocketAddr) -> Self {
        let address = crate::port::free_port();
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            target,
            source,
            manner: AtomicU8::new(Manner::Pass as u8),
            ended: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            recorded: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            for incoming in listener.incoming() {
                if accepting.ended.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(client) = incoming {
                    accepting.accepted.fetch_add(1, Ordering::AcqRel);
                    let shared = Arc::clone(&accepting);
                    std::thread::spawn(move || relay(&shared, client));
                }
            }
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes its manner, also for what is open.
    pub fn set(&self, manner: Manner) {
        self.shared.manner.store(manner as u8, Ordering::Release);
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Everything that passed so far, both ways mixed.
    ///
    /// # Panics
    /// Never, unless a relay did.
    pub fn recorded(&self) -> Vec<u8> {
        self.shared.recorded.lock().unwrap().clone()
    }

    /// Waits until so many connections were taken.
    pub fn wait_accepted(&self, count: usize) {
        wait_until(&format!("{count} connections through the forwarder"), || self.accepted() >= count);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.set(Manner::Cut);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

impl Shared {
    fn is(&self, manner: Manner) -> bool {
        self.manner.load(Ordering::Acquire) == manner as u8
    }

    fn record(&self, bytes: &[u8]) {
        let mut recorded = self.recorded.lock().unwrap();
        if recorded.len() + bytes.len() <= RECORDED_BYTES_MAX {
            recorded.extend_from_slice(bytes);
        }
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream) {
    if shared.is(Manner::Cut) {
        return;
    }
    let Ok(target) = connect_from(shared.source, shared.target) else { return };
    let ways = [(client.try_clone(), target.try_clone()), (Ok(target), Ok(client))];
    for (from, to) in ways {
        let (Ok(from), Ok(to)) = (from, to) else { return };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || copy(&shared, from, to));
    }
}

fn connect_from(source: Ipv4Addr, target: SocketAddr) -> nix::Result<TcpStream> {
    let SocketAddr::V4(target) = target else { return Err(nix::Error::EAFNOSUPPORT) };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(target))?;
    Ok(TcpStream::from(socket))
}

fn copy(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let _unsupported = from.set_read_timeout(Some(LOOK));
    let mut buffer = [0; 32 * 1024];
    loop {
        if shared.is(Manner::Cut) {
            break;
        }
        match from.read(&mut buffer) {
            Ok(0) => {
                let _gone = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => {
                wait_while_silent(shared);
                shared.record(&buffer[..length]);
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _gone = from.shutdown(Shutdown::Both);
    let _gone = to.shutdown(Shutdown::Both);
}

fn wait_while_silent(shared: &Shared) {
    while shared.is(Manner::Blackhole) {
        std::thread::park_timeout(LOOK);
    }
}
