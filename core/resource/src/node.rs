//! Nodes: machines that serve SSH, as they registered themselves.

use crate::metadata::Metadata;
use crate::reader::{At, ENTRIES_MAX, Fields};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use wayleave_vocab::{HostId, Labels, NodeName, Ttl};

/// A machine that serves SSH. The name of the resource is the host id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The id that Auth assigned at join.
    pub host_id: HostId,
    /// Static labels, expiry, revision, description.
    pub metadata: Metadata,
    /// What the agent says about itself.
    pub spec: NodeSpec,
}

/// What an agent says about its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSpec {
    /// What people call it.
    pub hostname: NodeName,
    /// Labels that are the output of a command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cmd_labels: BTreeMap<String, CommandLabel>,
    /// Who decides who may enter.
    pub enforced_by: EnforcedBy,
    /// TCP ports that are published as applications under the node's name.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tcp_ports: BTreeSet<u16>,
    /// True when it has no SSH that can be entered, only TCP ports.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tcp_only: bool,
    /// The version of the agent.
    pub version: String,
}

/// A label that is the output of a command on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandLabel {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// How often it runs.
    pub period: Ttl,
    /// The first line of its last output.
    pub result: String,
}

/// Who decides who may enter a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnforcedBy {
    /// The agent on the node itself.
    #[default]
    Agent,
    /// The proxy that holds the node's `ssh -R` connection.
    Proxy,
}

impl Node {
    /// Static labels and those of commands. A command cannot change a static label; results that are no label are
    /// left out.
    pub fn all_labels(&self) -> Labels {
        let mut labels = self.metadata.labels.clone();
        for (key, label) in &self.spec.cmd_labels {
            if labels.get(key).is_none() {
                // Beyond the bounds of labels a result is dropped: a missing label grants nothing.
                let _ = labels.insert(key.clone(), label.result.clone());
            }
        }
        labels
    }
}

impl NodeSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let hostname = fields.required("hostname", At::parse);
        let cmd_labels = fields.or_default("cmd_labels", |at| {
            let mut labels = BTreeMap::new();
            for (key, value) in at.pairs()?.into_iter().take(ENTRIES_MAX) {
                labels.insert(key.to_owned(), CommandLabel::read(&value)?);
            }
            Some(labels)
        });
        let enforced_by = fields.or_default("enforced_by", |at| {
            at.word(&[("agent", EnforcedBy::Agent), ("proxy", EnforcedBy::Proxy)])
        });
        let tcp_ports = fields.or_default("tcp_ports", |at| at.each(|at| at.number("a port")));
        let tcp_only = fields.or_default("tcp_only", At::flag);
        let version = fields.or_default("version", At::line_of_text);
        Some(Self {
            hostname: hostname?,
            cmd_labels: cmd_labels?,
            enforced_by: enforced_by?,
            tcp_ports: tcp_ports?,
            tcp_only: tcp_only?,
            version: version?,
        })
    }
}

impl CommandLabel {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let command = fields.required("command", |at| at.each_of_one_or_more(At::line_of_text));
        let period = fields.required("period", At::parse);
        let result = fields.or_default("result", At::line_of_text);
        fields.finish();
        Some(Self { command: command?, period: period?, result: result? })
    }
}
