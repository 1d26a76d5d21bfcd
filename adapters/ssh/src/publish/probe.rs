//! Which host key a machine's sshd has: a key exchange, and nothing after it.

use crate::driver::{self, Application, Core};
use crate::pump::PumpEnd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use wayleave_net::BoxStream;
use wayleave_runtime::Clock;
use wayleave_ssh::{
    ChannelId, ClientConfig, DisconnectReason, Event, HOST_KEY_ALGORITHMS, HostIdentity, PublicKey,
    PublicKeyAlgorithm, Timing,
};
use wayleave_vocab::Mono;

/// How long the sshd may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

struct Probe {
    found: Option<oneshot::Sender<PublicKey>>,
}

/// The host key of the sshd behind a stream; absent when none answers.
pub(super) async fn host_key(stream: BoxStream, clock: Arc<dyn Clock>) -> Option<PublicKey> {
    let mut config = ClientConfig::new("wayleave".to_owned(), Vec::new());
    config.host_key_algorithms = plain_algorithms();
    config.timing = Timing { handshake_max: PROBE_TIMEOUT, ..Timing::default() };
    let (found, key) = oneshot::channel();
    let core: Core<()> = Core::client(&config, clock);
    driver::run(stream, core, Probe { found: Some(found) }).await;
    key.await.ok()
}

/// Without certificates: the key itself is what stays with a name.
pub(super) fn plain_algorithms() -> Vec<PublicKeyAlgorithm> {
    HOST_KEY_ALGORITHMS.iter().copied().filter(|algorithm| !algorithm.is_certificate).collect()
}

impl Application for Probe {
    type Done = ();

    fn on_event(&mut self, core: &mut Core<()>, event: Event) {
        if let Event::HostIdentity(HostIdentity::Key(key)) = event
            && let Some(found) = self.found.take()
        {
            // Nobody waits any more when the machine is gone.
            let _gone = found.send(key);
            core.end(DisconnectReason::ByApplication, "the host key is all that was wanted".to_owned());
        }
    }

    fn on_done(&mut self, _core: &mut Core<()>, _done: ()) {}
    fn on_pump(&mut self, _core: &mut Core<()>, _channel: ChannelId, _end: PumpEnd) {}
    fn wakes_at(&self) -> Option<Mono> {
        None
    }
    fn on_time(&mut self, _core: &mut Core<()>) {}
    fn on_end(&mut self, _core: &mut Core<()>) {}
}
