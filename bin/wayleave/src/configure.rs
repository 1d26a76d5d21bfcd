//! `wayleave configure`: a commented configuration file for chosen roles.

use crate::cli::{EXIT_USAGE, print_error, write_out};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use wayleave_config::{CaPin, Config, SampleOptions, SampleStorage, Service, ValueOrPath};
use wayleave_vocab::{ClusterName, HostPort, NodeName, Secret};

/// What the file shall say.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    wayleave configure --roles auth,proxy --cluster-name example.com --public-addr proxy.example.com:443\n  \
    wayleave configure --roles node --proxy proxy.example.com:443 --token /etc/wayleave.token --ca-pin sha256:…")]
pub(crate) struct ConfigureArgs {
    /// Services, with commas: auth, proxy, node
    #[arg(long, value_delimiter = ',', default_value = "auth,proxy,node")]
    roles: Vec<String>,
    /// Name of the cluster (it cannot change later)
    #[arg(long)]
    cluster_name: Option<ClusterName>,
    /// Where clients and agents reach the proxies
    #[arg(long)]
    public_addr: Option<String>,
    /// Name of this machine
    #[arg(long)]
    nodename: Option<NodeName>,
    /// State of the process
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Join token, or the absolute path of a file with it
    #[arg(long)]
    token: Option<String>,
    /// Pin of the cluster's host authority, as `way status` prints it
    #[arg(long = "ca-pin")]
    ca_pins: Vec<String>,
    /// Address of the Auth Service, for a process that reaches it directly
    #[arg(long)]
    auth_server: Option<String>,
    /// Address of a proxy, for a process that joins through it
    #[arg(long)]
    proxy: Option<String>,
    /// Backend of the Auth Service: sqlite, postgresql or etcd
    #[arg(long, default_value = "sqlite")]
    storage: String,
    /// Write to this file instead of standard output; an existing file is kept
    #[arg(short, long)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: ConfigureArgs) -> ExitCode {
    let output = args.output.clone();
    let text = match options(args) {
        Ok(options) => Config::configure(&options),
        Err(error) => {
            print_error(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let written = match output {
        None => write_out(&text),
        Some(path) => create_new(&path, &text),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn options(args: ConfigureArgs) -> anyhow::Result<SampleOptions> {
    let services: BTreeSet<Service> =
        args.roles.iter().map(|role| role.parse()).collect::<Result<_, _>>().context("--roles")?;
    let address = |text: Option<String>, port: u16| {
        text.map(|text| HostPort::parse(&text, Some(port))).transpose().map_err(anyhow::Error::from)
    };
    let token = args.token.map(|text| match PathBuf::from(&text) {
        path if path.is_absolute() => ValueOrPath::Path(path),
        _ => ValueOrPath::Value(Secret::new(text)),
    });
    let storage = match args.storage.as_str() {
        "sqlite" => SampleStorage::Sqlite,
        "postgresql" => SampleStorage::Postgresql,
        "etcd" => SampleStorage::Etcd,
        other => bail!("--storage: there are sqlite, postgresql and etcd, not {other:?}"),
    };
    let ca_pins: Vec<CaPin> =
        args.ca_pins.iter().map(|pin| pin.parse()).collect::<Result<_, _>>().context("--ca-pin")?;
    Ok(SampleOptions {
        services,
        nodename: args.nodename,
        data_dir: args.data_dir,
        cluster_name: args.cluster_name,
        public_addr: address(args.public_addr, 443)?,
        auth_token: token,
        ca_pins,
        auth_server: address(args.auth_server, 3025)?,
        proxy_server: address(args.proxy, 443)?,
        storage,
    })
}

fn create_new(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
