//! Forwarding by stock OpenSSH and by `way`: local, remote, dynamic, the key agent; and what is refused.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use wayleave_scenario::{Cluster, EchoServer, Running, Ssh, check_all, free_port, wait_until};

#[test]
fn forwarding_by_stock_ssh() {
    let cluster = Cluster::builder("ssh_forwarding").proxies(2).nodes(&["web-1"]).peering(1).start();
    check_all!(&cluster;
        local_ports_lead_to_the_node,
        local_ports_of_way_lead_to_the_node,
        remote_ports_lead_back,
        remote_ports_of_way_lead_back,
        a_socks_proxy_leads_anywhere_from_the_node,
        standard_streams_lead_to_a_port,
        a_key_agent_is_reached_from_the_node,
        nothing_is_left_when_the_client_goes,
        what_cannot_be_connected_is_told,
        l_metadata_and_link_local_addresses_are_refused,
        a_role_may_forbid_each_forward,
    );
}

fn ssh(cluster: &Cluster) -> Ssh {
    cluster.ssh(&cluster.identity(), 0)
}

/// Starts a forwarding client and waits until the echo server is behind the address.
#[track_caller]
fn wait_for_echo(mut client: Running, address: SocketAddr) -> Running {
    wait_until("the echo behind a forward", || {
        assert!(!client.is_ended(), "{}", client.stderr_so_far());
        EchoServer::is_behind(address)
    });
    client
}

fn local_ports_lead_to_the_node(cluster: &Cluster) {
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let client =
        ssh(cluster).run("web-1", &["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward], "").start();
    let _client = wait_for_echo(client, port);
    let mut streams: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(port).unwrap()).collect();
    assert!(streams.drain(..).all(EchoServer::is_at_the_end_of));
}

fn local_ports_of_way_lead_to_the_node(cluster: &Cluster) {
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let way = cluster.way(&cluster.identity(), 1).args(["ssh", "-N", "-L", &forward, "root@web-1"]);
    let _client = wait_for_echo(way.start(), port);
}

fn remote_ports_lead_back(cluster: &Cluster) {
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let client =
        ssh(cluster).run("web-1", &["-N", "-o", "ExitOnForwardFailure=yes", "-R", &forward], "").start();
    let _client = wait_for_echo(client, port);
    // A port of the server's choice is told.
    let chosen = format!("0:{}", echo.address());
    let output = ssh(cluster).run("web-1", &["-v", "-R", &chosen], "true").output().succeeded();
    assert!(output.stderr_text().contains("Allocated port"), "{output}");
}

fn remote_ports_of_way_lead_back(cluster: &Cluster) {
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let way = cluster.way(&cluster.identity(), 1).args(["ssh", "-N", "-R", &forward, "root@web-1"]);
    let _client = wait_for_echo(way.start(), port);
}

fn a_socks_proxy_leads_anywhere_from_the_node(cluster: &Cluster) {
    let echo = EchoServer::start();
    for (name, port) in [("ssh", free_port()), ("way", free_port())] {
        let text = port.to_string();
        let client = match name {
            "ssh" => ssh(cluster).run("web-1", &["-N", "-D", &text], ""),
            _ => cluster.way(&cluster.identity(), 1).args(["ssh", "-N", "-D", &text, "root@web-1"]),
        };
        let _client = client.start();
        wait_until("the SOCKS port", || TcpStream::connect(port).is_ok());
        assert!(EchoServer::is_at_the_end_of(through_socks(port, echo.address())), "{name}");
    }
}

/// SOCKS 5 without authentication (RFC 1928), to a name.
fn through_socks(socks: SocketAddr, target: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(socks).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    let name = b"localhost";
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    request.extend_from_slice(name);
    request.extend_from_slice(&target.port().to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [5, 0], "{answer:?}");
    stream
}

fn standard_streams_lead_to_a_port(cluster: &Cluster) {
    let echo = EchoServer::start();
    let target = echo.address().to_string();
    let mut client = ssh(cluster).run("web-1", &["-W", &target], "").start();
    client.write("hello through\n");
    client.wait_for_stdout("hello through\n");
}

fn a_key_agent_is_reached_from_the_node(cluster: &Cluster) {
    let socket = cluster.scene.path("agent.sock");
    let mut agent = cluster.scene.program("ssh-agent").arg("-D").arg("-a").arg(&socket).start();
    wait_until("the key agent", || socket.exists());
    let key = cluster.scene.path("agent-key");
    let keygen =
        cluster.scene.program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "in-agent", "-f"]);
    let _made = keygen.arg(&key).stdout();
    let _added =
        cluster.scene.program("ssh-add").env("SSH_AUTH_SOCK", &socket).arg(&key).output().succeeded();
    let list = "ssh-add -l; test -S \"$SSH_AUTH_SOCK\" && stat -c %a \"$(dirname \"$SSH_AUTH_SOCK\")\"";
    let with = ssh(cluster).run("web-1", &["-A"], list).env("SSH_AUTH_SOCK", &socket).stdout();
    assert!(with.contains("in-agent") && with.trim_end().ends_with("700"), "{with}");
    let way = cluster.way(&cluster.identity(), 1).env("SSH_AUTH_SOCK", &socket);
    let by_way = way.args(["ssh", "-A", "root@web-1", "ssh-add -l"]).stdout();
    assert!(by_way.contains("in-agent"), "{by_way}");
    let without =
        ssh(cluster).run("web-1", &["-a"], "echo ${SSH_AUTH_SOCK:-none}").env("SSH_AUTH_SOCK", &socket);
    without.output().succeeded().printed("none");
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let _ended = agent.wait();
}

fn nothing_is_left_when_the_client_goes(cluster: &Cluster) {
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let client = ssh(cluster).run("web-1", &["-N", "-R", &forward], "").start();
    let mut client = wait_for_echo(client, port);
    // Killed without a word it would be waited for.
    client.signal(nix::sys::signal::Signal::SIGTERM);
    let _ended = client.wait();
    wait_until("the forwarded port to be closed", || TcpStream::connect(port).is_err());
    // Other checks ended clients that are waited for, with their ports.
    wait_until("the agent to listen there no more", || {
        !wayleave_scenario::listening_ports(cluster.nodes[0].daemon.pid()).contains(&port.port())
    });
}

fn what_cannot_be_connected_is_told(cluster: &Cluster) {
    let closed = free_port().to_string();
    let output = ssh(cluster).run("web-1", &["-W", &closed], "").output().failed();
    assert!(output.stderr_text().to_lowercase().contains("refused"), "{output}");
    let output = ssh(cluster).run("web-1", &["-W", "no-such-host.invalid:80"], "").output().failed();
    assert!(
        output.stderr_text().contains("open failed") || output.stderr_text().contains("forwarding failed"),
        "{output}"
    );
    // A port that is taken on the node.
    let echo = EchoServer::start();
    let taken = format!("{}:127.0.0.1:9", echo.address());
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", &taken];
    let _refused = ssh(cluster).run("web-1", &options, "true").output().ended_with(255);
}

fn l_metadata_and_link_local_addresses_are_refused(cluster: &Cluster) {
    for target in ["169.254.169.254:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80", "100.100.100.200:80"]
    {
        let output = ssh(cluster).run("web-1", &["-W", target], "").output().failed();
        assert!(output.stderr_text().to_lowercase().contains("prohibited"), "{target}: {output}");
    }
}

fn a_role_may_forbid_each_forward(cluster: &Cluster) {
    let role = "kind: role\nversion: v7\nmetadata:\n  name: plain\nspec:\n  options:\n    port_forwarding: false\n    \
                forward_agent: false\n    ssh_file_copy: false\n  allow:\n    logins: [root]\n    node_labels:\n      '*': '*'\n";
    let _made = cluster.create(role).succeeded();
    cluster.add_user("plain", "plain", "root");
    let identity = cluster.sign("plain", "1h");
    let ssh = cluster.ssh(&identity, 0);
    wait_until("the new role to be known by the agent", || {
        ssh.run("web-1", &[], "true").output().code == Some(0)
    });
    let echo = EchoServer::start();
    let target = echo.address().to_string();
    let local = ssh.run("web-1", &["-W", &target], "").output().failed();
    assert!(local.stderr_text().to_lowercase().contains("prohibited"), "{local}");
    let remote = format!("{}:{target}", free_port());
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", &remote];
    let _refused = ssh.run("web-1", &options, "true").output().ended_with(255);
    let _refused = ssh
        .program("sftp")
        .args(["-b", "-"])
        .arg(ssh.target("root", "web-1"))
        .input("pwd\n")
        .output()
        .failed();
    let scp = ssh.program("scp").arg("-O").arg(format!("{}:/etc/hostname", ssh.target("root", "web-1")));
    let _refused = scp.arg(cluster.scene.path("stolen")).output().failed();
    assert!(!cluster.scene.path("stolen").exists());
}
