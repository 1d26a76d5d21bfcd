//! `wayleave demo`: a whole cluster of separate processes on this machine, and a node reached through it.

mod cluster;
mod probe;
mod reach;
mod report;

use crate::cli::write_out;
use anyhow::{Context, bail};
use cluster::DemoCluster;
use reach::Reached;
use report::Report;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use wayleave_runtime::Shutdown;

/// How long the agents may take to be reachable after a proxy died.
const REACHABLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How the demo runs.
#[derive(clap::Args)]
#[command(
    after_help = "Starts Auth, two peered proxies and two agents as processes of their own, reaches an agent\n\
    through the proxy that does not hold its tunnel, kills that proxy and shows the way round.\n\
    Nothing is left behind when it ends, unless --data-dir names a directory to keep."
)]
pub(crate) struct DemoArgs {
    /// End after showing it
    #[arg(long)]
    once: bool,
    /// Keep all state and logs in this directory (made if it does not exist) instead of a temporary one
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// text for people, json for one object on standard output (with --once)
    #[arg(long, default_value = "text")]
    format: Format,
    /// What to run on the node
    #[arg(long, default_value = "echo \"hello from $(hostname) as $(id -un)\"")]
    command: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(crate) fn run(args: DemoArgs) -> anyhow::Result<()> {
    if args.format == Format::Json && !args.once {
        bail!("--format json goes with --once: the one object is printed at the end");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    runtime.block_on(async {
        let stopped = Shutdown::new();
        let asked = stopped.clone();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let tasks = wayleave_runtime::TaskGroup::new();
        tasks.spawn("signals", async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            asked.request();
        });
        show(&args, &stopped).await
    })
}

async fn show(args: &DemoArgs, stopped: &Shutdown) -> anyhow::Result<()> {
    say(args, "Starting Auth, two peered proxies and two agents, each a process of its own …\n")?;
    let Some(started) = stopped.until(DemoCluster::start(args.data_dir.as_deref())).await else {
        bail!("stopped before the cluster was up");
    };
    let mut cluster = started?;
    let presented = stopped.until(present(args, &mut cluster)).await;
    if !args.once && matches!(presented, Some(Ok(()))) {
        stopped.requested().await;
    }
    // When the terminal was closed, nobody reads it.
    let _ = say(args, "\nStopping …\n");
    cluster.stop().await?;
    match presented {
        Some(done) => done,
        None if args.once => bail!("stopped before it was done"),
        None => Ok(()),
    }
}

/// Reaches a node through the other proxy, kills that proxy, and reaches the node again.
async fn present(args: &DemoArgs, cluster: &mut DemoCluster) -> anyhow::Result<()> {
    say(args, &format!("  up in {} ms\n\n", cluster.started_ms))?;
    let node = cluster.nodes.first().cloned().context("the demo has no node")?;
    let home = cluster.home_of(&node, REACHABLE_TIMEOUT).await?;
    let ingress = cluster.other_proxy(home)?;
    let first = reach::reach(cluster, &node, ingress, &args.command).await?;
    say(args, &report::hops("Through the proxy that the agent is not connected to", &first))?;
    cluster.kill_proxy(ingress)?;
    say(args, "Killed the ingress proxy (SIGKILL). The way round:\n\n")?;
    let second = reach::reach(cluster, &node, home, &args.command).await?;
    say(args, &report::hops("Through the proxy that is left", &second))?;
    let is_shown = is_shown(&first, &second);
    if args.format == Format::Json {
        let text = serde_json::to_string_pretty(&Report::new(first, second))?;
        write_out(&format!("{text}\n"))?;
    }
    if !is_shown {
        bail!("the output of the command did not come back by two different ways");
    }
    if !args.once {
        say(args, "Starting the killed proxy again …\n")?;
        cluster.restart_proxy(ingress)?;
        say(args, &report::invitation(cluster))?;
    }
    Ok(())
}

/// For people only: programs want one object and nothing else.
fn say(args: &DemoArgs, text: &str) -> anyhow::Result<()> {
    match args.format {
        Format::Text => write_out(text),
        Format::Json => Ok(()),
    }
}

/// The command really ran twice, first through two different proxies, then by another way in.
fn is_shown(first: &Reached, second: &Reached) -> bool {
    first.succeeded
        && second.succeeded
        && first.route.ingress_proxy != first.route.home_proxy
        && second.route.ingress_proxy != first.route.ingress_proxy
}
