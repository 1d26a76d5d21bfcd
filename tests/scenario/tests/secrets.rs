//! What the parts in between learn, and what lies on disk: nothing that is secret. A canary stands for each secret;
//! it is looked for on the wires, in the memory of the proxy, in every file, and (by the harness) in every log.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use wayleave_scenario::{
    Checks, Cluster, Daemon, Forwarder, Invitation, OneTimeCodes, Program, canary, command_line, free_port,
    holds_in_memory, is_canary_in, wait_until,
};

/// What somebody and something told Auth through the proxy.
struct Told {
    password: String,
    token_secret: String,
    invitation: String,
    used_codes: Vec<String>,
    to_proxy: Forwarder,
    to_auth: Forwarder,
}

#[test]
fn secrets() {
    let mut cluster = Cluster::builder("secrets").start_auth();
    let to_auth = Forwarder::start(cluster.auth_file.listen);
    let mut file = cluster.proxy_file("proxy-1");
    file.auth = to_auth.address();
    let web = cluster.add_proxy(file).file.web;
    wait_until("the proxy to be known", || cluster.known_proxies() == 1);
    let to_proxy = Forwarder::start(web);
    let told = tell(&mut cluster, to_proxy, to_auth);
    let mut checks = Checks::default();
    checks.run("o_a_recording_proxy_hears_no_token_password_or_code", || {
        o_a_recording_proxy_hears_nothing(&told)
    });
    checks.run("o_the_memory_of_a_proxy_holds_no_token_password_or_code", || {
        o_a_proxy_remembers_nothing(&cluster, &told)
    });
    checks.run("m_the_data_directories_hold_hashes_only", || {
        m_the_data_directories_hold_hashes_only(&cluster, &told)
    });
    checks.run("m_nobody_else_reads_the_data_directories", || {
        m_nobody_else_reads_the_data_directories(&cluster)
    });
    checks.run("m_no_command_line_holds_a_secret", || {
        cluster
            .daemons()
            .for_each(|daemon| assert_eq!(is_canary_in(command_line(daemon.pid()).as_bytes()), None));
    });
    checks.run("m_events_hold_no_secret", || m_events_hold_no_secret(&cluster));
    checks.run("o_a_lying_proxy_is_told_nothing", || o_a_lying_proxy_is_told_nothing(&cluster, &told));
    checks.end();
}

/// A user accepts an invitation and logs in, an agent joins, and somebody runs a command: all of it through wires
/// that record.
fn tell(cluster: &mut Cluster, to_proxy: Forwarder, to_auth: Forwarder) -> Told {
    let proxy = to_proxy.address().to_string();
    let added = ["users", "add", "pat", "--roles", "access", "--logins", "root", "--format", "json"];
    let added = cluster.admin().args(added).json();
    let invitation = Invitation::read(&added);
    let way = way_of(cluster, "pat");
    let show = way.clone().args(["invite", "show", &invitation.url, "--proxy", &proxy, "--format", "json"]);
    let mut codes = OneTimeCodes::from_uri(show.json()["totp_uri"].as_str().unwrap());
    let password = canary("password");
    let used_codes = vec![codes.next_code(), codes.next_code()];
    let accept =
        way.clone().args(["invite", "accept", &invitation.url, "--proxy", &proxy, "--password-stdin"]);
    let _done = accept.args(["--totp", &used_codes[0]]).input(format!("{password}\n")).output().succeeded();
    let login = way.clone().args(["login", "--proxy", &proxy, "--user", "pat", "--password-stdin"]);
    let _done = login.args(["--totp", &used_codes[1]]).input(format!("{password}\n")).output().succeeded();
    let token = cluster.add_token("node", "10m");
    let mut file = cluster.node_file("web-1");
    file.way = wayleave_scenario::Way::Proxy(to_proxy.address());
    file.token.clone_from(&token);
    cluster.add_node(file);
    wait_until("the agent to be reached", || {
        way.clone().args(["ssh", "root@web-1", "echo in"]).output().stdout_text() == "in\n"
    });
    let token_secret = token.rsplit('.').next().unwrap().to_owned();
    let invitation = added["token"].as_str().unwrap().to_owned();
    Told { password, token_secret, invitation, used_codes, to_proxy, to_auth }
}

fn way_of(cluster: &Cluster, name: &str) -> Program {
    cluster.scene.way().env("WAY_HOME", cluster.scene.path(&format!("home-{name}")))
}

impl Told {
    fn secrets(&self) -> [&str; 3] {
        [&self.password, &self.token_secret, &self.invitation]
    }
}

fn is_in(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

fn o_a_recording_proxy_hears_nothing(told: &Told) {
    for (name, wire) in [("to the proxy", &told.to_proxy), ("to Auth", &told.to_auth)] {
        let recorded = wire.recorded();
        assert!(recorded.len() > 10_000, "{name}: {} bytes were recorded", recorded.len());
        assert_eq!(is_canary_in(&recorded), None, "{name}");
        assert!(!told.used_codes.iter().any(|code| is_in(&recorded, code)), "{name}: a one-time code");
    }
}

/// What a proxy could tell is what it holds: its whole memory is searched. Of the codes, six digits are found by
/// chance, so they are left to the wires.
fn o_a_proxy_remembers_nothing(cluster: &Cluster, told: &Told) {
    let proxy = cluster.proxies[0].daemon.pid();
    assert!(holds_in_memory(proxy, b"web-1"), "the memory of the proxy cannot be searched");
    for secret in told.secrets() {
        assert!(!holds_in_memory(proxy, secret.as_bytes()), "a secret is in the memory of the proxy");
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn data_directories(cluster: &Cluster) -> Vec<PathBuf> {
    let mut directories = vec![cluster.auth_file.data_dir.clone()];
    directories.extend(cluster.proxies.iter().map(|proxy| proxy.file.data_dir.clone()));
    directories.extend(cluster.nodes.iter().map(|node| node.file.data_dir.clone()));
    directories
}

fn m_the_data_directories_hold_hashes_only(cluster: &Cluster, told: &Told) {
    for directory in data_directories(cluster) {
        for file in files_below(&directory).into_iter().filter(|path| path.is_file()) {
            let bytes = fs::read(&file).unwrap();
            assert!(
                !told.secrets().iter().any(|secret| is_in(&bytes, secret)),
                "a secret is in {}",
                file.display()
            );
        }
    }
}

fn m_nobody_else_reads_the_data_directories(cluster: &Cluster) {
    for directory in data_directories(cluster) {
        for path in files_below(&directory) {
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
    }
}

fn m_events_hold_no_secret(cluster: &Cluster) {
    let database = files_below(&cluster.auth_file.data_dir)
        .into_iter()
        .find(|path| path.is_file() && fs::read(path).unwrap().starts_with(b"SQLite format 3"))
        .unwrap();
    let query = "select key, cast(value as text) from log";
    let text =
        cluster.scene.program("sqlite3").arg("-readonly").arg(database).arg(query).output().succeeded();
    assert!(
        text.stdout_text().contains("user.login") || text.stdout_text().contains("login"),
        "no event of the login"
    );
    assert_eq!(is_canary_in(&text.stdout), None);
}

/// Another cluster answers at the address that somebody took for his proxy's.
fn o_a_lying_proxy_is_told_nothing(cluster: &Cluster, told: &Told) {
    let (mut auth, mut proxy, web) = start_liar(cluster);
    let wire = Forwarder::start(web);
    let liar = wire.address().to_string();
    let pin = cluster.pins.join(",");
    let secret = canary("for-the-liar");
    let login =
        way_of(cluster, "stranger").args(["login", "--proxy", &liar, "--user", "pat", "--ca-pin", &pin]);
    let login = login.args(["--password-stdin", "--totp", "123456"]).input(format!("{secret}\n"));
    let _refused = login.output().ended_with(3).complaining("--ca-pin");
    // Whoever logged in before needs no pin to notice: 127.0.0.1 is known as the proxy of another cluster.
    let login = way_of(cluster, "pat").args(["login", "--proxy", &liar, "--user", "pat", "--password-stdin"]);
    let login = login.args(["--totp", "123456"]).input(format!("{}\n", told.password));
    let _refused = login.output().ended_with(3);
    cluster
        .admin()
        .args(["users", "add", "alice", "--roles", "access", "--logins", "root"])
        .output()
        .succeeded()
        .stdout_text();
    let identity = cluster.sign("alice", "1h");
    let way = || cluster.scene.way().arg("-i").arg(&identity).args(["--proxy", &liar]);
    for arguments in [&["ls"][..], &["proxy", "ssh", "root@web-1:22"]] {
        let refused = way().args(arguments).output().failed();
        assert!(refused.code == Some(3) || refused.code == Some(5), "{refused}");
    }
    assert_eq!(is_canary_in(&wire.recorded()), None);
    assert_eq!(proxy.stop(), Some(0));
    assert_eq!(auth.stop(), Some(0));
}

fn start_liar(cluster: &Cluster) -> (Daemon, Daemon, std::net::SocketAddr) {
    let secret = canary("liar-token");
    let mut file = cluster.auth_file.clone();
    file.data_dir = cluster.scene.path("liar-auth");
    file.listen = free_port();
    file.tokens = vec![format!("proxy:{secret}")];
    let config = cluster.scene.write("liar-auth.yaml", file.text());
    let mut auth = cluster.scene.daemon("liar-auth", &config);
    auth.start();
    let status = cluster.scene.way().arg("-c").arg(&config).args(["status", "--format", "json"]);
    wait_until("the liar's Auth", || status.clone().output().code == Some(0));
    let pins = status.json()["ca_pins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pin| pin.as_str().unwrap().to_owned())
        .collect();
    let mut proxy_file = cluster.proxy_file("liar");
    proxy_file.auth = file.listen;
    proxy_file.token = secret;
    proxy_file.pins = pins;
    let web = proxy_file.web;
    let config = cluster.scene.write("liar.yaml", proxy_file.text());
    let mut proxy = cluster.scene.daemon("liar", &config);
    proxy.start();
    wait_until("the liar", || std::net::TcpStream::connect(web).is_ok());
    (auth, proxy, web)
}
