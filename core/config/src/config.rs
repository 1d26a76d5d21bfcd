//! The whole file.

use crate::auth::{self, AuthConfig};
use crate::check;
use crate::error::{ConfigErrors, KeyPath, Place, Report};
use crate::instance::{self, InstanceConfig, Services};
use crate::proxy::{self, ProxyConfig};
use crate::section::Section;
use crate::ssh::{self, SshConfig};
use crate::tracing::{self, TracingConfig};
use crate::yaml::{self, Node, Value};

/// A configuration that can be started: at least one service, and every value in bounds.
#[derive(Debug, Clone)]
pub struct Config {
    /// The process as a whole.
    pub instance: InstanceConfig,
    /// The Auth Service, when its section is there and not switched off.
    pub auth: Option<AuthConfig>,
    /// The Proxy Service, likewise.
    pub proxy: Option<ProxyConfig>,
    /// The SSH Service, likewise.
    pub ssh: Option<SshConfig>,
    /// Where traces go, likewise.
    pub tracing: Option<TracingConfig>,
}

impl Config {
    /// Reads the text of a file; `file_name` appears in errors. Nothing is opened: files that the
    /// text names stay paths.
    ///
    /// # Errors
    /// All mistakes of the file at once. Only a mistake of YAML's own syntax, or a bound of the
    /// file as a whole, hides those behind it.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigErrors> {
        let report = Report::new(file_name);
        let config = yaml::parse(text, &report).and_then(|root| {
            check::check(&report, &root);
            read(&report, &root)
        });
        report.finish(config)
    }
}

/// Reads what `root` says; `None` when something was reported.
pub(crate) fn read(report: &Report, root: &Node) -> Option<Config> {
    if !matches!(root.value, Value::Map(_)) {
        return None;
    }
    let file = Section::root(report, root);
    check_version(&file);
    let auth = running(&file, "auth_service");
    let proxy = running(&file, "proxy_service");
    let ssh = running(&file, "ssh_service");
    let tracing = running(&file, "tracing_service");
    if auth.is_none() && proxy.is_none() && ssh.is_none() {
        report.mistake(
            Place::START,
            &KeyPath::default(),
            "no service that is switched on",
            "at least one of auth_service, proxy_service and ssh_service",
        );
        // Without a service nobody can say which address the rest of the file lacks.
        return None;
    }
    let services = Services { auth: auth.is_some(), proxy: proxy.is_some() };
    let instance = instance::read(&file, services);
    // All are read before any failure ends the reading: every mistake is reported.
    let auth = auth.map(|section| auth::read(&section));
    let proxy = proxy.map(|section| proxy::read(&section));
    let ssh = ssh.map(|section| ssh::read(&section));
    let tracing = tracing.map(|section| tracing::read(&section));
    Some(Config {
        instance: instance?,
        auth: read_or_absent(auth)?,
        proxy: read_or_absent(proxy)?,
        ssh: read_or_absent(ssh)?,
        tracing: read_or_absent(tracing)?,
    })
}

/// Turns "there but wrong" into `None` and keeps "not there" apart from it.
fn read_or_absent<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    match section {
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
        None => Some(None),
    }
}

fn check_version(file: &Section<'_>) {
    // v1 and v2 meant other defaults for the proxy's listeners: reading them as v3 would close ports silently.
    let _is_v3: Option<()> = file.choice("version", &[("v3", ())]);
}

/// The section of a service, if it is written and not switched off.
fn running<'a>(file: &Section<'a>, name: &str) -> Option<Section<'a>> {
    if !file.has(name) {
        return None;
    }
    let section = file.section(name);
    // A mistake in the flag is reported; the rest of the section is then checked as if it were on.
    section.flag("enabled").unwrap_or(true).then_some(section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{self, Class, Kind};

    /// Every section is there, and every list of sections has an item.
    const EVERYTHING: &str = "\
        wayleave: {join_params: {token_name: x}}\nauth_service: {}\n\
        proxy_service: {https_keypairs: [{key_file: /k, cert_file: /c}]}\n\
        ssh_service: {commands: [{name: a, command: [b]}]}\n\
        tracing_service: {exporter_url: http://otel}\n";

    #[test]
    fn every_key_of_the_table_is_read_and_every_read_key_is_in_the_table() {
        let report = Report::new("test.yaml");
        let root = yaml::parse(EVERYTHING, &report).unwrap();
        check::check(&report, &root);
        let config = read(&report, &root);
        let asked = report.asked.borrow().clone();
        report.finish(config).unwrap();

        for (path, kind) in &asked {
            let Some(Class::Supported { kind: row, .. }) = keys::find(path).map(|key| &key.class) else {
                panic!("{path} is read but in no row of supported keys")
            };
            assert_eq!(*kind, std::mem::discriminant(row), "{path} is read as something else than {row:?}");
        }
        for key in keys::all() {
            let Class::Supported { kind, .. } = &key.class else { continue };
            let holds_nothing = matches!(kind, Kind::Section)
                && !keys::all().any(|below| {
                    keys::parent(below.path) == key.path && matches!(below.class, Class::Supported { .. })
                });
            assert!(
                holds_nothing || asked.contains_key(key.path),
                "{} is in the table but not read",
                key.path
            );
        }
    }
}
