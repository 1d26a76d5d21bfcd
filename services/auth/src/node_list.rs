//! Nodes as a user may see them, and why he may enter one or not.

use crate::auth_core::AuthCore;
use crate::policy_view::refused;
use crate::request_error::RequestError;
use std::collections::HashSet;
use std::sync::Arc;
use wayleave_api::auth::{ExplainRequest, ExplainResponse, ListedNode};
use wayleave_identity::UserPrincipal;
use wayleave_policy::{NodeView, Subject};
use wayleave_resource::{AdminVerb, EnforcedBy, Kind, Node, Resource, RuleTarget};
use wayleave_vocab::{HostId, Labels, Login, NodeName, UserName};

/// Most nodes that one answer lists.
const NODES_MAX: usize = 20_000;

/// A kind as people type it.
pub(crate) fn parse_kind(text: &str) -> Result<Kind, RequestError> {
    text.parse().map_err(|error: wayleave_resource::ParseKindError| RequestError::Invalid(error.to_string()))
}

/// What may be done with resources, as people type it.
fn parse_verb(text: &str) -> Result<AdminVerb, RequestError> {
    let verbs = || AdminVerb::ALL.into_iter().filter(|verb| *verb != AdminVerb::Any);
    verbs().find(|verb| verb.as_str() == text).ok_or_else(|| {
        let text = text.chars().take(32).collect::<String>();
        let known: Vec<&str> = verbs().map(AdminVerb::as_str).collect();
        RequestError::Invalid(format!(
            "{text:?} is no action that can be explained: there are ssh, and {} with a kind of resource",
            known.join(", ")
        ))
    })
}

/// A kind that roles may have rules about, as people type it.
fn parse_target(text: &str) -> Result<RuleTarget, RequestError> {
    match RuleTarget::other(text) {
        Some(other) => Ok(other),
        None => parse_kind(text).map(RuleTarget::Kind),
    }
}

/// An explanation as it is answered.
pub(crate) fn explained(
    allowed: bool,
    summary: &str,
    explanation: &impl serde::Serialize,
) -> Result<ExplainResponse, RequestError> {
    let trace_json =
        serde_json::to_string(explanation).map_err(|error| RequestError::Broken(error.to_string()))?;
    Ok(ExplainResponse { allowed, summary: summary.to_owned(), trace_json })
}

/// A node with what decisions need of it.
pub(crate) struct Seen {
    node: Node,
    labels: Labels,
}

impl Seen {
    pub(crate) fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.node.spec.hostname, host_id: &self.node.host_id, labels: &self.labels }
    }
}

impl AuthCore {
    pub(crate) fn nodes(&self) -> Vec<Seen> {
        let node = |mirrored: &Arc<crate::mirror::Mirrored>| match &mirrored.resource {
            Resource::Node(node) => Some(Seen { labels: node.all_labels(), node: node.clone() }),
            _ => None,
        };
        self.mirror.all(Kind::Node).iter().filter_map(node).collect()
    }

    /// The nodes that the caller may know of, with the logins allowed on each.
    pub(crate) fn list_nodes(&self, caller: &UserPrincipal) -> Vec<ListedNode> {
        let now = self.clock.wall();
        let view = self.mirror.policy();
        let online = self.routes.online();
        let seen = self.nodes();
        // What was published by `ssh -R` is gone with its connection.
        let there = seen
            .iter()
            .filter(|s| s.node.spec.enforced_by == EnforcedBy::Agent || online.contains(&s.node.host_id));
        let visible: Vec<&Seen> = if caller.local_admin {
            there.collect()
        } else {
            let enters: HashSet<HostId> = view
                .visible(caller, there.clone().map(|seen| (seen.view(), seen.node.host_id)), now)
                .into_iter()
                .collect();
            let reaches = |seen: &Seen| {
                !seen.node.spec.tcp_ports.is_empty() && view.may_reach(caller, &seen.view(), now)
            };
            there.filter(|seen| enters.contains(&seen.node.host_id) || reaches(seen)).collect()
        };
        let listed = |seen: &Seen| ListedNode {
            json: Resource::from(seen.node.clone()).to_json(),
            logins: caller
                .logins
                .iter()
                .filter(|login| !seen.node.spec.tcp_only && view.may_enter(caller, &seen.view(), login, now))
                .map(ToString::to_string)
                .collect(),
            online: online.contains(&seen.node.host_id),
        };
        visible.into_iter().take(NODES_MAX).map(listed).collect()
    }

    /// Whether a user may do something, and what decides.
    pub(crate) fn explain(
        &self,
        caller: &UserPrincipal,
        request: &ExplainRequest,
    ) -> Result<ExplainResponse, RequestError> {
        if request.action == "write" && !request.resources_json.is_empty() {
            return self.preview(caller, &request.resources_json);
        }
        let now = self.clock.wall();
        let view = self.mirror.policy();
        let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
        let name = match request.user.as_str() {
            "" => caller.name.clone(),
            name => UserName::parse(name).map_err(|e| invalid(&e))?,
        };
        let about_others = name != caller.name;
        if about_others {
            view.decide(caller, AdminVerb::Read, &RuleTarget::Kind(Kind::User), None, now)?;
            view.decide(caller, AdminVerb::Read, &RuleTarget::Kind(Kind::Role), None, now)?;
        }
        let verb = match request.action.as_str() {
            "ssh" => None,
            action => Some(parse_verb(action)?),
        };
        let user = self.user(&name)?;
        let principal =
            view.policy.principal_of(Subject::from(&user), now).map_err(|denial| refused(&denial))?;
        if let Some(verb) = verb {
            let explanation = view.explain_admin(&principal, verb, &parse_target(&request.target)?, now);
            return explained(explanation.permitted, &explanation.summary, &explanation);
        }
        let login = Login::parse(request.login.as_str()).map_err(|e| invalid(&e))?;
        let seen = self.find_node(&request.target)?;
        if !about_others && !caller.local_admin {
            let visible = view.visible(caller, [(seen.view(), ())], now);
            if visible.is_empty() {
                return Err(no_node(&request.target));
            }
        }
        let explanation = view.explain(&principal, &seen.view(), &login, now);
        explained(explanation.permitted, &explanation.summary, &explanation)
    }

    /// A node by name or host id; of several with one name, the one that is online.
    fn find_node(&self, target: &str) -> Result<Seen, RequestError> {
        let nodes = self.nodes();
        if let Ok(id) = target.parse::<HostId>() {
            return nodes.into_iter().find(|seen| seen.node.host_id == id).ok_or_else(|| no_node(target));
        }
        let name = NodeName::parse(target).map_err(|error| RequestError::Invalid(error.to_string()))?;
        let named: Vec<Seen> = nodes
            .into_iter()
            .filter(|seen| seen.node.spec.hostname.as_str().eq_ignore_ascii_case(name.as_str()))
            .collect();
        let online = self.routes.online();
        let (live, rest): (Vec<Seen>, Vec<Seen>) =
            named.into_iter().partition(|seen| online.contains(&seen.node.host_id));
        let mut candidates = if live.is_empty() { rest } else { live };
        match (candidates.pop(), candidates.len()) {
            (Some(seen), 0) => Ok(seen),
            (None, _) => Err(no_node(target)),
            (Some(_), more) => Err(RequestError::Invalid(format!(
                "{} nodes are called {target}: name one by its host id",
                more.saturating_add(1)
            ))),
        }
    }
}

fn no_node(target: &str) -> RequestError {
    let target: String = target.chars().take(253).collect();
    RequestError::NotFound(format!("there is no node {target}, or you may not see it"))
}
