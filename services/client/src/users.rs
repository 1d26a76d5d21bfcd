//! `way users`: who may log in.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{note, show, table};
use crate::resources;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use wayleave_api::auth::{CreateUserRequest, InviteResponse, ResetUserRequest, TraitValues};
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::{Login, RoleName, UserName, Wall};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum UsersCommand {
    Add(AddArgs),
    /// List users.
    Ls,
    /// Remove a user; running sessions end.
    Rm(NameArgs),
    /// Take password and second factor away and print a new invitation.
    Reset(NameArgs),
}

/// Create a user and print the invitation, which works once
///
/// way users add alice --roles=access,editor --logins=root,ubuntu
/// way users add bob --roles=access --traits=team=infra,web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AddArgs {
    /// The user's name.
    name: UserName,
    /// Roles to hold.
    #[arg(long, value_name = "ROLE,…", value_delimiter = ',', required = true)]
    roles: Vec<RoleName>,
    /// Accounts on the nodes (the trait `logins`).
    #[arg(long, value_name = "LOGIN,…", value_delimiter = ',')]
    logins: Vec<Login>,
    /// More traits for the templates of roles; may be repeated.
    #[arg(long, value_name = "NAME=VALUE,…", value_parser = parse_trait)]
    traits: Vec<(String, Vec<String>)>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// The user's name.
    name: UserName,
}

/// An invitation as programs read it.
#[derive(Debug, Serialize)]
struct Invitation {
    user: String,
    url: String,
    token: String,
    expires: String,
    ca_pins: Vec<String>,
}

#[derive(Debug, Serialize)]
struct UserRow {
    name: String,
    roles: Vec<String>,
    traits: BTreeMap<String, Vec<String>>,
    locked_until: Option<String>,
}

fn parse_trait(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, values) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE,…"))?;
    if name.trim().is_empty() {
        return Err(format!("{text:?} names no trait"));
    }
    let values = values.split(',').map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect();
    Ok((name.trim().to_owned(), values))
}

pub(crate) async fn users(command: UsersCommand, global: &GlobalArgs) -> Result<Exit, Failure> {
    match command {
        UsersCommand::Add(args) => add(args, global).await,
        UsersCommand::Ls => ls(global).await,
        UsersCommand::Rm(args) => {
            resources::delete(&Access::find(global)?, Kind::User, args.name.as_str()).await?;
            note(&format!("user {} has been removed", args.name));
            Ok(Exit::Done)
        }
        UsersCommand::Reset(args) => {
            let access = Access::find(global)?;
            let request = ResetUserRequest { name: args.name.to_string(), invite_ttl_ms: global.ttl_ms() };
            let answer = call(access.admin()?.reset_user(request)).await?;
            print_invitation(answer, "has been reset", global)
        }
    }
}

async fn add(args: AddArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let mut traits: HashMap<String, TraitValues> = HashMap::new();
    for (name, values) in args.traits {
        traits.entry(name).or_default().values.extend(values);
    }
    let request = CreateUserRequest {
        name: args.name.to_string(),
        roles: args.roles.iter().map(ToString::to_string).collect(),
        logins: args.logins.iter().map(ToString::to_string).collect(),
        traits,
        invite_ttl_ms: global.ttl_ms(),
    };
    let answer = call(access.admin()?.create_user(request)).await?;
    print_invitation(answer, "has been created", global)
}

fn print_invitation(answer: InviteResponse, done: &str, global: &GlobalArgs) -> Result<Exit, Failure> {
    let expires = Wall::from_ms(answer.expires_ms);
    let invitation = Invitation::new(answer, expires);
    let lifetime = moment::remaining(expires, moment::now());
    show(global.format(), &invitation, || invitation.text(done, &lifetime))?;
    Ok(Exit::Done)
}

impl Invitation {
    fn new(answer: InviteResponse, expires: Wall) -> Self {
        let url = if answer.url.is_empty() || answer.ca_pins.is_empty() || answer.url.contains('#') {
            answer.url
        } else {
            // The fragment never leaves the invited user's machine, and tells it which cluster to believe.
            format!("{}#ca-pin={}", answer.url, answer.ca_pins.join(","))
        };
        Self {
            user: answer.user,
            url,
            token: answer.invite_token,
            expires: moment::rfc3339(expires),
            ca_pins: answer.ca_pins,
        }
    }

    fn text(&self, done: &str, lifetime: &str) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "User {} {done}. This invitation works once and expires in {lifetime}:\n",
            self.user
        );
        if self.url.is_empty() {
            let pins = self.ca_pins.join(",");
            let _ = writeln!(
                text,
                "  way invite accept {} --proxy PROXY_HOST:443 --ca-pin {pins}\n\nNo proxy has registered yet; put \
                 its address in.",
                self.token
            );
        } else {
            let _ = writeln!(text, "  way invite accept '{}'", self.url);
        }
        text
    }
}

async fn ls(global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let users: Vec<UserRow> =
        resources::list(&access, Kind::User).await?.into_iter().filter_map(UserRow::new).collect();
    show(global.format(), &users, || {
        let rows: Vec<_> = users.iter().map(UserRow::cells).collect();
        table(&["User", "Roles", "Logins", "Locked Until"], &rows)
    })?;
    Ok(Exit::Done)
}

impl UserRow {
    fn new(resource: Resource) -> Option<Self> {
        let Resource::User(user) = resource else { return None };
        Some(Self {
            name: user.name.to_string(),
            roles: user.spec.roles.iter().map(ToString::to_string).collect(),
            traits: user.spec.traits,
            locked_until: user.status.locked_until.map(moment::rfc3339),
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.roles.join(","),
            self.traits.get("logins").map(|logins| logins.join(",")).unwrap_or_default(),
            self.locked_until.clone().unwrap_or_default(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(url: &str) -> InviteResponse {
        InviteResponse {
            user: "alice".into(),
            invite_token: "abc".into(),
            expires_ms: 0,
            url: url.into(),
            ca_pins: vec!["sha256:aa".into(), "sha256:bb".into()],
        }
    }

    #[test]
    fn an_invitation_carries_the_pins_that_its_holder_needs() {
        let with_url = Invitation::new(answer("https://p:443/web/invite/abc"), Wall::from_ms(0));
        assert_eq!(with_url.url, "https://p:443/web/invite/abc#ca-pin=sha256:aa,sha256:bb");
        assert!(
            with_url
                .text("has been created", "1h")
                .contains("way invite accept 'https://p:443/web/invite/abc#")
        );
        let without = Invitation::new(answer(""), Wall::from_ms(0));
        assert!(without.text("has been created", "1h").contains("way invite accept abc --proxy"));
    }

    #[test]
    fn traits_are_read() {
        assert_eq!(
            parse_trait("team=infra, web").unwrap(),
            ("team".to_owned(), vec!["infra".into(), "web".into()])
        );
        assert!(parse_trait("team").is_err());
        assert!(parse_trait("=x").is_err());
    }
}
