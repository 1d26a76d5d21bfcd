//! `way status`: who you are, and how the cluster is.

use crate::access::{Access, Source, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::home::Home;
use crate::identity_file::Identity;
use crate::moment;
use crate::output::{show, table};
use serde::Serialize;
use std::fmt::Write as _;
use wayleave_api::auth::{GetStatusRequest, GetStatusResponse};
use wayleave_vocab::{HostPort, Wall};

/// Show who you are; with -c or --cluster, how the cluster is and its CA pins
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct StatusArgs {
    /// Ask the cluster how it is.
    #[arg(long)]
    cluster: bool,
}

/// One login, as programs read it.
#[derive(Debug, Serialize)]
struct LoginView {
    profile_url: Option<String>,
    username: String,
    cluster: String,
    roles: Vec<String>,
    logins: Vec<String>,
    valid_until: String,
    extensions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LoginsView {
    active: Option<LoginView>,
    profiles: Vec<LoginView>,
}

/// The cluster, as programs read it.
#[derive(Debug, Serialize)]
struct ClusterView {
    cluster_name: String,
    version: String,
    backend: String,
    ca_pins: Vec<String>,
    policy_revision: String,
    cas: Vec<CaView>,
    problems: Vec<String>,
    /// Absent where an older Auth Service answers.
    resumptions: Option<ResumptionsView>,
}

/// Sessions that were resumed, or were not, since the Auth Service started.
#[derive(Debug, Serialize)]
struct ResumptionsView {
    lost: u64,
    resumed: u64,
    refused: u64,
    expired: u64,
}

#[derive(Debug, Serialize)]
struct CaView {
    r#type: String,
    phase: String,
    fingerprints: Vec<String>,
}

pub(crate) async fn status(args: &StatusArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    if args.cluster || global.config.is_some() {
        let access = Access::find(global)?;
        let answer = call(access.admin()?.get_status(GetStatusRequest {})).await?;
        let view = ClusterView::from(answer);
        show(global.format(), &view, || cluster_text(&view))?;
        return Ok(Exit::Done);
    }
    let now = moment::now();
    if global.identity.is_some() {
        let access = Access::find(global)?;
        let view = LoginsView {
            active: Some(LoginView::new(&access.identity, access.proxies.first())),
            profiles: Vec::new(),
        };
        show(global.format(), &view, || login_text(&access.identity, access.proxies.first(), true, now))?;
        return expired_or_done(&access);
    }
    logins(global, now)
}

fn logins(global: &GlobalArgs, now: Wall) -> Result<Exit, Failure> {
    let home = Home::find()?;
    let active = Access::find(global)?;
    let Source::Profile { name, .. } = &active.source else {
        return Err(Failure::failed("no login is in use"));
    };
    let others: Vec<_> = home.profiles()?.into_iter().filter(|profile| profile.name != *name).collect();
    let view = LoginsView {
        active: Some(LoginView::new(&active.identity, active.proxies.first())),
        profiles: others
            .iter()
            .map(|profile| LoginView::new(&profile.identity, profile.identity.parts().proxies.first()))
            .collect(),
    };
    show(global.format(), &view, || {
        let mut text = login_text(&active.identity, active.proxies.first(), true, now);
        for profile in &others {
            text.push('\n');
            text.push_str(&login_text(
                &profile.identity,
                profile.identity.parts().proxies.first(),
                false,
                now,
            ));
        }
        text
    })?;
    expired_or_done(&active)
}

/// A status that shows an expired login says so to scripts as well.
fn expired_or_done(access: &Access) -> Result<Exit, Failure> {
    access.check_expiry().map(|()| Exit::Done)
}

impl LoginView {
    fn new(identity: &Identity, proxy: Option<&HostPort>) -> Self {
        let user = identity.user();
        Self {
            profile_url: proxy.map(url),
            username: user.name.to_string(),
            cluster: user.cluster.to_string(),
            roles: user.roles.iter().map(ToString::to_string).collect(),
            logins: user.logins.iter().map(ToString::to_string).collect(),
            valid_until: moment::rfc3339(user.not_after),
            extensions: extensions(identity),
        }
    }
}

fn url(proxy: &HostPort) -> String {
    format!("https://{proxy}")
}

/// The `permit-*` extensions of the SSH certificate.
fn extensions(identity: &Identity) -> Vec<String> {
    let certificate = identity.ssh().certificate.as_ref();
    certificate.map_or_else(Vec::new, |c| {
        c.extensions().keys().filter(|name| name.starts_with("permit-")).cloned().collect()
    })
}

pub(crate) fn login_text(
    identity: &Identity,
    proxy: Option<&HostPort>,
    is_active: bool,
    now: Wall,
) -> String {
    let view = LoginView::new(identity, proxy);
    let until = identity.user().not_after;
    let validity = if now < until {
        format!("{} [valid for {}]", moment::local(until), moment::remaining(until, now))
    } else {
        format!("{} [EXPIRED]", moment::local(until))
    };
    let rows = [
        ("Profile URL:", view.profile_url.unwrap_or_else(|| "none (identity file)".to_owned())),
        ("Logged in as:", view.username),
        ("Cluster:", view.cluster),
        ("Roles:", view.roles.join(", ")),
        ("Logins:", view.logins.join(", ")),
        ("Valid until:", validity),
        ("Extensions:", view.extensions.join(", ")),
    ];
    let mut text = String::new();
    for (index, (title, value)) in rows.iter().enumerate() {
        let mark = if index == 0 && is_active { "> " } else { "  " };
        let _ = writeln!(text, "{mark}{title:<15}{value}");
    }
    text
}

impl From<GetStatusResponse> for ClusterView {
    fn from(answer: GetStatusResponse) -> Self {
        Self {
            cluster_name: answer.cluster_name,
            version: answer.version,
            backend: answer.backend,
            ca_pins: answer.ca_pins,
            policy_revision: format!("{}.{}", answer.policy_generation, answer.policy_counter),
            cas: answer
                .cas
                .into_iter()
                .map(|ca| CaView { r#type: ca.r#type, phase: ca.phase, fingerprints: ca.fingerprints })
                .collect(),
            problems: answer.problems,
            resumptions: answer.resumptions.map(|counts| ResumptionsView {
                lost: counts.lost,
                resumed: counts.resumed,
                refused: counts.refused,
                expired: counts.expired,
            }),
        }
    }
}

fn cluster_text(view: &ClusterView) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "Cluster:   {}", view.cluster_name);
    let _ = writeln!(text, "Version:   {}", view.version);
    let _ = writeln!(text, "Backend:   {}", view.backend);
    let _ = writeln!(text, "Policy:    {}", view.policy_revision);
    for pin in &view.ca_pins {
        let _ = writeln!(text, "CA pin:    {pin}");
    }
    if let Some(ResumptionsView { lost, resumed, refused, expired }) = &view.resumptions {
        let _ = writeln!(
            text,
            "Sessions:  {lost} lost their connection, {resumed} resumed, {refused} refused, {expired} expired (since this \
             Auth Service started)"
        );
    }
    for problem in &view.problems {
        let _ = writeln!(text, "Problem:   {problem}");
    }
    let rows: Vec<Vec<String>> = view
        .cas
        .iter()
        .map(|ca| vec![ca.r#type.clone(), ca.phase.clone(), ca.fingerprints.join(" ")])
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["Authority", "Rotation", "Fingerprints"], &rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};
    use wayleave_api::auth::Resumptions;

    #[test]
    fn a_login_is_shown_as_people_know_it() {
        let identity = identity(END);
        let proxy = identity.parts().proxies.first();
        let text = login_text(&identity, proxy, true, Wall::from_secs(END.as_secs() - 3600));
        assert!(
            text.starts_with("> Profile URL:   https://proxy.example.com:443\n  Logged in as:  alice\n"),
            "{text}"
        );
        assert!(text.contains("  Roles:         access\n  Logins:        root, ubuntu\n"), "{text}");
        assert!(text.contains("[valid for 1h]"), "{text}");
        assert!(text.contains("  Extensions:    permit-pty\n"), "{text}");
        assert!(login_text(&identity, None, false, END).contains("[EXPIRED]"));
    }

    #[test]
    fn the_cluster_is_shown_with_its_pins() {
        let view = ClusterView::from(GetStatusResponse {
            cluster_name: "demo".into(),
            ca_pins: vec!["sha256:ab".into()],
            resumptions: Some(Resumptions { lost: 3, resumed: 2, ..Resumptions::default() }),
            ..GetStatusResponse::default()
        });
        assert!(cluster_text(&view).contains("CA pin:    sha256:ab\n"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["ca_pins"][0], "sha256:ab");
        assert_eq!(json["cluster_name"], "demo");
        assert!(cluster_text(&view).contains("Sessions:  3 lost their connection, 2 resumed, "));
        assert_eq!(json["resumptions"]["resumed"], 2);
    }
}
