//! Plain `ssh -J` over the proxy's SSH port, with no helper: to nodes by name, and to nothing else.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::Duration;
use wayleave_scenario::{Checks, Cluster, EchoServer, Program, Ssh, check_all, wait_until};

#[test]
fn jumps_of_stock_ssh() {
    let mut cluster = Cluster::builder("ssh_jump")
        .proxies(2)
        .nodes(&["web-1"])
        .peering(1)
        .instance_lines(&["shutdown_timeout: 60s"])
        .start();
    let mut checks = Checks::default();
    check_all!(checks, &cluster;
        a_node_is_reached_by_a_plain_jump,
        files_and_forwards_work_over_a_jump,
        l_addresses_other_ports_and_unknown_names_are_refused,
        jumps_do_not_nest,
        c_the_proxy_gives_no_shell_and_no_forward,
        d_no_key_without_certificate_enters,
        who_may_jump_may_not_therefore_enter,
    );
    check_all!(checks, &mut cluster; a_session_over_a_jump_outlives_a_drain_and_not_a_kill);
    checks.end();
}

/// An ssh_config as a user would write it who has the key files and knows the port.
struct Jump {
    ssh: Ssh,
    config: PathBuf,
}

impl Jump {
    fn new(cluster: &Cluster, proxy: usize) -> Self {
        let ssh = cluster.ssh(&cluster.identity(), proxy);
        let keys = cluster.scene.path("alice.id.ssh");
        let hosts = std::fs::read_to_string(keys.join("known_hosts")).unwrap();
        let authority = hosts.split_whitespace().skip_while(|word| *word != "ssh-ed25519").take(2);
        let authority = format!("@cert-authority * {}\n", authority.collect::<Vec<_>>().join(" "));
        let hosts = cluster.scene.write("jump_hosts", authority);
        let address = cluster.proxies[proxy].file.ssh;
        let text = format!(
            "Host *\n  IdentityFile {keys}/key\n  CertificateFile {keys}/key-cert.pub\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {hosts}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  \
             BatchMode yes\nHost jump\n  HostName {ip}\n  Port {port}\n  User whoever\nHost web-* *.scenario\n  \
             ProxyJump jump\n",
            keys = keys.display(),
            hosts = hosts.display(),
            ip = address.ip(),
            port = address.port(),
        );
        let config = cluster.scene.write(&format!("jump-{proxy}.config"), text);
        Self { ssh, config }
    }

    fn program(&self, name: &str) -> Program {
        self.ssh.plain(name).arg("-F").arg(&self.config)
    }
}

fn a_node_is_reached_by_a_plain_jump(cluster: &Cluster) {
    for proxy in 0..2 {
        let jump = Jump::new(cluster, proxy);
        for target in ["root@web-1", "root@web-1.scenario"] {
            jump.program("ssh").args([target, "echo jumped; exit 0"]).output().succeeded().printed("jumped");
        }
        let _ended = jump.program("ssh").args(["root@web-1", "exit 33"]).output().ended_with(33);
    }
    // And with the word that people type.
    let jump = Jump::new(cluster, 0);
    jump.program("ssh")
        .args(["-J", "jump", "root@web-1", "echo typed"])
        .output()
        .succeeded()
        .printed("typed");
}

fn files_and_forwards_work_over_a_jump(cluster: &Cluster) {
    let jump = Jump::new(cluster, 1);
    let sent = cluster.scene.write("jump-sent", vec![7; 3_000_000]);
    let received = cluster.scene.path("jump-received");
    let remote = format!("root@web-1:{}", received.display());
    let _done = jump.program("scp").arg(&sent).arg(remote).output().succeeded();
    assert!(std::fs::read(sent).unwrap() == std::fs::read(received).unwrap());
    let echo = EchoServer::start();
    let mut client = jump.program("ssh").args(["-W", &echo.address().to_string(), "root@web-1"]).start();
    client.write("over a jump\n");
    client.wait_for_stdout("over a jump\n");
}

fn l_addresses_other_ports_and_unknown_names_are_refused(cluster: &Cluster) {
    let jump = Jump::new(cluster, 0);
    let echo = EchoServer::start();
    let auth = cluster.auth_file.listen.to_string();
    let targets = [
        "127.0.0.1:22".to_owned(),
        echo.address().to_string(),
        format!("localhost:{}", echo.address().port()),
        auth,
        "[::1]:22".to_owned(),
        "[::ffff:127.0.0.1]:22".to_owned(),
        "169.254.169.254:80".to_owned(),
        "localhost:22".to_owned(),
        "web-9:22".to_owned(),
        "web-1:80".to_owned(),
        "web-1:3025".to_owned(),
        "example.com:22".to_owned(),
    ];
    for target in targets {
        let output = jump.program("ssh").args(["-W", &target, "jump"]).output().failed();
        assert!(output.stdout.is_empty(), "{target}: {output}");
        assert!(
            output.stderr_text().contains("open failed")
                || output.stderr_text().contains("forwarding failed"),
            "{target}: {output}"
        );
    }
}

/// A jump through the proxy's own SSH port to itself, and through the other proxy.
fn jumps_do_not_nest(cluster: &Cluster) {
    let jump = Jump::new(cluster, 0);
    for proxy in &cluster.proxies {
        let target = format!("jump,{}", proxy.file.ssh);
        let output = jump.program("ssh").args(["-J", &target, "root@web-1", "echo nested"]).output().failed();
        assert!(!output.stdout_text().contains("nested"), "{output}");
    }
    let output =
        jump.program("ssh").args(["-J", "jump,proxy-2", "root@web-1", "echo nested"]).output().failed();
    assert!(!output.stdout_text().contains("nested"), "{output}");
}

fn c_the_proxy_gives_no_shell_and_no_forward(cluster: &Cluster) {
    let jump = Jump::new(cluster, 0);
    let ssh = |arguments: &[&str]| jump.program("ssh").args(arguments).output();
    let shell = ssh(&["-tt", "jump"]).failed();
    assert!(shell.stdout.is_empty(), "{shell}");
    let exec = ssh(&["jump", "id"]).failed();
    assert!(!exec.stdout_text().contains("uid="), "{exec}");
    let subsystem = ssh(&["-s", "jump", "sftp"]).failed();
    assert!(subsystem.stdout.is_empty(), "{subsystem}");
    let port = wayleave_scenario::free_port().port().to_string();
    let remote = format!("{port}:127.0.0.1:9");
    let _refused = ssh(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", &remote, "jump"]).failed();
    let socket = cluster.scene.path("remote.sock");
    let remote = format!("{}:127.0.0.1:9", socket.display());
    let _refused = ssh(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", &remote, "jump"]).failed();
    assert!(!socket.exists());
}

fn d_no_key_without_certificate_enters(cluster: &Cluster) {
    let jump = Jump::new(cluster, 0);
    let key = cluster.scene.path("bare");
    let _made =
        cluster.scene.program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).stdout();
    let hosts = cluster.scene.path("jump_hosts");
    let address = cluster.proxies[0].file.ssh;
    let output = jump
        .ssh
        .plain("ssh")
        .args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-p",
            &address.port().to_string(),
        ])
        .args(["-o", &format!("UserKnownHostsFile={}", hosts.display())])
        .args(["-o", &format!("IdentityFile={}", key.display())])
        .args(["-W", "web-1:22", &format!("alice@{}", address.ip())])
        .output()
        .ended_with(255);
    assert!(output.stdout.is_empty() && output.stderr_text().contains("denied"), "{output}");
}

/// The agent decides, whatever the proxy lets through.
fn who_may_jump_may_not_therefore_enter(cluster: &Cluster) {
    let jump = Jump::new(cluster, 0);
    let output = jump.program("ssh").args(["daemon@web-1", "true"]).output().ended_with(255);
    assert!(output.stderr_text().contains("denied"), "{output}");
}

/// As docs/resumption.md says: nothing of ours is at the client's end, so nothing can go on elsewhere.
fn a_session_over_a_jump_outlives_a_drain_and_not_a_kill(cluster: &mut Cluster) {
    let jump = Jump::new(cluster, 0);
    let session = |command: &str| {
        let mut running = jump.program("ssh").args(["root@web-1", command]).start();
        running.wait_for_stdout("begun");
        running
    };
    let mut drained = session("echo begun; sleep 3; echo whole");
    let proxy = &mut cluster.proxies[0];
    let mark = proxy.daemon.log_mark();
    proxy.daemon.signal(Signal::SIGTERM);
    assert_eq!(drained.wait().succeeded().stdout_text(), "begun\nwhole\n");
    assert_eq!(proxy.daemon.wait_exit(Duration::from_secs(50)), Some(Some(0)), "{}", proxy.daemon.tail());
    assert!(!proxy.daemon.log_since(mark).contains("are cut"), "{}", proxy.daemon.tail());
    proxy.daemon.start();
    let ssh = proxy.file.ssh;
    wait_until("the proxy to be back", || std::net::TcpStream::connect(ssh).is_ok());
    cluster.wait_reachable(0, "web-1");

    let mut killed = session("echo begun; sleep 600; echo whole");
    cluster.proxies[0].daemon.kill();
    let output = killed.wait();
    assert_eq!(output.stdout_text(), "begun\n");
    assert_ne!(output.code, Some(0));
}
