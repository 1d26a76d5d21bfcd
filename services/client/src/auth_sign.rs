//! `way auth sign`: an identity file for a user, without his password.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::new_keys::NewKeys;
use crate::output::note;
use crate::resources;
use std::path::PathBuf;
use wayleave_api::auth::SignUserRequest;
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::HostPort;

/// Make an identity file: both private keys, both certificates and the authorities in one file of mode 0600
///
/// way -c /etc/wayleave.yaml auth sign --user ci --ttl 1h --out ci.identity
/// way -i ci.identity ssh deploy@web-1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SignArgs {
    /// Where to write the identity file.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if there is one.
    #[arg(long)]
    overwrite: bool,
}

pub(crate) async fn sign(args: &SignArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let user = global
        .user
        .clone()
        .ok_or_else(|| Failure::usage("no user is named").hint("say for whom: --user NAME"))?;
    if args.out.exists() && !args.overwrite {
        return Err(Failure::failed(format!("{} is there already", args.out.display()))
            .hint("choose another name, or say --overwrite"));
    }
    let access = Access::find(global)?;
    let keys = NewKeys::generate()?;
    let request = SignUserRequest { user, keys: Some(keys.public()), ttl_ms: global.ttl_ms() };
    let answer = call(access.admin()?.sign_user(request)).await?;
    let proxies = match &global.proxy {
        Some(proxy) => vec![proxy.clone()],
        None => proxies_of(&access).await,
    };
    let is_without_proxy = proxies.is_empty();
    let identity = keys.certified(answer, proxies)?;
    identity.write(&args.out).map_err(|e| Failure::failed(e.to_string()))?;
    let user = identity.user();
    note(&format!(
        "The identity of {} is in {}, valid until {}.",
        user.name,
        args.out.display(),
        moment::local(user.not_after)
    ));
    if is_without_proxy {
        note("No proxy is known yet, so the file names none: use it with --proxy HOST:PORT.");
    }
    Ok(Exit::Done)
}

/// The public addresses of the cluster's proxies as Auth lists them, otherwise those that are used here.
pub(crate) async fn proxies_of(access: &Access) -> Vec<HostPort> {
    let mut addresses: Vec<HostPort> = Vec::new();
    match resources::list(access, Kind::Proxy).await {
        Ok(proxies) => {
            for proxy in proxies {
                if let Resource::Proxy(proxy) = proxy {
                    addresses.extend(proxy.spec.public_addrs);
                }
            }
        }
        Err(failure) => tracing::debug!(reason = %failure.message, "the proxies cannot be listed"),
    }
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(address.clone()));
    if addresses.is_empty() { access.proxies.clone() } else { addresses }
}
