//! Gets the identity of this process: from the data directory, from an Auth Service beside it, or by joining.

use super::Process;
use super::addresses;
use super::auth::{RunningAuth, make_data_dir};
use crate::edge;
use anyhow::Context;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use wayleave_api::auth::CreateTokenRequest;
use wayleave_instance::{Instance, InstanceConfig, InstanceError, JoinToken};
use wayleave_keystore::Pins;
use wayleave_net::AddressBook;
use wayleave_runtime::{Clock, random_u64};
use wayleave_vocab::{NodeName, Secret, SystemRole};

/// Life of the token by which the services of one process join the Auth Service beside them.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// The identity, and where the cluster is.
pub(crate) struct OpenedInstance {
    pub(crate) instance: Arc<Instance>,
    pub(crate) addresses: AddressBook,
    pub(crate) node_name: NodeName,
}

pub(crate) async fn open(process: &Process, auth: Option<&RunningAuth>) -> anyhow::Result<OpenedInstance> {
    make_data_dir(&process.config.instance.data_dir)?;
    let node_name = edge::node_name(&process.config.instance)?;
    let addresses = addresses::open(process, auth);
    let mut roles = BTreeSet::new();
    if process.config.proxy.is_some() {
        roles.insert(SystemRole::Proxy);
    }
    if process.config.ssh.is_some() {
        roles.insert(SystemRole::Node);
    }
    let mut retry = RETRY_MIN;
    let mut said = false;
    loop {
        let (token, pins) = credentials(process, auth, &roles).await?;
        let config = InstanceConfig {
            data_dir: process.config.instance.data_dir.clone(),
            node_name: node_name.clone(),
            roles: roles.clone(),
            token,
            pins,
            addresses: addresses.clone(),
            additional_principals: public_names(process),
        };
        match Instance::open(config, process.clock.as_ref() as &dyn Clock).await {
            Ok(instance) => return Ok(OpenedInstance { instance: Arc::new(instance), addresses, node_name }),
            Err(InstanceError::Unreachable(reason)) => {
                if !said {
                    tracing::warn!(reason, "the cluster cannot be reached yet, trying again until it can");
                    // Whoever starts this process need not wait for the network as well.
                    process.manager.ready("waiting for the cluster");
                    said = true;
                }
            }
            // A machine that has just started may not have been told the time yet.
            Err(InstanceError::Clock(complaint)) => {
                if !said {
                    tracing::warn!(reason = %complaint, "the clocks do not agree, trying again until they do");
                    said = true;
                }
            }
            Err(error) => return Err(error).context("this process cannot join the cluster"),
        }
        let pause = retry / 2 + Duration::from_millis(random_u64() % 250);
        retry = (retry * 2).min(RETRY_MAX);
        if process.shutdown.until(tokio::time::sleep(pause)).await.is_none() {
            anyhow::bail!("ended before the cluster could be reached");
        }
    }
}

/// Names under which people reach this process: host certificates are for them too, so that `ssh -J` by a public
/// address finds the name that it dialled.
fn public_names(process: &Process) -> Vec<String> {
    let Some(proxy) = &process.config.proxy else { return Vec::new() };
    let ssh = proxy.ssh.iter().chain(&proxy.tunnel).flat_map(|ssh| &ssh.public_addrs);
    let mut names: Vec<String> = proxy.public_addrs.iter().chain(ssh).map(|a| a.host().to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The token and the pins to join with; the Auth Service of this very process vouches for itself.
async fn credentials(
    process: &Process,
    auth: Option<&RunningAuth>,
    roles: &BTreeSet<SystemRole>,
) -> anyhow::Result<(Option<JoinToken>, Pins)> {
    let Some(auth) = auth else {
        let instance = &process.config.instance;
        return Ok((edge::join_token(instance)?, edge::pins(instance)?));
    };
    let pins = auth.api().ca_pins().join(",").parse().context("the pins of this very Auth Service")?;
    if process.config.instance.data_dir.join("identity/process.json").exists() {
        return Ok((edge::join_token(&process.config.instance)?, pins));
    }
    let request = CreateTokenRequest {
        system_roles: roles.iter().map(ToString::to_string).collect(),
        ttl_ms: u64::try_from(OWN_TOKEN_TTL.as_millis()).unwrap_or(u64::MAX),
        ..CreateTokenRequest::default()
    };
    let made = auth.api().create_token(request).await.context("a token for the services of this process")?;
    Ok((Some(JoinToken::from_parts(made.name, Secret::new(made.secret))), pins))
}
