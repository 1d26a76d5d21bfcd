//! Runs a command on a node with the stock client, through a chosen proxy.

use super::cluster::DemoCluster;
use super::probe;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use wayleave_dial::DialRoute;
use wayleave_runtime::random_u64;
use wayleave_vocab::HostId;

/// How long the command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A command that ran on a node.
pub(super) struct Reached {
    pub(super) target: String,
    pub(super) route: DialRoute,
    pub(super) client: String,
    pub(super) command: String,
    pub(super) output: String,
    pub(super) succeeded: bool,
    pub(super) connected: Duration,
    pub(super) answered: Duration,
    pub(super) total: Duration,
}

pub(super) async fn reach(
    cluster: &DemoCluster,
    node: &str,
    ingress: HostId,
    command: &str,
) -> anyhow::Result<Reached> {
    let proxy = cluster.proxy(ingress)?;
    let probed = probe::dial(&cluster.identity, &proxy.web, node)
        .await
        .with_context(|| format!("dialling {node} through {}", proxy.name))?;
    // What nobody can guess comes back in front of the output: it really ran over there.
    let mark = random_u64();
    let marked = format!("echo {mark}; {command}");
    let web = proxy.web.to_string();
    let began = Instant::now();
    let (client, output) = match stock_ssh() {
        Some(ssh) => ("ssh", with_ssh(cluster, &ssh, proxy.name, node, &web, &marked).await?),
        None => ("way ssh", with_way(cluster, node, &web, &marked).await?),
    };
    let total = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.strip_prefix(&format!("{mark}\n")).map(|rest| rest.trim_end().to_owned());
    if !output.status.success() {
        bail!("{client} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Reached {
        target: format!("{}@{node}", cluster.login),
        route: probed.route,
        client: client.to_owned(),
        command: command.to_owned(),
        succeeded: text.is_some(),
        output: text.unwrap_or_default(),
        connected: probed.connected,
        answered: probed.answered,
        total,
    })
}

/// Stock OpenSSH, if it is installed.
fn stock_ssh() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("ssh")).find(|file| file.is_file())
}

async fn with_ssh(
    cluster: &DemoCluster,
    ssh: &Path,
    proxy_name: &str,
    node: &str,
    proxy: &str,
    command: &str,
) -> anyhow::Result<std::process::Output> {
    let config = cluster.directory.join(format!("ssh_config-{proxy_name}"));
    let identity = cluster.identity_path();
    let printed = client(cluster, &["-i", path(&identity)?, "--proxy", proxy, "config"]).await?;
    if !printed.status.success() {
        bail!("way config: {}", String::from_utf8_lossy(&printed.stderr).trim());
    }
    std::fs::write(&config, &printed.stdout).context("the ssh_config of the demo")?;
    let host = format!("{node}.{}", cluster.identity.parts().cluster);
    let mut process = tokio::process::Command::new(ssh);
    process.args(["-F", path(&config)?, "-l", &cluster.login, &host, command]);
    run(process).await
}

async fn with_way(
    cluster: &DemoCluster,
    node: &str,
    proxy: &str,
    command: &str,
) -> anyhow::Result<std::process::Output> {
    let identity = cluster.identity_path();
    let target = format!("{}@{node}", cluster.login);
    client(cluster, &["-i", path(&identity)?, "--proxy", proxy, "ssh", &target, command]).await
}

async fn client(cluster: &DemoCluster, args: &[&str]) -> anyhow::Result<std::process::Output> {
    let words = cluster.client();
    let (program, subcommand) = words.rsplit_once(' ').context("the client's command line")?;
    let mut process = tokio::process::Command::new(program);
    process.arg(subcommand).args(args);
    run(process).await
}

async fn run(mut process: tokio::process::Command) -> anyhow::Result<std::process::Output> {
    process.stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(COMMAND_TIMEOUT, process.output())
        .await
        .with_context(|| format!("the command took longer than {} s", COMMAND_TIMEOUT.as_secs()))?
        .context("the command cannot be started")
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the path of the demo is not UTF-8")
}
