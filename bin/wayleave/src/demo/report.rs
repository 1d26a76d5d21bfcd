//! What the demo shows: text for people, one object for programs.

use super::cluster::DemoCluster;
use super::reach::Reached;
use serde::Serialize;
use std::time::Duration;
use wayleave_vocab::HostId;

/// The object of `--format json`.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    first: Way,
    after_kill: Way,
}

#[derive(Serialize)]
struct Way {
    target: String,
    agent: HostId,
    ingress_proxy: HostId,
    home_proxy: HostId,
    client: String,
    command: String,
    output: String,
    milliseconds: u128,
}

impl Report {
    pub(super) fn new(first: Reached, after_kill: Reached) -> Self {
        Self { first: Way::new(first), after_kill: Way::new(after_kill) }
    }
}

impl Way {
    fn new(reached: Reached) -> Self {
        Self {
            target: reached.target,
            agent: reached.route.agent,
            ingress_proxy: reached.route.ingress_proxy,
            home_proxy: reached.route.home_proxy,
            client: reached.client,
            command: reached.command,
            output: reached.output,
            milliseconds: reached.total.as_millis(),
        }
    }
}

/// Each hop with its timing.
pub(super) fn hops(title: &str, reached: &Reached) -> String {
    let route = &reached.route;
    let via = if route.ingress_proxy == route.home_proxy {
        "    │ (it holds the agent's tunnel itself)\n".to_owned()
    } else {
        format!("    │ peering (gRPC, mTLS)\n  home proxy     {}\n", route.home_proxy)
    };
    format!(
        "{title}:\n  {client}\n    │ TCP and TLS 1.3 in {connected}\n  ingress proxy  {ingress}\n{via}    │ reverse tunnel, dialled out by \
         the agent; request to answer in {answered}\n  agent          {agent} ({target})\n    $ {command}\n    {output}\n  {client} took \
         {total} in all\n\n",
        client = reached.client,
        connected = ms(reached.connected),
        ingress = route.ingress_proxy,
        answered = ms(reached.answered),
        agent = route.agent,
        target = reached.target,
        command = reached.command,
        output = reached.output.replace('\n', "\n    "),
        total = ms(reached.total),
    )
}

/// The commands to try.
pub(super) fn invitation(cluster: &DemoCluster) -> String {
    let way = cluster.client();
    let identity = cluster.identity_path();
    let identity = identity.display();
    let directory = cluster.directory.display();
    let login = &cluster.login;
    let (web, ssh) = match cluster.proxies.first() {
        Some(proxy) => (proxy.web.to_string(), proxy.ssh.clone()),
        None => return String::new(),
    };
    format!(
        "The cluster stays up until Ctrl-C. Try, in another terminal:\n\n  \
         alias way='{way} -i {identity} --proxy {web}'\n  \
         way ls\n  \
         way ssh {login}@node-1\n  \
         way config > /tmp/ssh_config && ssh -F /tmp/ssh_config {login}@node-2.{cluster_name}\n  \
         {way} -c {directory}/auth/wayleave.yaml explain {user} ssh {login}@node-1\n  \
         {way} -c {directory}/auth/wayleave.yaml locks add --user {user} --ttl 1m\n\n\
         Plain `ssh -J` enters at {host}:{port}. Logs: {directory}/*/log\n",
        cluster_name = cluster.identity.parts().cluster,
        user = cluster.identity.user().name,
        host = ssh.host(),
        port = ssh.port(),
    )
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
