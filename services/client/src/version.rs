//! `way version` and `way completion`.

use crate::access::{Access, call};
use crate::cli::{Cli, GlobalArgs};
use crate::failure::{Exit, Failure};
use crate::output::{print_bytes, show};
use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use wayleave_api::auth::GetStatusRequest;

/// Print the versions of client and cluster
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct VersionArgs {
    /// Ask the cluster for its version too.
    #[arg(long)]
    cluster: bool,
}

/// Print a completion script for a shell
///
/// way completion bash > /etc/bash_completion.d/way
/// way completion zsh > "${fpath[1]}/_way"
/// way completion fish > ~/.config/fish/completions/way.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompletionArgs {
    /// Which shell.
    shell: Shell,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

pub(crate) async fn version(args: &VersionArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let cluster = if args.cluster {
        Some(call(Access::find(global)?.admin()?.get_status(GetStatusRequest {})).await?.version)
    } else {
        None
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), cluster };
    show(global.format(), &versions, || match &versions.cluster {
        Some(cluster) => format!("way {}\ncluster {cluster}\n", versions.client),
        None => format!("way {}\n", versions.client),
    })?;
    Ok(Exit::Done)
}

pub(crate) fn completion(args: &CompletionArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "way", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}
