//! Renews the identity without a restart: when two thirds of its life have passed, and when the host authority has rotated
//! to other keys.

use crate::join::Instance;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_ca::Snapshot;
use wayleave_runtime::{Clock, Shutdown, random_u64};
use wayleave_vocab::Wall;

/// How long to wait at most before looking at the clock again (it may jump).
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Pause after a failed renewal, doubled each time up to [`LOOK_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(2);
/// The processes of a cluster renew within this time after the host authority has rotated, not all at once.
const ROTATED_SPREAD: Duration = Duration::from_secs(10);

/// The verified policy, which names the authorities.
pub type PolicyWatch = watch::Receiver<Option<Arc<Snapshot>>>;

/// Runs until shutdown. A failure is retried; it becomes an error only when the certificates have run out.
pub async fn renew_loop(
    instance: Arc<Instance>,
    mut policy: PolicyWatch,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
) {
    let mut retry = RETRY_MIN;
    let mut is_spread = false;
    loop {
        let now = clock.wall();
        let pause = match due(&instance, &mut policy, now) {
            Due::At(at) => at.since(now).min(LOOK_MAX),
            Due::Rotated if !is_spread => {
                is_spread = true;
                spread()
            }
            Due::Now | Due::Rotated => match instance.renew(now).await {
                Ok(()) => {
                    tracing::info!("the certificates were renewed");
                    (retry, is_spread) = (RETRY_MIN, false);
                    continue;
                }
                Err(error) => {
                    if now >= instance.validity().1 {
                        tracing::error!(%error, "the certificates have run out and cannot be renewed");
                    } else {
                        tracing::warn!(%error, "renewing the certificates failed, trying again");
                    }
                    retry = (retry * 2).min(LOOK_MAX);
                    retry / 2 + Duration::from_millis(random_u64() % 1000)
                }
            },
        };
        // A change of policy is looked at at once, unless a pause is being kept on purpose.
        let woken = async {
            if is_spread || retry > RETRY_MIN || policy.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = shutdown.requested() => return,
            () = woken => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Due {
    Now,
    /// The authority has rotated.
    Rotated,
    At(Wall),
}

fn due(instance: &Instance, policy: &mut PolicyWatch, now: Wall) -> Due {
    let (issued, not_after) = instance.validity();
    let at = issued.after(not_after.since(issued) / 3 * 2);
    if now >= at {
        return Due::Now;
    }
    match policy.borrow_and_update().as_ref() {
        Some(policy) if instance.is_issued_by_others(policy) => Due::Rotated,
        Some(_) | None => Due::At(at),
    }
}

fn spread() -> Duration {
    let millis = u64::try_from(ROTATED_SPREAD.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random_u64() % millis.max(1))
}
