//! User certificates that are wrong in every way, made by stock `ssh-keygen` with the cluster's own authority: the
//! agent and the proxy's SSH port refuse each, while the one that is right in everything is taken.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use wayleave_scenario::{Checks, Cluster, Output};
use wayleave_ssh::{Certificate, KeyPair};

/// The extension that says who somebody is.
const IDENTITY: &str = "identity@wayleave";

#[test]
fn d_certificates_that_are_wrong_in_one_way_are_refused_everywhere() {
    let cluster = Cluster::builder("ssh_certificates").proxies(1).nodes(&["web-1"]).start();
    let forge = Forge::new(&cluster);
    let identity = forge.identity_option(|text| text.to_owned());
    let elsewhere = forge.identity_option(|text| text.replace("scenario", "elsewhere"));
    let good = ["-n", "root", "-V", "-1m:+10m", "-O", &identity];
    let mut checks = Checks::default();
    checks.run("right_in_everything", || forge.check("right", "user", &good, true));
    let cases: [(&str, &str, &[&str]); 14] = [
        ("expired", "user", &["-n", "root", "-V", "-2h:-1h", "-O", &identity]),
        ("not_yet_valid", "user", &["-n", "root", "-V", "+1h:+2h", "-O", &identity]),
        ("of_a_strange_authority", "strange", &good),
        ("of_the_host_authority", "host", &good),
        ("a_host_certificate", "user", &["-h", "-n", "root", "-V", "-1m:+10m", "-O", &identity]),
        ("without_principals", "user", &["-V", "-1m:+10m", "-O", &identity]),
        ("for_another_principal", "user", &["-n", "daemon", "-V", "-1m:+10m", "-O", &identity]),
        (
            "with_an_unknown_critical_option",
            "user",
            &["-n", "root", "-V", "-1m:+10m", "-O", &identity, "-O", "critical:unheard-of@x=1"],
        ),
        (
            "with_a_forced_command",
            "user",
            &["-n", "root", "-V", "-1m:+10m", "-O", &identity, "-O", "force-command=/bin/true"],
        ),
        (
            "for_other_addresses",
            "user",
            &["-n", "root", "-V", "-1m:+10m", "-O", &identity, "-O", "source-address=203.0.113.0/24"],
        ),
        ("without_an_identity", "user", &["-n", "root", "-V", "-1m:+10m"]),
        ("of_another_cluster", "user", &["-n", "root", "-V", "-1m:+10m", "-O", &elsewhere]),
        (
            "with_an_unreadable_identity",
            "user",
            &["-n", "root", "-V", "-1m:+10m", "-O", "extension:identity@wayleave={}"],
        ),
        (
            "with_an_identity_as_critical_option",
            "user",
            &["-n", "root", "-V", "-1m:+10m", "-O", "critical:identity@wayleave={}"],
        ),
    ];
    for (name, authority, arguments) in cases {
        checks.run(name, || forge.check(name, authority, arguments, false));
    }
    checks.end();
}

/// The authorities of the cluster in the hands of an adversary who may sign anything but one thing right.
struct Forge<'a> {
    cluster: &'a Cluster,
    directory: PathBuf,
    certificate: Certificate,
}

impl<'a> Forge<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let ssh = cluster.ssh(&cluster.identity(), 0);
        let line = std::fs::read_to_string(cluster.scene.path("alice.id.ssh/key-cert.pub")).unwrap();
        let certificate = Certificate::from_openssh(line.trim()).unwrap();
        let forge = Self { cluster, directory: cluster.scene.path("forge"), certificate };
        for purpose in ["user", "host"] {
            let key = KeyPair::from_seed(&forge.seed(purpose)).to_openssh(purpose);
            let _written = cluster.scene.write(&format!("forge/{purpose}"), key.as_bytes());
        }
        let strange = forge.directory.join("strange");
        let keygen = ssh.plain("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let _made = keygen.arg(strange).stdout();
        forge
    }

    /// The secret of an authority, out of the backend.
    fn seed(&self, purpose: &str) -> [u8; 32] {
        let database = std::fs::read_dir(self.cluster.auth_file.data_dir.join("backend"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension != "lock") && is_database(path))
            .unwrap();
        let query = format!(
            "select value from log join items on items.log_id = log.id where items.key = '/authorities/{purpose}'"
        );
        let text = self.cluster.scene.program("sqlite3").arg("-readonly").arg(&database).arg(query).stdout();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let seed = record["generations"][0]["ssh_seed"].as_str().unwrap();
        let bytes: Vec<u8> =
            (0..seed.len()).step_by(2).map(|at| u8::from_str_radix(&seed[at..at + 2], 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// The identity of the cluster's user, changed, as ssh-keygen takes an extension.
    fn identity_option(&self, change: impl Fn(&str) -> String) -> String {
        format!("extension:{IDENTITY}={}", change(&self.certificate.extensions()[IDENTITY]))
    }

    fn check(&self, name: &str, authority: &str, arguments: &[&str], is_taken: bool) {
        let key = self.directory.join(name);
        let ssh = self.cluster.ssh(&self.cluster.identity(), 0);
        let keygen = || ssh.plain("ssh-keygen").arg("-q");
        let _made = keygen().args(["-t", "ed25519", "-N", "", "-f"]).arg(&key).stdout();
        let authority = self.directory.join(authority);
        let signed = keygen().arg("-s").arg(authority).args(["-I", name]).args(arguments);
        let signed = signed.args(["-O", "permit-pty"]).arg(key.with_extension("pub")).output();
        if arguments.contains(&"-h") {
            // ssh-keygen knows no terminals for hosts.
            let _unsigned = signed;
            let signed =
                keygen().arg("-s").arg(self.directory.join("user")).args(["-I", name]).args(arguments);
            let _signed = signed.arg(key.with_extension("pub")).output().succeeded();
        } else {
            let _signed = signed.succeeded();
        }
        let at_node = self.enter_node(&key);
        let at_proxy = self.enter_by_jump(&key);
        if is_taken {
            at_node.succeeded().printed("entered");
            assert!(at_proxy.stdout_text().starts_with("SSH-2.0-"), "{at_proxy}");
            return;
        }
        assert!(at_node.code == Some(255) && at_node.stdout.is_empty(), "the node took it: {at_node}");
        // Which login a user may use is the node's to say: the proxy's port takes any.
        if name != "for_another_principal" {
            assert!(
                at_proxy.code == Some(255) && at_proxy.stdout.is_empty(),
                "the proxy took it: {at_proxy}"
            );
        }
    }

    fn enter_node(&self, key: &Path) -> Output {
        let ssh = self.cluster.ssh(&self.cluster.identity(), 0);
        let text = std::fs::read_to_string(ssh.config()).unwrap();
        let lines = text.lines().map(|line| match line.trim().split(' ').next() {
            Some("IdentityFile") => format!("  IdentityFile {}", key.display()),
            Some("CertificateFile") => format!("  CertificateFile {}-cert.pub", key.display()),
            _ => line.to_owned(),
        });
        let config = lines.collect::<Vec<_>>().join("\n") + "\n";
        let config = self.cluster.scene.write("forge/config", config);
        let program = ssh.plain("ssh").arg("-F").arg(config).args(["-o", "BatchMode=yes"]);
        program.arg(ssh.target("root", "web-1")).arg("echo entered").output()
    }

    /// What the SSH port of the proxy says when asked for the node: its banner when it lets the asker in.
    fn enter_by_jump(&self, key: &Path) -> Output {
        let ssh = self.cluster.ssh(&self.cluster.identity(), 0);
        let address = self.cluster.proxies[0].file.ssh;
        let options = [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=no".to_owned(),
            "UserKnownHostsFile=/dev/null".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            format!("IdentityFile={}", key.display()),
            format!("CertificateFile={}-cert.pub", key.display()),
        ];
        let program = ssh.plain("ssh").args(["-F", "none", "-p", &address.port().to_string()]);
        let program = options.iter().fold(program, |program, option| program.arg("-o").arg(option));
        program
            .args(["-W", "web-1:22", &format!("root@{}", address.ip())])
            .input("SSH-2.0-probe\r\n")
            .output()
    }
}

fn is_database(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3"))
}
