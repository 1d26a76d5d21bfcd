//! `way ls`: the nodes you can reach.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{Format, print, show, table};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use wayleave_api::auth::{ListNodesRequest, ListedNode};
use wayleave_resource::{EnforcedBy, Resource};
use wayleave_vocab::{Labels, NodeName};

/// List the nodes you can reach
///
/// way ls env=prod,team=infra     only nodes with these labels
/// way ls --search web,eu         only nodes in whose name or labels all words occur
/// way ls --format names          only names, for scripts
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LsArgs {
    /// Labels that a node must have.
    #[arg(value_name = "KEY=VALUE,…")]
    labels: Option<Labels>,
    /// Words that must all occur in the node's name, id or labels.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    search: Vec<String>,
    /// Show ids, logins and versions too.
    #[arg(short, long)]
    verbose: bool,
}

/// A node as programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct NodeView {
    name: String,
    host_id: String,
    labels: Labels,
    logins: Vec<String>,
    online: bool,
    /// Who decides who may enter: `agent` or `proxy`.
    enforced_by: EnforcedBy,
    /// False when there are only TCP ports.
    ssh: bool,
    /// Ports for `way proxy app`.
    tcp_ports: BTreeSet<u16>,
    version: String,
}

pub(crate) async fn ls(args: &LsArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let answer = call(access.admin()?.list_nodes(ListNodesRequest {})).await?;
    let mut nodes: Vec<NodeView> = answer.nodes.into_iter().filter_map(NodeView::read).collect();
    nodes.retain(|node| node.matches(args.labels.as_ref(), &args.search));
    nodes.sort_by(|a, b| (&a.name, &a.host_id).cmp(&(&b.name, &b.host_id)));
    if global.format() == Format::Names {
        let names: String = nodes.iter().map(|node| format!("{}\n", node.name)).collect();
        print(&names)?;
    } else {
        show(global.format(), &nodes, || text(&nodes, args.verbose))?;
    }
    Ok(Exit::Done)
}

impl NodeView {
    /// `None` for a resource that this release cannot read.
    fn read(listed: ListedNode) -> Option<Self> {
        match Resource::parse_json(&listed.json) {
            Ok(Resource::Node(node)) => Some(Self {
                name: node.spec.hostname.to_string(),
                host_id: node.host_id.to_string(),
                labels: node.all_labels(),
                logins: listed.logins,
                online: listed.online,
                enforced_by: node.spec.enforced_by,
                ssh: !node.spec.tcp_only,
                tcp_ports: node.spec.tcp_ports,
                version: node.spec.version,
            }),
            Ok(other) => {
                tracing::debug!(kind = %other.kind(), "a listed node is something else");
                None
            }
            Err(error) => {
                tracing::debug!(%error, "a listed node cannot be read");
                None
            }
        }
    }

    /// How it is reached.
    fn address(&self) -> String {
        let mut text = match (self.online, self.enforced_by) {
            (false, _) => "offline",
            (true, EnforcedBy::Agent) => "⟵ Tunnel",
            (true, EnforcedBy::Proxy) => "⟵ ssh -R",
        }
        .to_owned();
        if !self.tcp_ports.is_empty() {
            let ports: Vec<String> = self.tcp_ports.iter().map(ToString::to_string).collect();
            let also = if self.ssh { " +" } else { "" };
            let _ = write!(text, "{also} TCP {}", ports.join(","));
        }
        text
    }

    fn matches(&self, labels: Option<&Labels>, words: &[String]) -> bool {
        let has_labels =
            labels.is_none_or(|wanted| wanted.iter().all(|(key, value)| self.labels.get(key) == Some(value)));
        let haystack = format!("{} {} {}", self.name, self.host_id, self.labels).to_lowercase();
        has_labels && words.iter().all(|word| haystack.contains(&word.trim().to_lowercase()))
    }
}

/// The TCP port of an application that has only one.
pub(crate) async fn only_tcp_port(access: &Access, name: &NodeName) -> Result<u16, Failure> {
    let answer = call(access.admin()?.list_nodes(ListNodesRequest {})).await?;
    let nodes = answer.nodes.into_iter().filter_map(NodeView::read);
    let named =
        nodes.filter(|node| node.name.eq_ignore_ascii_case(name.as_str()) || node.host_id == name.as_str());
    let ports: BTreeSet<u16> = named.flat_map(|node| node.tcp_ports).collect();
    match (ports.first(), ports.len()) {
        (Some(port), 1) => Ok(*port),
        (None, _) => Err(Failure::new(Exit::NotFound, format!("there is no TCP application {name}"))
            .hint("`way ls` shows those you can reach")),
        (Some(_), _) => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Err(Failure::usage(format!("{name} has several ports: {}", ports.join(", ")))
                .hint("name one with --target-port"))
        }
    }
}

fn text(nodes: &[NodeView], is_verbose: bool) -> String {
    if nodes.is_empty() {
        return "No nodes. A machine appears here once its agent has joined and your roles allow you in.\n"
            .to_owned();
    }
    let address = |node: &NodeView| node.address();
    if !is_verbose {
        let rows: Vec<_> = nodes
            .iter()
            .map(|node| vec![node.name.clone(), address(node), node.labels.to_string()])
            .collect();
        return table(&["Node Name", "Address", "Labels"], &rows);
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.host_id.clone(),
                address(node),
                match node.enforced_by {
                    EnforcedBy::Agent => "agent".to_owned(),
                    EnforcedBy::Proxy => "proxy".to_owned(),
                },
                node.logins.join(","),
                node.version.clone(),
                node.labels.to_string(),
            ]
        })
        .collect();
    table(&["Node Name", "Node ID", "Address", "Enforced By", "Logins", "Version", "Labels"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, labels: &str) -> NodeView {
        NodeView {
            name: name.into(),
            host_id: "0e0e".into(),
            labels: labels.parse().unwrap(),
            logins: vec!["root".into()],
            online: true,
            enforced_by: EnforcedBy::Agent,
            ssh: true,
            tcp_ports: BTreeSet::new(),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn nodes_are_filtered_by_labels_and_words() {
        let web = node("web-1", "env=prod,team=infra");
        let check = |labels: &str, words: &[&str], expected: bool| {
            let labels: Labels = labels.parse().unwrap();
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            assert_eq!(web.matches(Some(&labels), &words), expected, "{labels} {words:?}");
        };
        check("", &[], true);
        check("env=prod", &["WEB", "infra"], true);
        check("env=dev", &[], false);
        check("env=prod,zone=a", &[], false);
        check("", &["db"], false);
    }

    #[test]
    fn the_table_shows_how_a_node_is_reached() {
        assert_eq!(
            text(&[node("web-1", "env=prod")], false),
            "Node Name Address  Labels\n--------- -------- --------\nweb-1     ⟵ Tunnel env=prod\n"
        );
        assert!(text(&[node("web-1", "")], true).contains("0e0e"));
        assert!(text(&[], false).starts_with("No nodes."));
    }

    #[test]
    fn what_is_no_node_is_left_out() {
        let listed = ListedNode { json: "{}".into(), logins: Vec::new(), online: false };
        assert_eq!(NodeView::read(listed), None);
    }
}
