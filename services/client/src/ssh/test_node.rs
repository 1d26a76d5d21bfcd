//! A node for tests: the server's side of the SSH core over a memory stream, with a few commands of its own.

use crate::ssh::driver::{Driver, Notice};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use wayleave_net::BoxStream;
use wayleave_runtime::fill_random;
use wayleave_ssh::{
    CertType, Certificate, CertificateTemplate, ChannelId, ChannelOpen, ChannelRequest, ClientConfig,
    Connection, Credential, DataStream, Event, GlobalReply, Intake, KeyPair, OpenFailure, Options,
    ServerConfig,
};
use wayleave_vocab::{Mono, Wall};

/// Size of the memory stream in each direction.
const STREAM_BYTES: usize = 64 * 1024;
/// What the command `burst` writes.
pub(crate) const BURST_BYTES: usize = 3 * 1024 * 1024;

/// A client's connection to a fresh node, authenticated. The node runs until either side ends.
pub(crate) async fn connected() -> Driver<BoxStream> {
    let (near, far) = duplex(STREAM_BYTES);
    let authority = KeyPair::from_seed(&[1; 32]);
    let host = credential(2, &authority, CertType::Host);
    let node = Node::new(far, &ServerConfig::new(vec![host]));
    wayleave_runtime::TaskGroup::new().spawn("test node", node.run());
    let config = ClientConfig::new("root".into(), vec![credential(3, &authority, CertType::User)]);
    let mut driver = Driver::new(Box::new(near) as BoxStream, &config);
    loop {
        match driver.next().await.unwrap() {
            Notice::Host(_) => driver.connection().accept_host().unwrap(),
            Notice::Authenticated => return driver,
            _ => {}
        }
    }
}

fn credential(seed: u8, authority: &KeyPair, kind: CertType) -> Credential {
    let key = Arc::new(KeyPair::from_seed(&[seed; 32]));
    let certificate: Certificate = CertificateTemplate {
        key: key.public_key(),
        kind,
        serial: 1,
        key_id: "test".into(),
        principals: vec!["root".into()],
        valid_after: Wall::from_secs(0),
        valid_before: Wall::from_secs(4_000_000_000),
        critical_options: Options::new(),
        extensions: Options::new(),
    }
    .sign(authority, &[9; 32])
    .unwrap();
    Credential::certified(key, certificate).unwrap()
}

struct Node {
    connection: Connection,
    stream: DuplexStream,
    start: Instant,
    /// Data that did not fit yet.
    queues: BTreeMap<ChannelId, Bytes>,
    /// What becomes of a channel once its data is out.
    endings: BTreeMap<ChannelId, ChannelRequest>,
    /// Channels that give back what they get.
    echoes: Vec<ChannelId>,
    sftp: Option<Sftp>,
}

struct Sftp {
    channel: ChannelId,
    replies: OwnedReadHalf,
    requests: tokio::net::unix::OwnedWriteHalf,
}

impl Node {
    fn new(stream: DuplexStream, config: &ServerConfig) -> Self {
        let entropy = Box::new(|out: &mut [u8]| fill_random(out));
        Self {
            connection: Connection::server(config, entropy, Mono::ZERO),
            stream,
            start: Instant::now(),
            queues: BTreeMap::new(),
            endings: BTreeMap::new(),
            echoes: Vec::new(),
            sftp: None,
        }
    }

    async fn run(mut self) {
        let mut input = BytesMut::new();
        let mut replies = vec![0; 32 * 1024];
        loop {
            let now = Mono::from_origin(self.start.elapsed());
            let Ok(intake) = self.connection.handle_input(&mut input, now) else { return };
            let mut is_idle = false;
            while !is_idle {
                is_idle = true;
                while let Some(event) = self.connection.poll_event() {
                    self.on_event(event).await;
                    is_idle = false;
                }
                self.push();
                while let Some(output) = self.connection.poll_output() {
                    if self.stream.write_all(&output).await.is_err() {
                        return;
                    }
                    is_idle = false;
                }
            }
            if self.connection.is_closed() {
                return;
            }
            if intake == Intake::Full {
                continue;
            }
            let is_full = self.sftp.as_ref().is_some_and(|sftp| self.queues.contains_key(&sftp.channel));
            tokio::select! {
                read = self.stream.read_buf(&mut input) => if read.unwrap_or(0) == 0 { return },
                read = next_reply(&mut self.sftp, &mut replies), if !is_full => {
                    let (channel, read) = read;
                    self.queues.insert(channel, Bytes::copy_from_slice(&replies[..read]));
                }
            }
        }
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::AuthAttempt(_) => self.connection.accept_auth().unwrap(),
            Event::Open { channel, open: ChannelOpen::DirectTcpip { target, .. } }
                if target.host == "refused" =>
            {
                self.connection.reject_open(channel, OpenFailure::Prohibited, "not there").unwrap();
            }
            Event::Open { channel, open } => {
                if !matches!(open, ChannelOpen::Session) {
                    self.echoes.push(channel);
                }
                self.connection.accept_open(channel).unwrap();
            }
            Event::Request { channel, request, reply } => {
                let is_granted = self.on_request(channel, request).await;
                if let Some(reply) = reply {
                    self.connection.respond(reply, is_granted);
                }
            }
            Event::GlobalRequest { reply: Some(reply), .. } => {
                self.connection.respond_global(reply, GlobalReply::Success);
            }
            Event::Data { channel, data, .. } => {
                self.connection.consumed(channel, data.len());
                if self.echoes.contains(&channel) {
                    let mut all = BytesMut::from(self.queues.remove(&channel).unwrap_or_default().as_ref());
                    all.extend_from_slice(&data);
                    self.queues.insert(channel, all.freeze());
                } else if let Some(sftp) = &mut self.sftp {
                    sftp.requests.write_all(&data).await.unwrap();
                }
            }
            Event::Eof { channel } if self.echoes.contains(&channel) => {
                self.endings.insert(channel, ChannelRequest::ExitStatus { status: 0 });
            }
            _ => {}
        }
    }

    async fn on_request(&mut self, channel: ChannelId, request: ChannelRequest) -> bool {
        let command = match request {
            ChannelRequest::Exec { command } => String::from_utf8(command.to_vec()).unwrap(),
            ChannelRequest::Subsystem { .. } => return self.start_sftp(channel),
            ChannelRequest::EndOfWrite => {
                self.queues.remove(&channel);
                self.endings.insert(channel, ChannelRequest::ExitStatus { status: 141 });
                return true;
            }
            _ => return true,
        };
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("cat", _) => self.echoes.push(channel),
            ("exit", code) => {
                self.endings.insert(channel, ChannelRequest::ExitStatus { status: code.parse().unwrap() });
            }
            ("burst", _) => {
                self.queues.insert(channel, pattern(BURST_BYTES));
                self.endings.insert(channel, ChannelRequest::ExitStatus { status: 3 });
            }
            ("refuse", _) => return false,
            ("hang up", _) | ("hang", _) => self.stream.shutdown().await.unwrap(),
            (other, _) => panic!("no such command: {other}"),
        }
        true
    }

    fn start_sftp(&mut self, channel: ChannelId) -> bool {
        let (near, far) = StdUnixStream::pair().unwrap();
        std::thread::spawn(move || {
            // The client hangs up when it is done.
            let _ = wayleave_os::serve_sftp(&far, &far);
        });
        near.set_nonblocking(true).unwrap();
        let (replies, requests) = UnixStream::from_std(near).unwrap().into_split();
        self.sftp = Some(Sftp { channel, replies, requests });
        true
    }

    fn push(&mut self) {
        let channels: Vec<ChannelId> = self.queues.keys().chain(self.endings.keys()).copied().collect();
        for channel in channels {
            if let Some(data) = self.queues.get_mut(&channel) {
                let sent = self.connection.send(channel, DataStream::Main, data);
                if sent.is_err() || data.is_empty() {
                    self.queues.remove(&channel);
                }
            }
            if !self.queues.contains_key(&channel)
                && let Some(ending) = self.endings.remove(&channel)
            {
                let _ = self.connection.request(channel, &ending, false);
                self.connection.eof(channel);
                self.connection.close(channel);
            }
        }
    }
}

async fn next_reply(sftp: &mut Option<Sftp>, buffer: &mut [u8]) -> (ChannelId, usize) {
    match sftp {
        Some(sftp) => match sftp.replies.read(buffer).await {
            Ok(read) if read > 0 => (sftp.channel, read),
            _ => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Bytes that differ at every position, so that loss and repetition show.
pub(crate) fn pattern(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<u8>>().into()
}
