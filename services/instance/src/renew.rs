//! Renews the identity when two thirds of its life have passed, without a restart.

use crate::join::Instance;
use std::sync::Arc;
use std::time::Duration;
use wayleave_runtime::{Clock, Shutdown, random_u64};

/// How long to wait at most before looking at the clock again (it may jump).
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Pause after a failed renewal, doubled each time up to [`LOOK_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(2);

/// Runs until shutdown. A failure is retried; it becomes an error only when the certificates have run out.
pub async fn renew_loop(instance: Arc<Instance>, clock: Arc<dyn Clock>, shutdown: Shutdown) {
    let mut retry = RETRY_MIN;
    loop {
        let (issued, not_after) = instance.validity();
        let life = not_after.since(issued);
        let due = issued.after(life / 3 * 2);
        let now = clock.wall();
        let pause = if now < due {
            due.since(now).min(LOOK_MAX)
        } else {
            match instance.renew(now).await {
                Ok(()) => {
                    tracing::info!("the certificates were renewed");
                    retry = RETRY_MIN;
                    continue;
                }
                Err(error) if now >= not_after => {
                    tracing::error!(%error, "the certificates have run out and cannot be renewed");
                }
                Err(error) => tracing::warn!(%error, "renewing the certificates failed, trying again"),
            }
            retry = (retry * 2).min(LOOK_MAX);
            retry / 2 + Duration::from_millis(random_u64() % 1000)
        };
        if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}
