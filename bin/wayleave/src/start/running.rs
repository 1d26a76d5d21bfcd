//! All services of one process: started in the order of need, drained in reverse.

use super::Process;
use super::audit_sink::JournalSink;
use super::ends::{Ends, Failures};
use super::instance::OpenedInstance;
use super::policy::PolicyViews;
use super::{addresses, auth, diagnostics, instance, node, policy, proxy};
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use wayleave_adapter_ssh::AuditSink;
use wayleave_instance::{EventJournal, forward_events, renew_loop};
use wayleave_journal::Journal;
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_telemetry::Diagnostics;

/// What the journal may hold; when it is full, nobody is let in.
const JOURNAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long Auth and the helpers may take to end once everything else has.
const LAST_GRACE: Duration = Duration::from_secs(10);

/// A process whose services run.
pub(crate) struct Running {
    auth: Option<auth::RunningAuth>,
    services: TaskGroup,
    helpers: TaskGroup,
    shutdown: Shutdown,
    failures: Failures,
    drain_timeout: Duration,
}

/// Builds, binds and starts everything that the configuration enables.
pub(crate) async fn start(process: Process) -> anyhow::Result<Running> {
    let drain_timeout = process.config.instance.shutdown_timeout;
    let helpers = TaskGroup::new();
    let services = TaskGroup::new();
    let (ends, failures) = Ends::new();
    diagnostics::start(&process, &helpers).await?;
    let auth = match &process.config.auth {
        Some(config) => Some(auth::start(&process, config, &ends).await?),
        None => None,
    };
    if process.config.proxy.is_some() || process.config.ssh.is_some() {
        let opened = instance::open(&process, auth.as_ref()).await?;
        start_services(&process, &opened, &services, &helpers, &ends).await?;
    }
    process.diagnostics.health.started();
    Ok(Running { auth, services, helpers, shutdown: process.shutdown, failures, drain_timeout })
}

async fn start_services(
    process: &Process,
    opened: &OpenedInstance,
    services: &TaskGroup,
    helpers: &TaskGroup,
    ends: &Ends,
) -> anyhow::Result<()> {
    addresses::keep(process, opened, helpers);
    let keeper = policy::open_keeper(process, opened)?;
    let events = open_journal(process, opened)?;
    let shown = diagnostics::trace(process, &opened.instance, &opened.node_name, helpers)?;
    diagnostics::watch_identity(&process.diagnostics, &opened.instance, &process.clock);
    diagnostics::watch_journal(&process.diagnostics, &events, JOURNAL_BYTES_MAX);
    diagnostics::watch_policy(&process.diagnostics, &keeper, &process.clock);
    let forwarding = forward_events(events.clone(), opened.instance.channel(), helpers.shutdown());
    helpers.spawn("events", forwarding);
    let renewing =
        renew_loop(opened.instance.clone(), keeper.watch(), process.clock.clone(), helpers.shutdown());
    helpers.spawn("renewal", renewing);
    let parts = SharedParts {
        views: PolicyViews::start(keeper.clone(), helpers),
        keeper,
        diagnostics: shown,
        audit: Arc::new(JournalSink::new(events, process.clock.clone(), &process.diagnostics)),
    };
    if let Some(config) = &process.config.proxy {
        let bound = proxy::bind(process, config, opened, &parts).await?;
        let shutdown = process.shutdown.clone();
        let running = async move { bound.run(shutdown).await.map_err(anyhow::Error::new) };
        services.spawn("proxy", ends.notice("the Proxy Service", &process.shutdown, running));
    }
    if let Some(config) = &process.config.ssh {
        let agent = node::build(process, config, opened, &parts, helpers).context("ssh_service")?;
        let shutdown = process.shutdown.clone();
        let running = async move {
            agent.run(shutdown).await;
            Ok(())
        };
        services.spawn("agent", ends.notice("the agent", &process.shutdown, running));
    }
    Ok(())
}

impl Running {
    /// True when it was asked to end while it began.
    pub(crate) fn is_ending(&self) -> bool {
        self.shutdown.is_requested()
    }

    /// Waits for shutdown, drains, ends. A service that ends by itself takes the others with it: what supervises the
    /// process starts it again.
    ///
    /// # Errors
    /// Why a service ended by itself.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let failed = self.shutdown.until(self.failures.next()).await;
        if let Some(error) = &failed {
            tracing::error!(error = format!("{error:#}"), "a service has ended: the process ends too");
            self.shutdown.request();
        }
        // Each service bounds its own drain; this is the bound behind the bounds.
        if !self.services.drained(self.drain_timeout + LAST_GRACE).await {
            tracing::warn!("services did not end in time");
        }
        if let Some(auth) = self.auth {
            auth.finish(LAST_GRACE).await;
        }
        self.helpers.finish(LAST_GRACE).await;
        tracing::info!("ended");
        failed.map_or(Ok(()), Err)
    }
}

/// What the services of one process share.
pub(crate) struct SharedParts {
    pub(crate) keeper: Keeper,
    pub(crate) views: Arc<PolicyViews>,
    pub(crate) audit: Arc<dyn AuditSink>,
    /// What the services show of themselves, traces included.
    pub(crate) diagnostics: Diagnostics,
}

/// The verified policy, shared.
pub(crate) type Keeper = Arc<wayleave_keystore::PolicyKeeper>;

fn open_journal(process: &Process, opened: &OpenedInstance) -> anyhow::Result<EventJournal> {
    let directory = process.config.instance.data_dir.join("events");
    let journal = Journal::open(&directory, JOURNAL_BYTES_MAX).context("the journal of events")?;
    Ok(EventJournal::new(journal, opened.instance.cluster().clone(), opened.instance.host_id()))
}
