//! Machines with nothing installed but OpenSSH: published by a stock `ssh -R`, entered through every proxy.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wayleave_scenario::{
    Checks, Cluster, EchoServer, Program, Running, check_all, free_port, note_canary, wait_until,
    wait_until_within,
};

const SSHD: &str = "/usr/sbin/sshd";
/// The proxy to which machines connect, and the other one.
const HOME: usize = 1;
const OTHER: usize = 0;
/// Longer than anything takes to end.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn machines_without_an_agent() {
    let mut cluster = Cluster::builder("agentless").start();
    let tunnel = free_port();
    let mut home = cluster.proxy_file("proxy-2");
    home.lines = vec![format!("tunnel_listen_addr: {tunnel}"), format!("tunnel_public_addr: {tunnel}")];
    let _proxy = cluster.add_proxy(home);
    wait_until("the port for publishing to listen", || is_listening(tunnel.port()));
    wait_until("both proxies to be known", || cluster.known_proxies() == 2);
    let world = World { cluster, tunnel };
    let mut checks = Checks::default();
    check_all!(checks, &world; a_machine_is_entered_through_every_proxy_and_gone_with_its_connection);
    let expiring = Expiring::begin(&world);
    check_all!(checks, &world;
        files_and_forwards_pass,
        a_tcp_application_is_reached_by_its_label,
        c_a_publisher_forwards_what_its_token_lists_and_nothing_else,
        d_a_publisher_without_a_token_that_counts_is_refused,
        d_who_may_not_enter_a_machine_does_not,
        j_a_forward_through_a_machine_ends_with_the_right_to_forward,
        j_a_lock_on_a_user_a_role_or_a_login_ends_what_runs_through_a_machine,
        j_a_lock_on_a_machine_ends_what_runs_through_it_and_keeps_it_out,
        j_a_role_that_is_taken_from_a_user_ends_what_runs_through_a_machine,
        j_silence_ends_a_session_on_a_machine,
        k_a_lock_on_one_user_leaves_another_on_the_same_machine_alone,
        k_a_name_is_held_by_one_publisher,
        k_a_changed_host_key_waits_for_an_administrator,
        removing_the_token_cuts_the_machine,
        a_machine_that_does_not_trust_the_cluster_says_so,
    );
    checks.run("j_a_certificate_that_runs_out_ends_what_runs_through_a_machine", || {
        j_a_certificate_that_runs_out_ends_what_runs_through_a_machine(&world, expiring);
    });
    checks.end();
}

struct World {
    cluster: Cluster,
    tunnel: SocketAddr,
}

/// A token as `way tokens add` printed it, in files.
struct Token {
    name: String,
    directory: PathBuf,
}

/// An sshd of its own, on a port of its own.
struct Sshd {
    port: u16,
    _running: Running,
}

impl World {
    fn add_token(&self, name: &str, names: &str, ports: &str, more: &[&str]) -> Token {
        let json = self
            .cluster
            .admin()
            .args(["tokens", "add", "--type", "openssh", "--name", name, "--names", names, "--ports", ports])
            .args(["--tunnel-addr", &self.tunnel.to_string(), "--format", "json"])
            .args(more)
            .json();
        let key = json["private_key"].as_str().unwrap();
        note_canary(key.lines().nth(2).unwrap());
        let write =
            |file: &str, text: &str| self.cluster.scene.write(&format!("{name}/{file}"), format!("{text}\n"));
        write("key", key.trim_end());
        write("key-cert.pub", json["certificate"].as_str().unwrap());
        write("known_hosts", &lines(&json["known_hosts"]));
        write("user_ca.pub", &lines(&json["trusted_user_ca_keys"]));
        Token { name: name.into(), directory: self.cluster.scene.path(name) }
    }

    /// Stock ssh to the port for publishing, with a token and nothing else.
    fn publisher(&self, token: &Token) -> Program {
        let known = token.directory.join("known_hosts");
        self.holder(token, self.tunnel.port()).args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            &format!("UserKnownHostsFile={}", known.display()),
        ])
    }

    /// Stock ssh to any port of a proxy, with a token and nothing else.
    fn holder(&self, token: &Token, port: u16) -> Program {
        let file = |name: &str| token.directory.join(name).display().to_string();
        self.cluster
            .scene
            .program("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", &file("key")])
            .args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"])
            .args(["-p", &port.to_string()])
    }

    fn target(&self) -> String {
        format!("publish@{}", self.tunnel.ip())
    }

    /// Publishes ports and waits until they are listed.
    fn publish(&self, token: &Token, name: &str, ports: &[(u16, u16)]) -> Running {
        let mut program = self.publisher(token).arg("-N");
        for (port, local) in ports {
            program = program.args(["-R", &format!("{name}:{port}:localhost:{local}")]);
        }
        let mut running = program.arg(self.target()).start();
        wait_until(&format!("{name} to be published"), || {
            assert!(!running.is_ended(), "{}", running.wait());
            self.listed(name).is_some_and(|node| ports.iter().all(|(port, _)| offers(&node, *port)))
        });
        running
    }

    /// Publishing that is refused, with a part of the reason.
    fn refused(&self, token: &Token, forwards: &[&str], part: &str) {
        let mut program = self.publisher(token).arg("-N");
        for forward in forwards {
            program = program.args(["-R", forward]);
        }
        let output = program.arg(self.target()).output().failed();
        assert!(output.stderr_text().contains(part), "{part} in {output}");
    }

    fn listed(&self, name: &str) -> Option<Value> {
        self.cluster.list().into_iter().find(|node| node["name"] == name)
    }

    fn wait_gone(&self, name: &str) {
        wait_until(&format!("{name} to be gone"), || self.listed(name).is_none());
    }

    fn sshd(&self, name: &str, token: Option<&Token>) -> Sshd {
        let scene = &self.cluster.scene;
        // sshd wants its privilege separation directory, which its service script makes.
        let _ = std::fs::create_dir_all("/run/sshd");
        let key = scene.path(&format!("{name}.host_key"));
        let _made =
            scene.program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).stdout();
        let port = free_port().port();
        let mut config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nAuthorizedKeysFile none\nSubsystem sftp internal-sftp\n",
            key.display()
        );
        if let Some(token) = token {
            config += &format!("TrustedUserCAKeys {}\n", token.directory.join("user_ca.pub").display());
        }
        let config = scene.write(&format!("{name}.sshd_config"), config);
        let running = scene.program(SSHD).args(["-D", "-e", "-f"]).arg(config).start();
        wait_until("sshd to listen", || is_listening(port));
        Sshd { port, _running: running }
    }

    fn way_ssh(&self, proxy: usize, target: &str, command: &[&str]) -> Program {
        self.cluster.way(&self.cluster.identity(), proxy).args(["ssh", target]).args(command)
    }
}

fn is_listening(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn echoes(port: u16) -> bool {
    EchoServer::is_behind(([127, 0, 0, 1], port).into())
}

fn lines(array: &Value) -> String {
    array.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

fn offers(node: &Value, port: u16) -> bool {
    let is_tcp = node["tcp_ports"].as_array().unwrap().iter().any(|own| own == port);
    is_tcp || (port == 22 && node["ssh"] == true)
}

fn a_machine_is_entered_through_every_proxy_and_gone_with_its_connection(world: &World) {
    let token = world.add_token("enter", "m-1", "22", &["--labels", "env=lab"]);
    let sshd = world.sshd("m-1", Some(&token));
    let mut publishing = world.publish(&token, "m-1", &[(22, sshd.port)]);
    let node = world.listed("m-1").unwrap();
    assert_eq!((&node["enforced_by"], &node["labels"]["env"]), (&"proxy".into(), &"lab".into()));
    for proxy in [HOME, OTHER] {
        let output =
            world.way_ssh(proxy, "root@m-1", &["echo out; echo err >&2; exit 7"]).output().ended_with(7);
        assert_eq!((output.stdout_text(), output.stderr_text()), ("out\n".into(), "err\n".into()));
        let stock = world.cluster.ssh(&world.cluster.identity(), proxy);
        stock.run("m-1", &[], "echo stock; exit 3").output().ended_with(3).printed("stock");
        let _terminal = stock.run("m-1", &["-tt"], "tty; stty size").output().succeeded();
        world.way_ssh(proxy, "root@m-1", &["cat"]).input("through\n").output().succeeded().printed("through");
    }
    publishing.signal(nix::sys::signal::Signal::SIGTERM);
    let _ended = publishing.wait();
    world.wait_gone("m-1");
    let output = world.way_ssh(OTHER, "root@m-1", &["true"]).output().failed();
    assert!(!output.stderr_text().is_empty(), "{output}");
    // It comes back under the same name, with the same key.
    let again = world.publish(&token, "m-1", &[(22, sshd.port)]);
    world.way_ssh(OTHER, "root@m-1", &["echo", "again"]).output().succeeded().printed("again");
    drop(again);
    world.wait_gone("m-1");
}

fn files_and_forwards_pass(world: &World) {
    let token = world.add_token("files", "m-2", "22", &[]);
    let sshd = world.sshd("m-2", Some(&token));
    let _publishing = world.publish(&token, "m-2", &[(22, sshd.port)]);
    let scene = &world.cluster.scene;
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (sent, received) = (scene.write("agentless.sent", &content), scene.path("agentless.received"));
    let stock = world.cluster.ssh(&world.cluster.identity(), OTHER);
    for flags in [&[][..], &["-O"]] {
        let _ = std::fs::remove_file(&received);
        let remote = format!("{}:{}", stock.target("root", "m-2"), received.display());
        let _done = stock.program("scp").args(flags).arg(&sent).arg(remote).output().succeeded();
        assert!(std::fs::read(&received).unwrap() == content);
    }
    let echo = EchoServer::start();
    let mut client =
        stock.program("ssh").args(["-W", &echo.address().to_string(), &stock.target("root", "m-2")]).start();
    client.write("forwarded\n");
    client.wait_for_stdout("forwarded\n");
    drop(client);
    let port = free_port().port();
    let remote = format!("{port}:{}", echo.address());
    let forwarding = stock
        .program("ssh")
        .args(["-N", "-o", "ExitOnForwardFailure=yes", "-R", &remote, &stock.target("root", "m-2")])
        .start();
    wait_until("the remote port to listen", || is_listening(port));
    assert!(echoes(port));
    drop(forwarding);
}

fn a_tcp_application_is_reached_by_its_label(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("app", "m-3", "7000", &["--labels", "app=echo"]);
    let _publishing = world.publish(&token, "m-3", &[(7000, echo.address().port())]);
    let node = world.listed("m-3").unwrap();
    assert_eq!((&node["ssh"], node["logins"].as_array().unwrap().len()), (&false.into(), 0));
    for proxy in [HOME, OTHER] {
        let port = free_port().port();
        let way = world.cluster.way(&world.cluster.identity(), proxy);
        let forwarding = way.args(["proxy", "app", "m-3", "--port", &port.to_string()]).start();
        wait_until("the port to listen", || is_listening(port));
        assert!(echoes(port));
        drop(forwarding);
    }
    // Nodes he may enter, applications not.
    let role = "kind: role\nversion: v8\nmetadata: {name: no-apps}\nspec:\n  allow: {logins: [root], node_labels: {'*': '*'}}\n";
    let _created = world.cluster.create(role).succeeded();
    world.cluster.add_user("bob", "no-apps", "root");
    let bob = world.cluster.sign("bob", "1h");
    let output = world
        .cluster
        .way(&bob, OTHER)
        .args(["proxy", "app", "m-3", "--target-port", "7000", "--port", "0"])
        .output()
        .failed();
    assert!(output.stderr_text().contains("access denied"), "{output}");
    let output = world.way_ssh(HOME, "root@m-3", &["true"]).output().failed();
    assert!(output.stderr_text().contains("does not offer"), "{output}");
}

fn c_a_publisher_forwards_what_its_token_lists_and_nothing_else(world: &World) {
    let token = world.add_token("limits", "m-4,m-5", "22,7000", &[]);
    for forward in ["m-9:22:localhost:1", "m-4:23:localhost:1", "22:localhost:1", "*:7000:localhost:1"] {
        world.refused(&token, &[forward], "is not what this token is for");
    }
    // What is published is not published when something else was asked for as well.
    let echo = EchoServer::start();
    let local = format!("m-4:7000:localhost:{}", echo.address().port());
    world.refused(&token, &[&local, "m-9:7000:localhost:1"], "is not what this token is for");
    world.wait_gone("m-4");
    let ssh = |arguments: &[&str]| world.publisher(&token).args(arguments).output().failed();
    let target = world.target();
    for arguments in
        [&["-T", &target][..], &["-tt", &target], &["-T", &target, "id"], &["-s", &target, "sftp"]]
    {
        let output = ssh(arguments);
        assert!(output.stdout.is_empty(), "{output}");
    }
    for wanted in [echo.address().to_string(), "m-4:22".to_owned(), "localhost:22".to_owned()] {
        let output = ssh(&["-W", &wanted, &target]);
        assert!(output.stdout.is_empty() && output.stderr_text().contains("publishing machines"), "{output}");
    }
    let socket = world.cluster.scene.path("publish.sock");
    let output = ssh(&["-N", "-R", &format!("{}:localhost:1", socket.display()), &target]);
    assert!(!socket.exists(), "{output}");
}

fn d_a_publisher_without_a_token_that_counts_is_refused(world: &World) {
    let token = world.add_token("brief", "m-6", "7000", &["--ttl", "2s"]);
    wait_until("the token to expire", || {
        let output = world.publisher(&token).args(["-W", "x:1", &world.target()]).output().failed();
        output.stderr_text().contains("Permission denied")
    });
    world.refused(&token, &["m-6:7000:localhost:1"], "Permission denied");
    // A user's certificate, a bare key, and a certificate over another key.
    let user = world.cluster.ssh(&world.cluster.identity(), HOME);
    let keys = world.cluster.scene.path("alice.id.ssh");
    let good = world.add_token("other-key", "m-6", "7000", &[]);
    std::fs::copy(keys.join("key"), good.directory.join("key")).unwrap();
    world.refused(&good, &["m-6:7000:localhost:1"], "Permission denied");
    std::fs::copy(keys.join("key-cert.pub"), good.directory.join("key-cert.pub")).unwrap();
    world.refused(&good, &["m-6:7000:localhost:1"], "Permission denied");
    drop(user);
    // What publishes enters nothing: not the port for jumps, and no node.
    let publisher = world.add_token("no-user", "m-6", "7000", &[]);
    let jump = world.cluster.proxies[HOME].file.ssh.port();
    let output = world
        .holder(&publisher, jump)
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-W", "m-1:22", &world.target()])
        .output()
        .failed();
    assert!(output.stderr_text().contains("Permission denied"), "{output}");
}

fn d_who_may_not_enter_a_machine_does_not(world: &World) {
    let token = world.add_token("guarded", "m-7", "22", &["--labels", "env=guarded"]);
    let sshd = world.sshd("m-7", Some(&token));
    let _publishing = world.publish(&token, "m-7", &[(22, sshd.port)]);
    let role = "kind: role\nversion: v8\nmetadata: {name: lab-only}\nspec:\n  allow: {logins: [root], node_labels: {env: lab}}\n";
    let _created = world.cluster.create(role).succeeded();
    world.cluster.add_user("carol", "lab-only", "root");
    let carol = world.cluster.sign("carol", "1h");
    for proxy in [HOME, OTHER] {
        let output = world.cluster.way(&carol, proxy).args(["ssh", "root@m-7", "id"]).output().failed();
        assert!(output.stdout.is_empty() && output.stderr_text().contains("access denied"), "{output}");
    }
    // A login that his certificate does not name.
    let output = world.way_ssh(HOME, "daemon@m-7", &["id"]).output().failed();
    assert!(output.stdout.is_empty() && output.stderr_text().contains("denied"), "{output}");
    // The certificates that users have do not open the machine's own sshd.
    let stock = world.cluster.ssh(&world.cluster.identity(), HOME);
    let keys = world.cluster.scene.path("alice.id.ssh");
    let output = stock
        .plain("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-i"])
        .arg(keys.join("key"))
        .args(["-o", "UserKnownHostsFile=/dev/null", "-p", &sshd.port.to_string(), "root@127.0.0.1", "id"])
        .output()
        .failed();
    assert!(output.stdout.is_empty() && output.stderr_text().contains("denied"), "{output}");
}

fn j_a_forward_through_a_machine_ends_with_the_right_to_forward(world: &World) {
    let token = world.add_token("revoked", "m-9", "22", &[]);
    let sshd = world.sshd("m-9", Some(&token));
    let _publishing = world.publish(&token, "m-9", &[(22, sshd.port)]);
    let role = |may: &str| {
        format!(
            "kind: role\nversion: v8\nmetadata: {{name: forwarder}}\nspec:\n  options: {{port_forwarding: {may}}}\n  \
             allow: {{logins: [root], node_labels: {{'*': '*'}}}}\n"
        )
    };
    let _created = world.cluster.create(&role("yes")).succeeded();
    world.cluster.add_user("dora", "forwarder", "root");
    let stock = world.cluster.ssh(&world.cluster.sign("dora", "1h"), OTHER);
    let echo = EchoServer::start();
    let port = free_port().port();
    let remote = format!("{port}:{}", echo.address());
    let _forwarding = stock
        .program("ssh")
        .args(["-N", "-o", "ExitOnForwardFailure=yes", "-R", &remote, &stock.target("root", "m-9")])
        .start();
    wait_until("the remote port to listen", || is_listening(port));
    assert!(echoes(port));

    let _changed = world.cluster.create(&role("no")).succeeded();

    wait_until("connections to the port to be refused", || !echoes(port));
    assert!(is_listening(port), "the connection itself is still allowed");
}

/// All that a user can have running through a machine: a session with a forward by stock ssh, and a port of it.
struct Visit {
    session: Running,
    remote: u16,
    _forwarding: Running,
    local: u16,
    app: TcpStream,
}

impl Visit {
    /// The session goes through one proxy, the port through the other.
    fn begin(world: &World, identity: &Path, machine: &str, echo: &EchoServer) -> Self {
        let (remote, local) = (free_port().port(), free_port().port());
        let forward = format!("{remote}:{}", echo.address());
        let stock = world.cluster.ssh(identity, OTHER);
        let mut session = stock.run(machine, &["-R", &forward], "echo begun; cat").start();
        session.wait_for_stdout("begun");
        let way = world.cluster.way(identity, HOME);
        let ports = ["--target-port", "7000", "--port", &local.to_string()];
        let forwarding = way.args(["proxy", "app", machine]).args(ports).start();
        wait_until("both ports to lead to the echo", || echoes(remote) && echoes(local));
        let app = TcpStream::connect(("127.0.0.1", local)).unwrap();
        app.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut visit = Self { session, remote, _forwarding: forwarding, local, app };
        visit.check_goes_on();
        visit
    }

    #[track_caller]
    fn check_goes_on(&mut self) {
        assert!(!self.session.is_ended(), "{}", self.session.stderr_so_far());
        self.session.write("typed\n");
        self.session.wait_for_stdout("typed");
        assert!(echoes(self.remote) && echoes(self.local));
        self.check_app_goes_on();
    }

    #[track_caller]
    fn check_app_goes_on(&mut self) {
        let mut byte = [0];
        self.app.write_all(b"x").unwrap();
        self.app.read_exact(&mut byte).unwrap();
    }

    /// The session and its forward end.
    #[track_caller]
    fn check_session_ends(&mut self) {
        let output = self.session.wait_end(PATIENCE).expect("the session ends");
        assert_eq!(output.code, Some(255), "{output}");
        wait_until("its forward to be gone", || !is_listening(self.remote));
    }

    /// So does what is open to the port, and nothing new reaches it.
    #[track_caller]
    fn check_app_ends(&mut self) {
        let ended = self.app.read(&mut [0]);
        let is_over = match &ended {
            Ok(count) => *count == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        assert!(is_over, "{ended:?}");
        assert!(!echoes(self.local));
    }
}

/// A user whose role has his name and lets him do everything on every machine.
fn visitor(world: &World, name: &str, options: &str) -> PathBuf {
    let role = format!(
        "kind: role\nversion: v8\nmetadata: {{name: {name}}}\nspec:\n  options: {{{options}}}\n  \
         allow: {{logins: [root], node_labels: {{'*': '*'}}, app_labels: {{'*': '*'}}}}\n"
    );
    let _created = world.cluster.create(&role).succeeded();
    world.cluster.add_user(name, name, "root");
    world.cluster.sign(name, "1h")
}

fn wait_may_enter(world: &World, identity: &Path, machine: &str) {
    let way = world.cluster.way(identity, OTHER);
    wait_until("the machine to be entered", || {
        way.clone().args(["ssh", &format!("root@{machine}"), "true"]).output().code == Some(0)
    });
}

fn check_may_not_enter(world: &World, identity: &Path, machine: &str) {
    for proxy in [HOME, OTHER] {
        let way = world.cluster.way(identity, proxy);
        let output = way.args(["ssh", &format!("root@{machine}"), "id"]).output().failed();
        assert!(output.stdout.is_empty(), "{output}");
    }
}

/// Sets a lock and gives its name.
fn lock(world: &World, target: [&str; 2]) -> String {
    let locks = || world.cluster.admin().args(["locks", "ls", "--format", "json"]).json();
    let names = |locks: Value| -> Vec<String> {
        locks.as_array().unwrap().iter().map(|lock| lock["name"].as_str().unwrap().to_owned()).collect()
    };
    let before = names(locks());
    let _set = world.cluster.admin().args(["locks", "add"]).args(target).output().succeeded();
    names(locks()).into_iter().find(|name| !before.contains(name)).unwrap()
}

fn unlock(world: &World, lock: &str) {
    let _removed = world.cluster.admin().args(["locks", "rm", lock]).output().succeeded();
}

fn j_a_lock_on_a_user_a_role_or_a_login_ends_what_runs_through_a_machine(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("visited", "m-13", "22,7000", &[]);
    let sshd = world.sshd("m-13", Some(&token));
    let _publishing = world.publish(&token, "m-13", &[(22, sshd.port), (7000, echo.address().port())]);
    let identity = visitor(world, "eve", "");
    for target in [["--user", "eve"], ["--role", "eve"], ["--login", "root"]] {
        wait_may_enter(world, &identity, "m-13");
        let mut visit = Visit::begin(world, &identity, "m-13", &echo);

        let lock = lock(world, target);

        visit.check_session_ends();
        // Nobody logs in on a port.
        if target[0] == "--login" {
            visit.check_app_goes_on()
        } else {
            visit.check_app_ends()
        }
        check_may_not_enter(world, &identity, "m-13");
        assert!(world.listed("m-13").is_some(), "the machine itself stays");
        unlock(world, &lock);
    }
}

fn j_a_lock_on_a_machine_ends_what_runs_through_it_and_keeps_it_out(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("stolen", "m-14", "22,7000", &[]);
    let sshd = world.sshd("m-14", Some(&token));
    let ports = [(22, sshd.port), (7000, echo.address().port())];
    let mut publishing = world.publish(&token, "m-14", &ports);
    let identity = visitor(world, "frank", "");
    wait_may_enter(world, &identity, "m-14");
    let mut visit = Visit::begin(world, &identity, "m-14", &echo);

    let lock = lock(world, ["--node", "m-14"]);

    visit.check_session_ends();
    visit.check_app_ends();
    let output = publishing.wait_end(PATIENCE).expect("the machine is cut").failed();
    assert!(output.stderr_text().contains("locked"), "{output}");
    check_may_not_enter(world, &identity, "m-14");
    let ssh = format!("m-14:22:localhost:{}", sshd.port);
    world.refused(&token, &[&ssh], "locked");
    // Another token for the name, or another port of it, is no way around.
    let other = world.add_token("stolen-again", "m-14", "7000", &[]);
    world.refused(&other, &[&format!("m-14:7000:localhost:{}", echo.address().port())], "locked");
    unlock(world, &lock);
    let _publishing = world.publish(&token, "m-14", &ports);
    wait_may_enter(world, &identity, "m-14");
}

fn j_a_role_that_is_taken_from_a_user_ends_what_runs_through_a_machine(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("demoting", "m-15", "22,7000", &[]);
    let sshd = world.sshd("m-15", Some(&token));
    let _publishing = world.publish(&token, "m-15", &[(22, sshd.port), (7000, echo.address().port())]);
    let identity = visitor(world, "grace", "");
    let _spare = visitor(world, "spare", "");
    wait_may_enter(world, &identity, "m-15");
    let mut visit = Visit::begin(world, &identity, "m-15", &echo);

    let demoted = "kind: user\nversion: v2\nmetadata: {name: grace}\nspec: {roles: [spare], traits: {logins: [root]}}\n";
    let _written = world.cluster.create(demoted).succeeded();

    visit.check_session_ends();
    visit.check_app_ends();
    check_may_not_enter(world, &identity, "m-15");
}

/// A visit whose certificate runs out in a minute, the shortest life that there is; other checks fill it.
struct Expiring {
    begin: Instant,
    identity: PathBuf,
    visit: Visit,
    _publishing: Running,
    _sshd: Sshd,
    _echo: EchoServer,
}

impl Expiring {
    fn begin(world: &World) -> Self {
        let echo = EchoServer::start();
        let token = world.add_token("expiring", "m-18", "22,7000", &[]);
        let sshd = world.sshd("m-18", Some(&token));
        let publishing = world.publish(&token, "m-18", &[(22, sshd.port), (7000, echo.address().port())]);
        let identity = visitor(world, "kate", "disconnect_expired_cert: true");
        wait_may_enter(world, &identity, "m-18");
        let begin = Instant::now();
        let identity = world.cluster.sign("kate", "1m");
        let visit = Visit::begin(world, &identity, "m-18", &echo);
        Self { begin, identity, visit, _publishing: publishing, _sshd: sshd, _echo: echo }
    }
}

fn j_a_certificate_that_runs_out_ends_what_runs_through_a_machine(world: &World, mut expiring: Expiring) {
    wait_until_within(Duration::from_secs(90), "the session to end", || expiring.visit.session.is_ended());
    assert!(expiring.begin.elapsed() > Duration::from_secs(55), "{:?}", expiring.begin.elapsed());
    expiring.visit.check_session_ends();
    expiring.visit.check_app_ends();
    check_may_not_enter(world, &expiring.identity, "m-18");
}

fn j_silence_ends_a_session_on_a_machine(world: &World) {
    let token = world.add_token("silent", "m-16", "22", &[]);
    let sshd = world.sshd("m-16", Some(&token));
    let _publishing = world.publish(&token, "m-16", &[(22, sshd.port)]);
    let identity = visitor(world, "heidi", "client_idle_timeout: 2s");
    wait_may_enter(world, &identity, "m-16");
    let stock = world.cluster.ssh(&identity, OTHER);
    // It ends with its input: the sshd of such a machine ends nothing else.
    let mut session = stock.run("m-16", &[], "echo begun; exec cat").start();
    session.wait_for_stdout("begun");
    let output = session.wait_end(PATIENCE).expect("it ends");
    assert!(output.code == Some(255) && output.stderr_text().contains("silent"), "{output}");
}

fn k_a_lock_on_one_user_leaves_another_on_the_same_machine_alone(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("shared", "m-17", "22,7000", &[]);
    let sshd = world.sshd("m-17", Some(&token));
    let _publishing = world.publish(&token, "m-17", &[(22, sshd.port), (7000, echo.address().port())]);
    let (one, two) = (visitor(world, "ivan", ""), visitor(world, "judy", ""));
    wait_may_enter(world, &one, "m-17");
    wait_may_enter(world, &two, "m-17");
    let mut ivan = Visit::begin(world, &one, "m-17", &echo);
    let mut judy = Visit::begin(world, &two, "m-17", &echo);

    let lock = lock(world, ["--user", "ivan"]);

    ivan.check_session_ends();
    ivan.check_app_ends();
    check_may_not_enter(world, &one, "m-17");
    judy.check_goes_on();
    wait_may_enter(world, &two, "m-17");
    unlock(world, &lock);
}

fn k_a_name_is_held_by_one_publisher(world: &World) {
    let echo = EchoServer::start();
    let (one, two) = (world.add_token("one", "m-8", "7000", &[]), world.add_token("two", "m-8", "7000", &[]));
    let local = format!("m-8:7000:localhost:{}", echo.address().port());
    let first = world.publish(&one, "m-8", &[(7000, echo.address().port())]);
    world.refused(&two, &[&local], "published by another connection");
    world.refused(&one, &[&local], "published by another connection");
    world.refused(&two, &[&local.replace("m-8", "M-8")], "published by another connection");
    drop(first);
    world.wait_gone("m-8");
    let second = world.publish(&two, "m-8", &[(7000, echo.address().port())]);
    drop(second);
    world.wait_gone("m-8");
    // The name of a proxy.
    let proxy = world.add_token("proxy-name", "127.0.0.1", "7000", &[]);
    world.refused(&proxy, &["127.0.0.1:7000:localhost:1"], "is the name of a proxy");
}

fn k_a_changed_host_key_waits_for_an_administrator(world: &World) {
    let token = world.add_token("pinned", "m-10", "22", &[]);
    let (first, second) = (world.sshd("m-10a", Some(&token)), world.sshd("m-10b", Some(&token)));
    let publishing = world.publish(&token, "m-10", &[(22, first.port)]);
    drop(publishing);
    world.wait_gone("m-10");
    let other = format!("m-10:22:localhost:{}", second.port);
    world.refused(&token, &[&other], "the host key of m-10 has changed");
    let _forgotten = world.cluster.admin().args(["tokens", "forget-host-key", "m-10"]).output().succeeded();
    let publishing = world.publish(&token, "m-10", &[(22, second.port)]);
    world.way_ssh(OTHER, "root@m-10", &["echo", "entered"]).output().succeeded().printed("entered");
    drop(publishing);
    world.wait_gone("m-10");
    // Nothing answers behind the port.
    world.refused(&token, &[&format!("m-10:22:localhost:{}", free_port().port())], "no sshd answers");
}

fn removing_the_token_cuts_the_machine(world: &World) {
    let echo = EchoServer::start();
    let token = world.add_token("removed", "m-11", "7000", &[]);
    let mut publishing = world.publish(&token, "m-11", &[(7000, echo.address().port())]);
    let _removed = world.cluster.admin().args(["tokens", "rm", &token.name]).output().succeeded();
    let output = publishing.wait().failed();
    assert!(output.stderr_text().contains("removed from the cluster"), "{output}");
    world.wait_gone("m-11");
    world.refused(&token, &["m-11:7000:localhost:1"], "there is no token removed");
}

fn a_machine_that_does_not_trust_the_cluster_says_so(world: &World) {
    let token = world.add_token("untrusting", "m-12", "22", &[]);
    let sshd = world.sshd("m-12", None);
    let publishing = world.publish(&token, "m-12", &[(22, sshd.port)]);
    let output = world.way_ssh(OTHER, "root@m-12", &["true"]).output().failed();
    assert!(output.stderr_text().contains("TrustedUserCAKeys"), "{output}");
    drop(publishing);
    world.wait_gone("m-12");
    // Offered as TCP only, its own SSH is reached end to end.
    let plain = world.add_token("plain", "m-12", "22", &["--tcp-only"]);
    let publishing = world.publish(&plain, "m-12", &[(22, sshd.port)]);
    assert_eq!(world.listed("m-12").unwrap()["ssh"], false);
    let port = free_port().port();
    let way = world.cluster.way(&world.cluster.identity(), OTHER);
    let forwarding = way.args(["proxy", "app", "m-12", "--port", &port.to_string()]).start();
    wait_until("the port to listen", || is_listening(port));
    let scanned =
        world.cluster.scene.program("ssh-keyscan").args(["-p", &port.to_string(), "127.0.0.1"]).stdout();
    assert!(scanned.contains("ssh-ed25519"), "{scanned}");
    drop(forwarding);
    drop(publishing);
}
