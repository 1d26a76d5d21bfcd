//! Labels of a node: static ones, and those that are the output of commands, run again every period.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::watch;
use wayleave_resource::{CommandLabel, EnforcedBy, Metadata, Node, NodeSpec, Resource};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_vocab::{HostId, Labels, NodeName, Ttl};

/// How long a command may run.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Output that is read; the first line of it counts.
const OUTPUT_BYTES_MAX: u64 = 4096;
/// Commands run at most this often.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// A command whose output is a label.
#[derive(Debug, Clone)]
pub struct LabelCommand {
    /// The label's key.
    pub key: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How often it runs.
    pub period: Duration,
}

/// What a node says about itself, kept current.
pub struct NodeLabels {
    node: Arc<Mutex<Node>>,
    labels: watch::Sender<Labels>,
    resources: watch::Sender<Vec<String>>,
}

impl NodeLabels {
    /// A node with its static labels; the commands have not run yet.
    pub fn new(host_id: HostId, hostname: NodeName, labels: Labels, commands: &[LabelCommand]) -> Self {
        let cmd_labels: BTreeMap<String, CommandLabel> =
            commands.iter().map(|c| (c.key.clone(), command_label(c, String::new()))).collect();
        let metadata = Metadata { labels: labels.clone(), ..Metadata::default() };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let spec = NodeSpec {
            hostname,
            cmd_labels,
            enforced_by: EnforcedBy::Agent,
            tcp_ports: BTreeSet::new(),
            tcp_only: false,
            version,
        };
        let node = Node { host_id, metadata, spec };
        let stored = vec![Resource::Node(node.clone()).to_stored_json()];
        Self {
            node: Arc::new(Mutex::new(node)),
            labels: watch::Sender::new(labels),
            resources: watch::Sender::new(stored),
        }
    }

    /// All labels, for decisions.
    pub fn labels(&self) -> watch::Receiver<Labels> {
        self.labels.subscribe()
    }

    /// The stored form of the node, for registration.
    pub fn resources(&self) -> watch::Receiver<Vec<String>> {
        self.resources.subscribe()
    }

    /// Runs the commands, each in a task of `tasks`, until shutdown.
    pub fn start(&self, commands: Vec<LabelCommand>, tasks: &TaskGroup, shutdown: &Shutdown) {
        for command in commands {
            let (node, labels, resources) = (self.node.clone(), self.labels.clone(), self.resources.clone());
            let shutdown = shutdown.clone();
            tasks.spawn("label command", async move {
                loop {
                    let Some(output) = shutdown.until(run(&command)).await else { return };
                    match output {
                        Ok(result) => update(&node, &labels, &resources, &command, result),
                        Err(error) => {
                            tracing::warn!(label = %command.key, %error, "the command of a label failed; its last value stays");
                        }
                    }
                    let pause = command.period.max(PERIOD_MIN);
                    if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
                        return;
                    }
                }
            });
        }
    }
}

fn update(
    node: &Mutex<Node>,
    labels: &watch::Sender<Labels>,
    resources: &watch::Sender<Vec<String>>,
    command: &LabelCommand,
    result: String,
) {
    let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
    let label = command_label(command, result);
    if node.spec.cmd_labels.get(&command.key) == Some(&label) {
        return;
    }
    node.spec.cmd_labels.insert(command.key.clone(), label);
    labels.send_replace(node.all_labels());
    resources.send_replace(vec![Resource::Node(node.clone()).to_stored_json()]);
}

fn command_label(command: &LabelCommand, result: String) -> CommandLabel {
    CommandLabel { command: command.command.clone(), period: Ttl(command.period), result }
}

/// The first line that the command prints.
async fn run(command: &LabelCommand) -> Result<String, String> {
    let (program, arguments) = command.command.split_first().ok_or("there is no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("{program} cannot be started: {e}"))?;
    let stdout = child.stdout.take().ok_or("there is no output")?;
    let work = async {
        let mut output = Vec::new();
        stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await.map_err(|e| e.to_string())?;
        let status = child.wait().await.map_err(|e| e.to_string())?;
        if status.success() { Ok(output) } else { Err(format!("{program} ended with {status}")) }
    };
    let output = tokio::time::timeout(COMMAND_TIMEOUT, work)
        .await
        .map_err(|_| format!("{program} took longer than {} s", COMMAND_TIMEOUT.as_secs()))??;
    let text = String::from_utf8_lossy(&output);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_output_of_a_command_becomes_a_label() {
        let command = LabelCommand {
            key: "word".into(),
            command: vec!["echo".into(), "hello\nworld".into()],
            period: PERIOD_MIN,
        };
        let name = NodeName::parse("web-1").unwrap();
        let commands = vec![command];
        let labels = NodeLabels::new(HostId::from_random([1; 16]), name, Labels::default(), &commands);
        let (tasks, mut current) = (TaskGroup::new(), labels.labels());
        labels.start(commands, &tasks, &tasks.shutdown());
        current.changed().await.unwrap();
        assert_eq!(current.borrow().get("word"), Some("hello"));
        assert!(labels.resources().borrow()[0].contains("\"result\":\"hello\""));
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_command_that_fails_changes_nothing() {
        let failing = |words: &[&str]| LabelCommand {
            key: "k".into(),
            command: words.iter().map(ToString::to_string).collect(),
            period: PERIOD_MIN,
        };
        assert!(run(&failing(&["false"])).await.is_err());
        assert!(run(&failing(&["/nonexistent"])).await.is_err());
        assert!(run(&failing(&[])).await.is_err());
    }
}
