//! `way locks`: who or what is out, at once and in running sessions.

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{note, show, table};
use crate::resources;
use serde::Serialize;
use wayleave_resource::{Kind, Lock, LockSpec, LockTarget, Metadata, Resource};
use wayleave_runtime::random_bytes;
use wayleave_vocab::{HostId, Login, ResourceName, RoleName, TraceId, UserName};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum LocksCommand {
    Add(AddArgs),
    /// List locks.
    Ls,
    /// Remove a lock.
    Rm(RmArgs),
}

/// Lock one user, role, login or node out; running sessions end
///
/// way locks add --user alice --message "left the company"
/// way locks add --login root --ttl 1h
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AddArgs {
    /// Everybody who holds this role.
    #[arg(long, value_name = "ROLE")]
    role: Option<RoleName>,
    /// Sessions as this account, on every node.
    #[arg(long, value_name = "LOGIN")]
    login: Option<Login>,
    /// A node (or another process of the cluster), by host id or name.
    #[arg(long, visible_alias = "server-id", value_name = "NODE")]
    node: Option<String>,
    /// Shown to whoever is locked out.
    #[arg(long, default_value = "", hide_default_value = true)]
    message: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// The lock's name, from `way locks ls`.
    name: ResourceName,
}

#[derive(Debug, Serialize)]
struct LockRow {
    name: String,
    target: String,
    message: String,
    expires: Option<String>,
    created_by: Option<String>,
}

pub(crate) async fn locks(command: LocksCommand, global: &GlobalArgs) -> Result<Exit, Failure> {
    match command {
        LocksCommand::Add(args) => add(args, global).await,
        LocksCommand::Ls => ls(global).await,
        LocksCommand::Rm(args) => {
            resources::delete(&Access::find(global)?, Kind::Lock, args.name.as_str()).await?;
            note(&format!("lock {} has been removed", args.name));
            Ok(Exit::Done)
        }
    }
}

async fn add(args: AddArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let user =
        global.user.as_deref().map(UserName::parse).transpose().map_err(|e| Failure::usage(e.to_string()))?;
    let given = [user.is_some(), args.role.is_some(), args.login.is_some(), args.node.is_some()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        return Err(Failure::usage("a lock is about one thing")
            .hint("give exactly one of --user, --role, --login and --node"));
    }
    let access = Access::find(global)?;
    let target = match (user, args.role, args.login, args.node) {
        (Some(user), ..) => LockTarget::User(user),
        (_, Some(role), ..) => LockTarget::Role(role),
        (_, _, Some(login), _) => LockTarget::Login(login),
        (_, _, _, node) => LockTarget::ServerId(host_id(&access, &node.unwrap_or_default()).await?),
    };
    let name = ResourceName::parse(TraceId::from_random(random_bytes()).to_string())
        .map_err(|e| Failure::failed(e.to_string()))?;
    let spec = LockSpec {
        target,
        message: args.message,
        expires: global.ttl.map(|ttl| moment::now().after(ttl.0)),
        created_at: None,
        created_by: None,
    };
    let lock = Resource::Lock(Lock { name, metadata: Metadata::default(), spec });
    let done = resources::put(&access, &lock, false).await?;
    note(&format!("lock {} has been set; `way locks rm {}` removes it", done.name(), done.name()));
    Ok(Exit::Done)
}

/// A host id as it is, or that of the one node of this name.
async fn host_id(access: &Access, node: &str) -> Result<HostId, Failure> {
    if let Ok(id) = node.parse() {
        return Ok(id);
    }
    let nodes = resources::list(access, Kind::Node).await?;
    let mut ids = nodes.into_iter().filter_map(|resource| match resource {
        Resource::Node(found) if found.spec.hostname.as_str() == node => Some(found.host_id),
        _ => None,
    });
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(Failure::failed(format!("several nodes are called {node:?}"))
            .hint("take the id from `way ls -v`")),
        (None, _) => Err(Failure::new(Exit::NotFound, format!("no node is called {node:?}"))
            .hint("`way ls -v` lists names and ids")),
    }
}

async fn ls(global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let locks: Vec<LockRow> =
        resources::list(&access, Kind::Lock).await?.into_iter().filter_map(LockRow::new).collect();
    show(global.format(), &locks, || {
        let rows: Vec<_> = locks.iter().map(LockRow::cells).collect();
        table(&["Lock", "Target", "Expires", "Created By", "Message"], &rows)
    })?;
    Ok(Exit::Done)
}

impl LockRow {
    fn new(resource: Resource) -> Option<Self> {
        let Resource::Lock(lock) = resource else { return None };
        Some(Self {
            name: lock.name.to_string(),
            target: lock.spec.target.to_string(),
            message: lock.spec.message,
            expires: lock.spec.expires.map(moment::rfc3339),
            created_by: lock.spec.created_by.map(|user| user.to_string()),
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.target.clone(),
            self.expires.clone().unwrap_or_else(|| "never".to_owned()),
            self.created_by.clone().unwrap_or_default(),
            self.message.clone(),
        ]
    }
}
