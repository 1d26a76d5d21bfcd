//! `way config`: the ssh_config with which stock OpenSSH, and whatever is built on it, reaches every node.

use crate::access::{Access, Source};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::home::make_directory;
use crate::identity_file::Identity;
use crate::output::print;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use wayleave_keystore::write_private;
use wayleave_vocab::HostPort;

/// Name of the daemon's binary, which carries this client behind a subcommand.
const DAEMON: &str = "wayleave";

/// Print the ssh_config with which stock OpenSSH reaches the nodes
///
/// The key, certificate and known_hosts files that it names are written too.
///
/// way config >> ~/.ssh/config && ssh root@web-1.CLUSTER
/// way -i ci.identity config > ci.ssh_config && ssh -F ci.ssh_config root@web-1.CLUSTER
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ConfigArgs {
    /// Where to write the files; by default beside the login, or FILE.ssh beside the identity file.
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

/// The files that the printed text names.
struct Files {
    key: PathBuf,
    certificate: PathBuf,
    known_hosts: PathBuf,
}

pub(crate) fn config(args: &ConfigArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    access.check_expiry()?;
    let directory = match (&args.out_dir, &access.source) {
        (Some(directory), _) => directory.clone(),
        (None, Source::File(file)) => beside(file),
        (None, Source::Profile { directory, .. }) => directory.join("ssh"),
        (None, Source::Local(_)) => {
            return Err(Failure::usage("-c is for administration: it has no place for SSH files")
                .hint("make an identity file with `way -c … auth sign`, or give --out-dir DIR"));
        }
    };
    let directory = std::path::absolute(&directory).map_err(Failure::doing("cannot find the directory"))?;
    let files = write_files(&access.identity, &directory)?;
    let client = client_command().map_err(Failure::doing("cannot find this program's own path"))?;
    // A later login elsewhere does not move this configuration there.
    let proxy = match &access.source {
        Source::Profile { .. } => access.proxies.first(),
        Source::File(_) | Source::Local(_) => global.proxy.as_ref(),
    };
    let command = proxy_command(&client, &access.source, proxy)?;
    print(&render(&access.identity, &access.proxies, &files, &command)?)?;
    Ok(Exit::Done)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(".ssh");
    file.with_file_name(name)
}

fn write_files(identity: &Identity, directory: &Path) -> Result<Files, Failure> {
    make_directory(directory)?;
    let files = Files {
        key: directory.join("key"),
        certificate: directory.join("key-cert.pub"),
        known_hosts: directory.join("known_hosts"),
    };
    let parts = identity.parts();
    let certificate = format!("{}\n", parts.ssh_certificate.trim());
    for (path, content) in [
        (&files.key, parts.ssh_key_openssh.expose_secret()),
        (&files.certificate, certificate.as_str()),
        (&files.known_hosts, known_hosts(identity).as_str()),
    ] {
        write_private(path, content.as_bytes())
            .map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))?;
    }
    Ok(files)
}

/// The authorities that may vouch for nodes of the cluster, and for nothing else.
fn known_hosts(identity: &Identity) -> String {
    let cluster = &identity.parts().cluster;
    let mut text = String::new();
    for key in &identity.parts().host_ca_ssh {
        let _ = writeln!(text, "@cert-authority *.{cluster},{cluster} {}", key.trim());
    }
    text
}

/// The words that run this client: `way`, or the daemon with its hidden subcommand.
fn client_command() -> std::io::Result<Vec<String>> {
    let path = std::env::current_exe()?;
    let is_daemon = path.file_stem().is_some_and(|stem| stem == DAEMON);
    let mut words = vec![path.to_string_lossy().into_owned()];
    if is_daemon {
        words.push("client".to_owned());
    }
    Ok(words)
}

fn proxy_command(client: &[String], source: &Source, proxy: Option<&HostPort>) -> Result<String, Failure> {
    let mut words = client.to_vec();
    match source {
        Source::File(file) => {
            let file = std::path::absolute(file).map_err(Failure::doing("cannot find the identity file"))?;
            words.extend(["-i".to_owned(), file.to_string_lossy().into_owned()]);
        }
        Source::Local(file) => {
            let file = std::path::absolute(file).map_err(Failure::doing("cannot find the configuration"))?;
            words.extend(["-c".to_owned(), file.to_string_lossy().into_owned()]);
        }
        Source::Profile { .. } => {}
    }
    if let Some(proxy) = proxy {
        words.extend(["--proxy".to_owned(), proxy.to_string()]);
    }
    words.extend(["proxy".to_owned(), "ssh".to_owned()]);
    let mut line = words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
    // Quoted and behind `--`: OpenSSH before 9.6 hands on whatever a hostile address has for a user or host.
    line.push_str(" -- '%r@%h:%p'");
    Ok(line)
}

/// A word for the shell that OpenSSH runs a ProxyCommand with, with OpenSSH's own `%` escaped.
fn quote(word: &str) -> String {
    let word = word.replace('%', "%%");
    let is_plain =
        word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b':'));
    if is_plain && !word.is_empty() { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A path in ssh_config, with OpenSSH's `%` and quotes minded.
fn path(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n', '\r'])).ok_or_else(|| {
        Failure::failed(format!("{} cannot be written in an ssh_config", path.display()))
            .hint("choose another place with --out-dir")
    })?;
    let text = text.replace('%', "%%");
    Ok(if text.contains(' ') { format!("\"{text}\"") } else { text })
}

fn render(
    identity: &Identity,
    proxies: &[HostPort],
    files: &Files,
    command: &str,
) -> Result<String, Failure> {
    let cluster = &identity.parts().cluster;
    let through = proxies.first().map_or_else(String::new, |proxy| format!(" through {proxy}"));
    let mut text = String::new();
    let _ = writeln!(text, "# Wayleave cluster {cluster}{through}, as {}.", identity.user().name);
    let _ = writeln!(text, "Host *.{cluster}");
    let _ = writeln!(text, "    ProxyCommand {command}");
    let _ = writeln!(text, "    UserKnownHostsFile {}", path(&files.known_hosts)?);
    let _ = writeln!(text, "    GlobalKnownHostsFile /dev/null");
    let _ = writeln!(text, "    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com");
    let _ = writeln!(text, "    StrictHostKeyChecking yes");
    let _ = writeln!(text, "    IdentityFile {}", path(&files.key)?);
    let _ = writeln!(text, "    CertificateFile {}", path(&files.certificate)?);
    let _ = writeln!(text, "    IdentitiesOnly yes");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_printed_configuration_is_complete() {
        let files = Files {
            key: "/home/a b/key".into(),
            certificate: "/k/key-cert.pub".into(),
            known_hosts: "/k/known_hosts".into(),
        };
        let identity = identity(END);
        let source = Source::File("/etc/ci id".into());
        let command = proxy_command(&["/usr/bin/way".into()], &source, None).unwrap();
        assert_eq!(
            render(&identity, &identity.parts().proxies, &files, &command).unwrap(),
            "# Wayleave cluster demo through proxy.example.com:443, as alice.\n\
             Host *.demo\n    \
             ProxyCommand /usr/bin/way -i '/etc/ci id' proxy ssh -- '%r@%h:%p'\n    \
             UserKnownHostsFile /k/known_hosts\n    \
             GlobalKnownHostsFile /dev/null\n    \
             HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com\n    \
             StrictHostKeyChecking yes\n    \
             IdentityFile \"/home/a b/key\"\n    \
             CertificateFile /k/key-cert.pub\n    \
             IdentitiesOnly yes\n"
        );
    }

    #[test]
    fn h_nothing_in_a_path_reaches_the_shell() {
        assert_eq!(quote("/a b;$(id)'x"), "'/a b;$(id)'\\''x'");
        assert_eq!(quote("100%"), "'100%%'");
        assert!(path(Path::new("/a\"b")).is_err());
        // What ssh puts in for the percents is neither run nor read as an option.
        let source = Source::Profile { name: "p".into(), directory: "/p".into() };
        assert!(proxy_command(&["way".into()], &source, None).unwrap().ends_with(" -- '%r@%h:%p'"));
    }

    #[test]
    fn m_the_key_file_is_private_and_ssh_finds_its_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let files = write_files(&identity(END), &directory.path().join("ssh")).unwrap();
        let mode = std::fs::metadata(&files.key).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let known = std::fs::read_to_string(&files.known_hosts).unwrap();
        assert!(known.starts_with("@cert-authority *.demo,demo ssh-ed25519 "), "{known}");
        assert!(std::fs::read_to_string(&files.certificate).unwrap().starts_with("ssh-ed25519-cert"));
    }

    #[test]
    fn the_daemon_is_called_with_its_subcommand_and_a_flag_is_kept() {
        let client = ["/usr/bin/wayleave".to_owned(), "client".to_owned()];
        let source = Source::Profile { name: "p".into(), directory: "/p".into() };
        let proxy = "[::1]:3080".parse().unwrap();
        assert_eq!(
            proxy_command(&client, &source, Some(&proxy)).unwrap(),
            "/usr/bin/wayleave client --proxy '[::1]:3080' proxy ssh -- '%r@%h:%p'"
        );
    }
}
