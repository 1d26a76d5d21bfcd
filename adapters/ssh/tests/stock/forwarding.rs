//! `-L`, `-D`, `-R`, `-A`, and what of them is refused.

use crate::harness::{block_on, cases, wait_until};
use crate::sessions::{Master, feed, pattern};
use crate::world::{Certified, Setting, World, own_login, text};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::{Child, Command};
use wayleave_adapter_ssh::LocalSwitches;
use wayleave_audit::{Event, Outcome, PortAction};
use wayleave_resource::RoleOptions;

cases![
    a_local_forward_reaches_the_loopback,
    a_local_forward_reaches_a_unix_socket_as_the_user,
    a_dynamic_forward_is_a_proxy,
    a_refused_target_is_said_so,
    l_metadata_addresses_are_not_dialled,
    a_remote_forward_comes_back,
    a_remote_forward_ends_when_it_is_cancelled,
    a_remote_unix_socket_comes_back,
    a_remote_forward_listens_on_the_loopback_only,
    h_low_ports_are_for_root,
    f_a_client_that_is_refused_again_and_again_is_disconnected,
    the_clients_agent_is_reached,
    c_forwarding_needs_role_certificate_and_agent,
    c_agent_forwarding_needs_role_certificate_and_agent,
];

fn a_local_forward_reaches_the_loopback() {
    block_on(async {
        let world = World::new().await;
        let target = format!("localhost:{}", echo_server(&world).await);
        let local = world.path("local");
        let _ssh = forward(&world, &["-L", &format!("{}:{target}", local.display())], &local).await;

        for _ in 0..3 {
            check_echo(UnixStream::connect(&local).await.unwrap()).await;
        }

        let is_noted = |event: &Event| {
            matches!(event, Event::Port { action: PortAction::LocalStart, outcome: Outcome::Success, .. })
        };
        assert!(world.audit.has(is_noted));
        wait_until(|| world.audit.count(|event| is_end(event, PortAction::LocalStop, &target)) == 3).await;
    });
}

/// A connection ended, and the megabyte that went there and back was counted.
fn is_end(event: &Event, stop: PortAction, at: &str) -> bool {
    match event {
        Event::Port { action, addr, traffic: Some(through), duration_ms: Some(_), .. } => {
            *action == stop
                && addr.as_str() == at
                && (through.bytes_received, through.bytes_sent) == (1_000_000, 1_000_000)
        }
        _ => false,
    }
}

/// A listener ended.
fn is_listener_end(event: &Event) -> bool {
    matches!(event, Event::Port { action: PortAction::RemoteStop, duration_ms: Some(_), .. })
}

fn a_local_forward_reaches_a_unix_socket_as_the_user() {
    block_on(async {
        let world = World::new().await;
        let (local, remote) = (world.path("local"), world.path("remote"));
        let listener = UnixListener::bind(&remote).unwrap();
        world.tasks.spawn("echo", async move {
            let (stream, _) = listener.accept().await.unwrap();
            echo(stream).await;
        });
        let spec = format!("{}:{}", local.display(), remote.display());
        let _ssh = forward(&world, &["-L", &spec], &local).await;

        check_echo(UnixStream::connect(&local).await.unwrap()).await;
    });
}

fn a_dynamic_forward_is_a_proxy() {
    block_on(async {
        let world = World::new().await;
        let port = echo_server(&world).await;
        let socks = free_port().await;
        let _ssh = world.ssh("alice", &["-N", "-D", &format!("127.0.0.1:{socks}")]).spawn().unwrap();
        let mut stream = wait_connected(socks).await;

        stream.write_all(&[5, 1, 0]).await.unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.unwrap();
        let mut request = vec![5, 1, 0, 1, 127, 0, 0, 1];
        request.extend(port.to_be_bytes());
        stream.write_all(&request).await.unwrap();
        let mut connected = [0; 10];
        stream.read_exact(&mut connected).await.unwrap();

        assert_eq!(connected[1], 0, "{connected:?}");
        check_echo(stream).await;
    });
}

fn a_refused_target_is_said_so() {
    block_on(async {
        let world = World::new().await;
        let port = free_port().await;

        let output = feed(&mut world.ssh("alice", &["-W", &format!("127.0.0.1:{port}")]), Vec::new()).await;

        assert!(!output.status.success());
        assert!(text(&output.stderr).contains("Connection refused"), "{output:?}");
        let is_noted = |event: &Event| is_failure(event, PortAction::LocalStart, "Connection refused");
        wait_until(|| world.audit.has(is_noted)).await;
    });
}

pub(crate) fn is_failure(event: &Event, wanted: PortAction, reason: &str) -> bool {
    match event {
        Event::Port { action, outcome: Outcome::Failure { error }, .. } => {
            *action == wanted && error.as_str().contains(reason)
        }
        _ => false,
    }
}

fn l_metadata_addresses_are_not_dialled() {
    block_on(async {
        let world = World::new().await;
        for target in
            ["169.254.169.254:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80", "168.63.129.16:80"]
        {
            let output = feed(&mut world.ssh("alice", &["-W", target]), Vec::new()).await;

            assert!(!output.status.success());
            assert!(text(&output.stderr).contains("is refused: it is"), "{target} {output:?}");
        }
        let is_noted = |event: &Event| is_failure(event, PortAction::LocalStart, "is refused: it is");
        wait_until(|| world.audit.count(is_noted) == 4).await;
    });
}

fn a_remote_forward_comes_back() {
    block_on(async {
        let world = World::new().await;
        let target = echo_server(&world).await;
        let mut ssh = world.ssh("alice", &["-N", "-R", &format!("0:127.0.0.1:{target}")]).spawn().unwrap();
        let port = allocated_port(&mut ssh).await;

        for _ in 0..3 {
            check_echo(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
        }

        let address = format!("localhost:{port}");
        let is_end = |event: &Event| is_end(event, PortAction::RemoteConnectionStop, &address);
        wait_until(|| world.audit.count(is_end) == 3).await;
        let is_begin = |event: &Event| {
            matches!(
                event,
                Event::Port { action: PortAction::RemoteConnection, outcome: Outcome::Success, .. }
            )
        };
        assert_eq!(world.audit.count(is_begin), 3, "{}", world.audit.text());
        ssh.kill().await.unwrap();
        wait_until_refused(port).await;
        wait_until(|| world.audit.has(is_listener_end)).await;
    });
}

fn a_remote_forward_ends_when_it_is_cancelled() {
    block_on(async {
        let world = World::new().await;
        let target = echo_server(&world).await;
        let master = Master::start(&world).await;
        let port = free_port().await;
        let spec = format!("{port}:127.0.0.1:{target}");

        let add = master.ssh(&world).args(["-O", "forward", "-R", &spec]).output().await.unwrap();
        assert!(add.status.success(), "{add:?}");
        check_echo(wait_connected(port).await).await;
        let cancel = master.ssh(&world).args(["-O", "cancel", "-R", &spec]).output().await.unwrap();

        assert!(cancel.status.success(), "{cancel:?}");
        wait_until_refused(port).await;
        wait_until(|| world.audit.has(is_listener_end)).await;
    });
}

fn a_remote_unix_socket_comes_back() {
    block_on(async {
        let world = World::new().await;
        let target = echo_server(&world).await;
        let remote = world.path("remote");
        let spec = format!("{}:127.0.0.1:{target}", remote.display());
        let _ssh = forward(&world, &["-R", &spec], &remote).await;

        check_echo(UnixStream::connect(&remote).await.unwrap()).await;
    });
}

fn a_remote_forward_listens_on_the_loopback_only() {
    block_on(async {
        let world = World::new().await;
        for host in ["*", "0.0.0.0", "[::]", "192.0.2.1"] {
            let port = free_port().await;
            let spec = format!("{host}:{port}:127.0.0.1:1");
            let options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", &spec];

            let output = world.ssh("alice", &options).output().await.unwrap();

            assert!(text(&output.stderr).contains("remote port forwarding failed"), "{host} {output:?}");
        }
        let is_noted = |event: &Event| {
            matches!(
                event,
                Event::Port { action: PortAction::RemoteStart, outcome: Outcome::Failure { .. }, .. }
            )
        };
        wait_until(|| world.audit.has(is_noted)).await;
    });
}

fn h_low_ports_are_for_root() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    block_on(async {
        let world = World::new().await;
        let mut role = crate::world::role("access", RoleOptions::default());
        role.spec.allow.logins.push("daemon".to_owned());
        world.policy.publish(&[role], &[]);
        let principals = vec!["daemon".to_owned()];
        world.write_user("bob", &world.authorities.user, &Certified { principals, ..Certified::default() });
        let options = ["-l", "daemon", "-N", "-o", "ExitOnForwardFailure=yes", "-R", "1023:127.0.0.1:1"];

        let output = world.ssh("bob", &options).output().await.unwrap();

        assert!(text(&output.stderr).contains("remote port forwarding failed"), "{output:?}");
    });
}

fn f_a_client_that_is_refused_again_and_again_is_disconnected() {
    block_on(async {
        let world = World::new().await;
        let mut options = vec!["-N".to_owned()];
        for port in 2000..2100 {
            options.extend(["-R".to_owned(), format!("*:{port}:127.0.0.1:1")]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();

        let output = world.ssh("alice", &options).output().await.unwrap();

        assert!(text(&output.stderr).contains("too many requests were refused"), "{output:?}");
    });
}

fn the_clients_agent_is_reached() {
    block_on(async {
        let world = World::new().await;
        let agent = Agent::start(&world).await;
        let option = format!("IdentityAgent={}", agent.socket);

        let output = world
            .ssh("alice", &["-A", "-o", &option])
            .arg("ssh-add -L; echo $SSH_AUTH_SOCK")
            .output()
            .await
            .unwrap();

        assert!(text(&output.stdout).contains("agent-test-key"), "{output:?}");
        let socket = text(&output.stdout).lines().last().unwrap().to_owned();
        assert!(!socket.is_empty());
        wait_until(|| !Path::new(&socket).exists()).await;
    });
}

fn c_forwarding_needs_role_certificate_and_agent() {
    let role = RoleOptions { port_forwarding: Some(false), ..RoleOptions::default() };
    let switch = LocalSwitches { port_forwarding: false, ..LocalSwitches::default() };
    for (setting, user) in [
        (Setting { options: role, ..Setting::default() }, "alice"),
        (Setting { switches: switch, ..Setting::default() }, "alice"),
        (Setting::default(), "restricted"),
    ] {
        block_on(async {
            let world = World::with(setting).await;
            write_restricted(&world);
            let target = echo_server(&world).await;

            let local = feed(&mut world.ssh(user, &["-W", &format!("127.0.0.1:{target}")]), Vec::new()).await;
            let options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"];
            let remote = world.ssh(user, &options).output().await.unwrap();

            assert!(text(&local.stderr).contains("port forwarding"), "{user} {local:?}");
            assert!(text(&remote.stderr).contains("remote port forwarding failed"), "{user} {remote:?}");
            assert!(world.ssh(user, &[]).arg("true").status().await.unwrap().success());
        });
    }
}

fn c_agent_forwarding_needs_role_certificate_and_agent() {
    let role = RoleOptions { forward_agent: Some(false), ..RoleOptions::default() };
    let switch = LocalSwitches { forward_agent: false, ..LocalSwitches::default() };
    for (setting, user) in [
        (Setting { options: role, ..Setting::default() }, "alice"),
        (Setting { switches: switch, ..Setting::default() }, "alice"),
        (Setting::default(), "restricted"),
    ] {
        block_on(async {
            let world = World::with(setting).await;
            write_restricted(&world);
            let agent = Agent::start(&world).await;
            let option = format!("IdentityAgent={}", agent.socket);

            let output = world
                .ssh(user, &["-A", "-o", &option])
                .arg("echo sock=$SSH_AUTH_SOCK")
                .output()
                .await
                .unwrap();

            assert_eq!(text(&output.stdout), "sock=\n", "{user} {output:?}");
            let is_noted =
                |event: &Event| matches!(event, Event::Forward { outcome: Outcome::Failure { .. }, .. });
            wait_until(|| world.audit.has(is_noted)).await;
        });
    }
}

/// A user whose certificate permits nothing but commands.
fn write_restricted(world: &World) {
    let certified = Certified { extensions: Default::default(), ..Certified::default() };
    world.write_user("restricted", &world.authorities.user, &certified);
}

/// An ssh that only forwards, once its socket is there.
pub(crate) async fn forward(world: &World, options: &[&str], socket: &Path) -> Child {
    let ssh = world.ssh("alice", &[&["-N"], options].concat()).spawn().unwrap();
    wait_until(|| socket.exists()).await;
    ssh
}

/// A server that gives everything back.
pub(crate) async fn echo_server(world: &World) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (group, shutdown) = (world.tasks.clone(), world.tasks.shutdown());
    world.tasks.spawn("echo", async move {
        while let Some(Ok((stream, _))) = shutdown.until(listener.accept()).await {
            group.spawn_many(echo(stream));
        }
    });
    port
}

async fn echo(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let _ended = tokio::io::copy(&mut reader, &mut writer).await;
    let _ended = writer.shutdown().await;
}

/// Sends and gets back, and sees the end.
pub(crate) async fn check_echo(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = pattern(1_000_000);
    let mut back = Vec::new();
    let (written, read) = tokio::join!(
        async {
            writer.write_all(&sent).await?;
            writer.shutdown().await
        },
        reader.read_to_end(&mut back)
    );
    written.unwrap();
    read.unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn wait_connected(port: u16) -> TcpStream {
    loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

pub(crate) async fn wait_until_refused(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Reads "Allocated port N for remote forward".
pub(crate) async fn allocated_port(ssh: &mut Child) -> u16 {
    let mut lines = BufReader::new(ssh.stderr.as_mut().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(rest) = line.strip_prefix("Allocated port ") {
            return rest.split(' ').next().unwrap().parse().unwrap();
        }
    }
    panic!("no port was allocated");
}

/// An agent with one key. Killed with the test.
pub(crate) struct Agent {
    pub(crate) socket: String,
    _process: Child,
}

impl Agent {
    pub(crate) async fn start(world: &World) -> Self {
        let path = world.path("agent");
        let socket = path.display().to_string();
        let process = Command::new("ssh-agent")
            .args(["-D", "-a", &socket])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        wait_until(|| path.exists()).await;
        let key = world.path("agent-key");
        let key = key.to_str().unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "agent-test-key", "-f", key])
            .status()
            .await
            .unwrap();
        let added =
            Command::new("ssh-add").env("SSH_AUTH_SOCK", &socket).args(["-q", key]).status().await.unwrap();
        assert!(made.success() && added.success(), "{}", own_login());
        Self { socket, _process: process }
    }
}
