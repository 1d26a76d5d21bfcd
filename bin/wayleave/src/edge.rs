//! What the configuration only points at: files with tokens, pins and certificates, and the name of this machine.

use anyhow::{Context, bail};
use std::fs;
use std::path::Path;
use wayleave_auth::StaticToken;
use wayleave_config::{
    CaPin, Config, InstanceConfig, KeyPairFiles, ProxyConfig, StaticToken as ConfiguredToken, ValueOrPath,
};
use wayleave_instance::JoinToken;
use wayleave_keystore::Pins;
use wayleave_proxy::{WebFiles, WebKeyPair};
use wayleave_vocab::{ClusterName, NodeName, Secret};

/// Longest file that a configuration may point at.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads and parses a configuration file; the error lists every mistake in it.
pub(crate) fn read_config(path: &Path) -> anyhow::Result<Config> {
    let text = read_text(path).with_context(|| {
        format!("no usable configuration: write one with `wayleave configure > {}`", path.display())
    })?;
    Config::parse(&text, &path.display().to_string()).map_err(|errors| anyhow::anyhow!("{errors}"))
}

/// The configured name of this machine, else its host name.
pub(crate) fn node_name(config: &InstanceConfig) -> anyhow::Result<NodeName> {
    if let Some(name) = &config.nodename {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("the host name cannot be read: set wayleave.nodename")?;
    NodeName::parse(name.to_string_lossy())
        .context("the host name cannot be a node name: set wayleave.nodename")
}

/// The configured name of the cluster, else this machine's name.
pub(crate) fn cluster_name(name: Option<&ClusterName>, node_name: &NodeName) -> anyhow::Result<ClusterName> {
    match name {
        Some(name) => Ok(name.clone()),
        None => ClusterName::parse(node_name.as_str().to_ascii_lowercase())
            .context("the host name cannot be a cluster name: set auth_service.cluster_name"),
    }
}

/// The token to join with, if one is configured.
pub(crate) fn join_token(config: &InstanceConfig) -> anyhow::Result<Option<JoinToken>> {
    let Some(join) = &config.join else { return Ok(None) };
    let token = secret(&join.token, "wayleave.auth_token or join_params.token_name")?;
    Ok(Some(match &join.secret {
        None => JoinToken::parse(&token),
        Some(second) => JoinToken::from_parts(
            token.expose_secret().to_owned(),
            secret(second, "join_params.token_secret")?,
        ),
    }))
}

/// The pins of the cluster's host authority.
pub(crate) fn pins(config: &InstanceConfig) -> anyhow::Result<Pins> {
    let mut all = String::new();
    for pin in &config.ca_pins {
        let text = match pin {
            ValueOrPath::Value(pin) => pin.to_string(),
            ValueOrPath::Path(path) => {
                let text = read_text(path).context("wayleave.ca_pin")?;
                for line in text.split_whitespace() {
                    line.parse::<CaPin>().with_context(|| format!("wayleave.ca_pin: {}", path.display()))?;
                }
                text
            }
        };
        all.push_str(&text);
        all.push('\n');
    }
    all.parse().context("wayleave.ca_pin")
}

/// The static tokens of `auth_service.tokens`.
pub(crate) fn static_tokens(tokens: &[ConfiguredToken]) -> anyhow::Result<Vec<StaticToken>> {
    tokens.iter().map(static_token).collect()
}

fn static_token(token: &ConfiguredToken) -> anyhow::Result<StaticToken> {
    match token {
        ConfiguredToken::Inline { roles, secret: value } => Ok(StaticToken {
            system_roles: roles.iter().copied().collect(),
            secret: secret(value, "auth_service.tokens")?,
        }),
        ConfiguredToken::File(path) => {
            let text = read_text(path).context("auth_service.tokens")?;
            match ConfiguredToken::parse(text.trim()) {
                Ok(ConfiguredToken::File(_)) => {
                    bail!("auth_service.tokens: {} points at another file", path.display())
                }
                Ok(inline) => static_token(&inline),
                Err(error) => Err(error).with_context(|| format!("auth_service.tokens: {}", path.display())),
            }
        }
    }
}

/// The web certificates and the files they come from; none when none is configured.
pub(crate) fn web_files(config: &ProxyConfig) -> anyhow::Result<Option<WebFiles>> {
    if config.https_keypairs.is_empty() {
        return Ok(None);
    }
    let pair = |pair: &KeyPairFiles| WebKeyPair {
        cert_file: pair.cert_file.clone(),
        key_file: pair.key_file.clone(),
    };
    let pairs = config.https_keypairs.iter().map(pair).collect();
    WebFiles::open(pairs, config.https_keypairs_reload_interval)
        .context("proxy_service.https_keypairs")
        .map(Some)
}

/// A secret as written, or from the file that holds it.
pub(crate) fn secret(value: &ValueOrPath<Secret>, key: &str) -> anyhow::Result<Secret> {
    match value {
        ValueOrPath::Value(secret) => Ok(secret.clone()),
        ValueOrPath::Path(path) => secret_file(path, key),
    }
}

/// The secret that a file holds.
pub(crate) fn secret_file(path: &Path, key: &str) -> anyhow::Result<Secret> {
    let text = read_text(path).with_context(|| key.to_owned())?;
    let text = text.trim();
    if text.is_empty() {
        bail!("{key}: {} is empty", path.display());
    }
    Ok(Secret::new(text.to_owned()))
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let length = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if length > FILE_BYTES_MAX {
        bail!("{} has {length} bytes, at most {FILE_BYTES_MAX}", path.display());
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
