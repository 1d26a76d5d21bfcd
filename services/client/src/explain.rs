//! `way explain`: which rule decides.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::dial::Destination;
use crate::failure::{Exit, Failure};
use crate::output::{one_line, show};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use wayleave_api::auth::{ExplainRequest, ExplainResponse};
use wayleave_resource::Resource;
use wayleave_vocab::UserName;

/// The parts of the trace that people are shown, in order; programs get all of it.
const SHOWN: [&str; 3] = ["decided_by", "denial", "roles"];

/// Tell why a user may or may not do something
///
/// way explain alice ssh root@db-1     enter a node as an account
/// way explain alice create token      do something with resources of a kind
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ExplainArgs {
    /// The user.
    name: UserName,
    /// What he wants to do: ssh, or list, read, create, update, delete, use, rotate.
    action: String,
    /// Where, as which account; or a kind of resource.
    #[arg(value_name = "LOGIN@NODE|KIND")]
    target: String,
}

/// The answer as programs read it.
#[derive(Debug, Serialize)]
struct Explanation {
    allowed: bool,
    summary: String,
    trace: Value,
}

pub(crate) async fn explain(args: &ExplainArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let (login, target) = match args.action.as_str() {
        "ssh" => entrance(&args.target, &access)?,
        _ => (String::new(), args.target.clone()),
    };
    let (user, action) = (args.name.to_string(), args.action.clone());
    let request = ExplainRequest { user, action, login, target, ..ExplainRequest::default() };
    ask(&access, request, global).await
}

/// Tells what a write of roles and users would change, and writes nothing.
pub(crate) async fn preview(
    access: &Access,
    resources: &[Resource],
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    let request = ExplainRequest {
        action: "write".to_owned(),
        resources_json: resources.iter().map(Resource::to_stored_json).collect(),
        ..ExplainRequest::default()
    };
    ask(access, request, global).await
}

/// Asks once for both, since the code of each call is large.
async fn ask(access: &Access, request: ExplainRequest, global: &GlobalArgs) -> Result<Exit, Failure> {
    let is_preview = !request.resources_json.is_empty();
    let explanation = Explanation::new(call(access.admin()?.explain(request)).await?);
    show(global.format(), &explanation, || match is_preview {
        true => explanation.summary.lines().flat_map(|line| [one_line(line), "\n".to_owned()]).collect(),
        false => explanation.text(),
    })?;
    // Scripts see the verdict in the exit code.
    Ok(if explanation.allowed { Exit::Done } else { Exit::Denied })
}

/// The account and the node of `root@db-1`.
fn entrance(target: &str, access: &Access) -> Result<(String, String), Failure> {
    let target: Destination = target.parse().map_err(|error: String| Failure::usage(error))?;
    let login = target
        .login
        .clone()
        .ok_or_else(|| Failure::usage("as which account?").hint(format!("write LOGIN@{}", target.host)))?;
    Ok((login, target.node(&access.identity.parts().cluster)?.to_string()))
}

impl Explanation {
    fn new(answer: ExplainResponse) -> Self {
        let trace = serde_json::from_str(&answer.trace_json).unwrap_or(Value::Null);
        Self { allowed: answer.allowed, summary: answer.summary, trace }
    }

    fn text(&self) -> String {
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        let mut text = format!("{verdict}: {}\n", one_line(&self.summary));
        for key in SHOWN {
            if let Some(part) = self.trace.get(key).and_then(pruned) {
                text.push('\n');
                outline(&mut text, &serde_json::json!({ key: part }), 0);
            }
        }
        text
    }
}

/// A part of the trace without what says nothing: conditions that are not set, and what is empty.
fn pruned(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.get("finding").is_some_and(|finding| finding == "not_set") => None,
        Value::Object(map) => {
            let kept: serde_json::Map<_, _> =
                map.iter().filter_map(|(key, value)| Some((key.clone(), pruned(value)?))).collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept: Vec<_> = items.iter().filter_map(pruned).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        Value::Null => None,
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(value.clone()),
    }
}

/// A JSON value as an indented list.
fn outline(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match scalar(value) {
                    Some(text) => {
                        let _ = writeln!(out, "{pad}{}: {text}", one_line(key));
                    }
                    None => {
                        let _ = writeln!(out, "{pad}{}:", one_line(key));
                        outline(out, value, indent + 2);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match scalar(item) {
                    Some(text) => {
                        let _ = writeln!(out, "{pad}- {text}");
                    }
                    None => {
                        let start = out.len();
                        outline(out, item, indent + 2);
                        // The first line of an item carries its mark.
                        if out.len() > start + indent {
                            out.replace_range(start + indent..start + indent + 1, "-");
                        }
                    }
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = writeln!(out, "{pad}{}", scalar(value).unwrap_or_default());
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(one_line(text)),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_an_outline() {
        let answer = ExplainResponse {
            allowed: false,
            summary: "no role allows the login root".into(),
            trace_json: r#"{"login":"root","denial":null,"roles":[{"role":"access","allow":{"logins":{"finding":"not_set"},
                "node_labels":{"finding":"no_match","detail":"env=dev"}},"deny":{"logins":{"finding":"not_set"}}}]}"#
                .into(),
        };
        assert_eq!(
            Explanation::new(answer).text(),
            "DENIED: no role allows the login root\n\nroles:\n  - allow:\n      node_labels:\n        detail: env=dev\n\
             \x20       finding: no_match\n    role: access\n"
        );
    }

    #[test]
    fn a_trace_that_cannot_be_read_is_left_out() {
        let answer = ExplainResponse { allowed: true, summary: "yes".into(), trace_json: "{".into() };
        assert_eq!(Explanation::new(answer).text(), "ALLOWED: yes\n");
    }
}
