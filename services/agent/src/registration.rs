//! Registers what the agent serves: at start, on change, and again after a failure.

use crate::service::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;
use wayleave_api::auth::RegisterRequest;
use wayleave_api::auth::host_client::HostClient;
use wayleave_runtime::{Shutdown, random_u64};

/// Pause after a failure, doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long Auth may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs until shutdown. `resources` holds the stored form (JSON) of everything served.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut resources: watch::Receiver<Vec<String>>,
    shutdown: Shutdown,
) {
    let mut retry = RETRY_MIN;
    loop {
        let resources_json = resources.borrow_and_update().clone();
        let mut auth = HostClient::new(shared.config.auth.clone());
        let call = auth.register(RegisterRequest { resources_json, proxy: None });
        let Some(registered) = shutdown.until(tokio::time::timeout(CALL_TIMEOUT, call)).await else { return };
        let registered =
            registered.unwrap_or_else(|_| Err(Status::deadline_exceeded("Auth does not answer")));
        let pause = match registered {
            Ok(_) => {
                retry = RETRY_MIN;
                None
            }
            Err(status) => {
                tracing::warn!(error = %status.message(), "registering the resources failed, trying again");
                retry = (retry * 2).min(RETRY_MAX);
                Some(retry / 2 + Duration::from_millis(random_u64() % 500))
            }
        };
        let waited = match pause {
            Some(pause) => shutdown.until(tokio::time::sleep(pause)).await.is_some(),
            None => matches!(shutdown.until(resources.changed()).await, Some(Ok(()))),
        };
        if !waited {
            return;
        }
    }
}
