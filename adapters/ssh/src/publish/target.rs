//! Our connection to the sshd of a machine, for one user.

use super::probe::plain_algorithms;
use super::relay::{Message, Party, Side};
use crate::driver::{self, Application, Core};
use crate::pump::PumpEnd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_net::BoxStream;
use wayleave_runtime::Clock;
use wayleave_ssh::{
    ChannelId, ChannelOpen, ClientConfig, Credential, DisconnectReason, Event, GlobalReply, HostIdentity,
    OpenFailure, PublicKey, Timing,
};
use wayleave_vocab::{Login, Mono};

/// How long the sshd may take for its key exchange and for letting us in.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// What enters a machine.
pub(super) struct Entrance {
    /// The machine's port 22.
    pub(super) stream: BoxStream,
    pub(super) login: Login,
    pub(super) credential: Credential,
    /// The host key that it must show.
    pub(super) pinned: PublicKey,
}

/// The application on the connection.
struct Target {
    side: Side,
    pinned: PublicKey,
}

/// What work results in.
enum Done {
    Said(Option<Message>, mpsc::Receiver<Message>),
}

/// Runs the connection to its end.
pub(super) async fn run(
    entrance: Entrance,
    tell: mpsc::Sender<Message>,
    hear: mpsc::Receiver<Message>,
    clock: Arc<dyn Clock>,
) {
    let Entrance { stream, login, credential, pinned } = entrance;
    let mut config = ClientConfig::new(login.to_string(), vec![credential]);
    // The sshd may have other keys as well: it is to show the one that is known.
    config.host_key_algorithms =
        plain_algorithms().into_iter().filter(|algorithm| pinned.takes(algorithm.signature)).collect();
    config.timing = Timing { handshake_max: STEP_TIMEOUT, auth_max: STEP_TIMEOUT, ..Timing::default() };
    let mut core = Core::client(&config, clock);
    core.start(next(hear));
    driver::run(stream, core, Target { side: Side::new(Party::Machine, tell), pinned }).await;
}

async fn next(mut hear: mpsc::Receiver<Message>) -> Done {
    Done::Said(hear.recv().await, hear)
}

impl Target {
    fn on_host(&mut self, core: &mut Core<Done>, identity: &HostIdentity) {
        if matches!(identity, HostIdentity::Key(key) if *key == self.pinned) {
            // Refused only when the connection is over, which the driver sees.
            let _over = core.connection.accept_host();
            return;
        }
        let text = "the machine shows another host key than when it was published".to_owned();
        self.side.tell(Message::Refused(text.clone()));
        core.end(DisconnectReason::HostKeyNotVerifiable, text);
    }

    /// Only what the user asked for may be opened by the machine; the user's side knows that.
    fn on_open(&mut self, core: &mut Core<Done>, channel: ChannelId, open: ChannelOpen) {
        match open {
            ChannelOpen::AuthAgent
            | ChannelOpen::ForwardedTcpip { .. }
            | ChannelOpen::ForwardedStreamlocal { .. } => self.side.offer(channel, open),
            ChannelOpen::Session
            | ChannelOpen::DirectTcpip { .. }
            | ChannelOpen::DirectStreamlocal { .. }
            | ChannelOpen::X11 { .. }
            | ChannelOpen::Unknown { .. } => {
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.reject_open(channel, OpenFailure::Prohibited, "not asked for");
            }
        }
    }

    fn end_if_alone(&self, core: &mut Core<Done>) {
        if self.side.check().is_err() {
            core.end(DisconnectReason::ByApplication, "the user is gone".to_owned());
        }
    }
}

impl Application for Target {
    type Done = Done;

    fn on_event(&mut self, core: &mut Core<Done>, event: Event) {
        match event {
            Event::HostIdentity(identity) => self.on_host(core, &identity),
            Event::Authenticated => self.side.tell(Message::Ready),
            Event::Open { channel, open } => self.on_open(core, channel, open),
            Event::Opened { channel } => self.side.on_opened(core, channel),
            Event::OpenFailed { channel, reason, message } => {
                self.side.on_open_failed(channel, reason, message);
            }
            Event::Closed { channel } => self.side.on_closed(core, channel),
            Event::Request { channel, request, reply } => {
                self.side.forward_request(channel, request, reply);
            }
            Event::RequestAnswered { request, is_success, .. } => {
                self.side.on_answered(request, is_success);
            }
            Event::GlobalAnswered { success, .. } => self.side.tell(Message::GlobalAnswered { success }),
            Event::GlobalRequest { reply: Some(reply), .. } => {
                core.connection.respond_global(reply, GlobalReply::Failure);
            }
            // The driver's, a server's, or without an answer.
            Event::GlobalRequest { .. }
            | Event::AuthAttempt(_)
            | Event::Data { .. }
            | Event::Eof { .. }
            | Event::Writable { .. }
            | Event::Rekeyed
            | Event::Disconnected { .. }
            | Event::Banner(_) => {}
        }
        self.end_if_alone(core);
    }

    fn on_done(&mut self, core: &mut Core<Done>, done: Done) {
        let Done::Said(message, hear) = done;
        match message {
            Some(message) => {
                core.start(next(hear));
                self.side.on_message(core, message);
                self.end_if_alone(core);
            }
            None => core.end(DisconnectReason::ByApplication, "the user is gone".to_owned()),
        }
    }

    fn on_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        self.side.on_pump(core, channel, end);
    }

    fn wakes_at(&self) -> Option<Mono> {
        None
    }

    fn on_time(&mut self, _core: &mut Core<Done>) {}

    fn on_end(&mut self, _core: &mut Core<Done>) {}
}
