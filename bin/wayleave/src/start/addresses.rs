//! Where this process reaches its cluster: what the file says and, for an agent, the proxies that it has met since.

use super::Process;
use super::auth::RunningAuth;
use super::instance::OpenedInstance;
use wayleave_config::Upstream;
use wayleave_keystore::IdentityDir;
use wayleave_net::AddressBook;
use wayleave_runtime::TaskGroup;
use wayleave_vocab::HostPort;

/// The file that keeps the learned addresses from one start to the next.
const FILE: &str = "known-proxies.json";

/// True where the cluster's proxies are further ways to Auth: they pass an agent on, but not each other.
pub(crate) fn follows_cluster(process: &Process) -> bool {
    process.config.auth.is_none() && process.config.proxy.is_none()
}

/// The configured addresses, and those that an earlier life learned.
pub(crate) fn open(process: &Process, auth: Option<&RunningAuth>) -> AddressBook {
    if let Some(auth) = auth {
        let mut address = auth.address();
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        return AddressBook::new(vec![HostPort::from_socket(address)]);
    }
    let book = AddressBook::new(match &process.config.instance.upstream {
        Upstream::AuthServers(addresses) => addresses.clone(),
        Upstream::ProxyServer(address) => vec![address.clone()],
        Upstream::LocalAuth { auth_servers, proxy_server } => {
            auth_servers.iter().chain(proxy_server).cloned().collect()
        }
    });
    if follows_cluster(process) {
        let directory = process.config.instance.data_dir.join("identity");
        match IdentityDir::open(&directory).and_then(|directory| directory.read::<Vec<HostPort>>(FILE)) {
            Ok(known) => book.learn(known.unwrap_or_default()),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "the proxies met before are not known: only configured addresses are tried"
                );
            }
        }
    }
    book
}

/// Keeps what is learned, with a task of `helpers`.
pub(crate) fn keep(process: &Process, opened: &OpenedInstance, helpers: &TaskGroup) {
    if !follows_cluster(process) {
        return;
    }
    let (directory, shutdown) = (opened.instance.directory().clone(), helpers.shutdown());
    let mut learned = opened.addresses.learned();
    helpers.spawn("known proxies", async move {
        while let Some(Ok(())) = shutdown.until(learned.changed()).await {
            let known = learned.borrow_and_update().clone();
            if let Err(error) = directory.write(FILE, &known) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the cluster's proxies cannot be kept for the next start");
            }
        }
    });
}
