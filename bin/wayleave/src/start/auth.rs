//! Builds the Auth Service of this process.

use super::Process;
use super::ends::Ends;
use crate::edge;
use crate::storage::Storage;
use anyhow::Context;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wayleave_auth::{AuthService, LocalApi};
use wayleave_config::{AuthConfig, LockingMode};
use wayleave_resource::{AuthPreferenceSpec, NetworkingSpec};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_store::Backend;
use wayleave_vocab::Ttl;

/// The Auth Service, running.
pub(crate) struct RunningAuth {
    tasks: TaskGroup,
    shutdown: Shutdown,
    backend: Arc<dyn Backend>,
    address: SocketAddr,
    api: LocalApi,
}

pub(crate) async fn start(
    process: &Process,
    config: &AuthConfig,
    ends: &Ends,
) -> anyhow::Result<RunningAuth> {
    let instance = &process.config.instance;
    make_data_dir(&instance.data_dir)?;
    let storage = Storage::configured(&instance.storage)?;
    let backend = storage.open(process.clock.clone()).await?;
    let node_name = edge::node_name(instance)?;
    let cluster = edge::cluster_name(config.cluster_name.as_ref(), &node_name)?;
    let mut settings = wayleave_auth::AuthConfig::new(cluster, instance.data_dir.clone(), node_name);
    settings.listen_address = config.listen_addr;
    settings.public_addresses = config.public_addrs.clone();
    settings.static_tokens = edge::static_tokens(&config.static_tokens)?;
    settings.tunnel_strategy = config.tunnel_strategy;
    settings.networking = config.states_networking.then(|| networking(config));
    settings.authentication = config.states_authentication.then(|| authentication(config));
    settings.limits.connections_max =
        usize::try_from(instance.connection_limits.max_connections.get()).unwrap_or(usize::MAX);
    settings.backend_name = storage.kind().to_owned();
    settings.diagnostics = process.diagnostics.clone();
    let service = AuthService::build(settings, backend.clone(), process.clock.clone())
        .await
        .context("the Auth Service cannot start")?;
    let bound = service.bind().await.context("the Auth Service cannot start")?;
    let (address, api, shutdown) = (bound.address(), bound.local_api(), Shutdown::new());
    let tasks = TaskGroup::with_shutdown(shutdown.clone());
    let asked = shutdown.clone();
    let running = async move {
        bound.run(asked).await;
        Ok(())
    };
    tasks.spawn("auth", ends.notice("the Auth Service", &shutdown, running));
    Ok(RunningAuth { tasks, shutdown, backend, address, api })
}

impl RunningAuth {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What this process may ask it directly.
    pub(crate) fn api(&self) -> &LocalApi {
        &self.api
    }

    /// Ends it: answers what is being asked, then closes the backend.
    pub(crate) async fn finish(self, grace: Duration) {
        self.shutdown.request();
        if !self.tasks.finish(grace).await {
            tracing::warn!("the Auth Service did not end in time");
        }
        self.backend.close().await;
    }
}

fn networking(config: &AuthConfig) -> NetworkingSpec {
    NetworkingSpec {
        tunnel_strategy: config.tunnel_strategy.unwrap_or_default(),
        keep_alive_interval: Ttl(config.keep_alive_interval),
        keep_alive_count_max: config.keep_alive_count_max.get(),
        client_idle_timeout: config.client_idle_timeout.map(Ttl),
        ..NetworkingSpec::default()
    }
}

fn authentication(config: &AuthConfig) -> AuthPreferenceSpec {
    AuthPreferenceSpec {
        locking_mode: match config.locking_mode {
            LockingMode::BestEffort => wayleave_resource::LockingMode::BestEffort,
            LockingMode::Strict => wayleave_resource::LockingMode::Strict,
        },
        default_session_ttl: Ttl(config.default_session_ttl),
        disconnect_expired_cert: config.disconnect_expired_cert,
        ..AuthPreferenceSpec::default()
    }
}

/// Makes the data directory, for this user only.
pub(crate) fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create wayleave.data_dir {}", path.display()))
}
