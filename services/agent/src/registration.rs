//! Registers what the agent serves: at start, on change, again after a failure, and now and then.
//!
//! Auth forgets a node that had no route for a day, as when its machine was suspended. Nobody tells the agent: it says
//! again what it serves, several times in that time. That costs Auth little, and nothing when many agents come back at
//! once from a loss of their proxies.

use crate::service::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;
use wayleave_api::auth::RegisterRequest;
use wayleave_api::auth::host_client::HostClient;
use wayleave_runtime::{Clock, Shutdown, random_u64};
use wayleave_vocab::{Mono, Wall};

/// Pause after a failure, doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long Auth may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What is registered is registered again after between this and twice this.
const REFRESH_AFTER: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked whether that time has come: timers stand still while the machine is suspended.
const REFRESH_LOOK: Duration = Duration::from_secs(60);

/// Runs until shutdown. `resources` holds the stored form (JSON) of everything served.
pub(crate) async fn run(shared: Arc<Shared>, resources: watch::Receiver<Vec<String>>, shutdown: Shutdown) {
    let register = |resources_json| {
        let mut auth = HostClient::new(shared.config.auth.clone());
        async move {
            let call = auth.register(RegisterRequest { resources_json, proxy: None });
            let late = |_| Err(Status::deadline_exceeded("Auth does not answer"));
            tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(late).map(|_| ())
        }
    };
    let _ = shutdown.until(keep_registered(&shared.clock, register, resources)).await;
}

/// Runs until nobody can change the resources any more.
async fn keep_registered<Answer: Future<Output = Result<(), Status>>>(
    clock: &impl Clock,
    register: impl Fn(Vec<String>) -> Answer,
    mut resources: watch::Receiver<Vec<String>>,
) {
    let mut retry = RETRY_MIN;
    loop {
        let current = resources.borrow_and_update().clone();
        match register(current).await {
            Ok(()) => {
                retry = RETRY_MIN;
                let refresh = Refresh::new(clock);
                tokio::select! {
                    changed = resources.changed() => if changed.is_err() { return },
                    () = refresh.due(clock) => {}
                }
            }
            Err(status) => {
                tracing::warn!(error = %status.message(), "registering the resources failed, trying again");
                retry = (retry * 2).min(RETRY_MAX);
                tokio::time::sleep(retry / 2 + Duration::from_millis(random_u64() % 500)).await;
            }
        }
    }
}

/// When to register again. The time of day goes on while the machine is suspended, the other one when it is set back.
struct Refresh {
    at_wall: Wall,
    at: Mono,
}

impl Refresh {
    fn new(clock: &impl Clock) -> Self {
        let jitter = Duration::from_secs(random_u64() % REFRESH_AFTER.as_secs());
        let after = REFRESH_AFTER + jitter;
        Self { at_wall: clock.wall().after(after), at: clock.mono().after(after) }
    }

    async fn due(&self, clock: &impl Clock) {
        while clock.wall() < self.at_wall && clock.mono() < self.at {
            tokio::time::sleep(REFRESH_LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use wayleave_runtime::{ManualClock, TaskGroup};

    const HOUR: Duration = Duration::from_secs(3600);

    /// An agent whose registrations are counted.
    struct Registering {
        clock: Arc<ManualClock>,
        count: Arc<AtomicUsize>,
        resources: watch::Sender<Vec<String>>,
        _tasks: TaskGroup,
    }

    fn start() -> Registering {
        let clock = Arc::new(ManualClock::new(Wall::from_ms(1_800_000_000_000)));
        let (count, tasks) = (Arc::new(AtomicUsize::new(0)), TaskGroup::new());
        let (resources, heard) = watch::channel(vec!["one".to_owned()]);
        let (counted, time) = (count.clone(), clock.clone());
        tasks.spawn("registration", async move {
            let register = |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Ok(()))
            };
            keep_registered(&*time, register, heard).await;
        });
        Registering { clock, count, resources, _tasks: tasks }
    }

    impl Registering {
        /// Waits until it has looked at the clock (time is paused); how often it has registered then.
        async fn wait_registrations(&self) -> usize {
            tokio::time::sleep(2 * REFRESH_LOOK).await;
            self.count.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_was_suspended_for_longer_than_auth_remembers_it_registers_again() {
        let agent = start();
        assert_eq!(agent.wait_registrations().await, 1);
        agent.clock.advance(25 * HOUR);
        assert_eq!(agent.wait_registrations().await, 2);
        assert_eq!(agent.wait_registrations().await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_registers_again_several_times_before_auth_forgets_it_and_not_more_often() {
        let agent = start();
        agent.wait_registrations().await;
        agent.clock.advance(REFRESH_AFTER / 2);
        assert_eq!(agent.wait_registrations().await, 1);
        agent.clock.advance(2 * REFRESH_AFTER);
        assert_eq!(agent.wait_registrations().await, 2);
        agent.resources.send_replace(vec!["two".to_owned()]);
        assert_eq!(agent.wait_registrations().await, 3, "a change is told at once");
    }
}
