//! Plain `ssh -J` through the proxy's entry, and what the entry refuses.

use crate::harness::{block_on, cases, wait_until};
use crate::sessions::{feed, pattern, read_until};
use crate::world::{Certified, World, dial_request, lock, new_key, own_login, role, text};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use wayleave_adapter_ssh::{JumpConfig, JumpEntry, NodeAdapter};
use wayleave_dial::{DialRefusal, DialRequest, DialRoute};
use wayleave_net::{Adapter, Dialed, Dialer, Entry, Inbound};
use wayleave_resource::RoleOptions;
use wayleave_runtime::{Shutdown, SystemClock, TaskGroup};

cases![
    a_jump_reaches_a_node_by_its_name,
    bulk_goes_through_a_jump,
    l_a_jump_goes_to_nodes_only,
    c_the_entry_has_nothing_else_to_offer,
    d_certificates_that_are_wrong_do_not_jump,
    j_a_lock_ends_a_running_jump,
];

fn a_jump_reaches_a_node_by_its_name() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;
        for name in ["node", "node.demo", "NODE"] {
            let output = entry.ssh(&["-J", "jump", name, "echo $((6*7))"]).await;

            assert_eq!(text(&output.stdout), "42\n", "{name} {output:?}");
        }
        assert_eq!(entry.known.load(Ordering::SeqCst), 3, "who has logged in keeps his slot");
    });
}

fn bulk_goes_through_a_jump() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;
        let bulk = pattern(16 * 1024 * 1024);

        let output = feed(&mut entry.command(&["-J", "jump", "node", "cat"]), bulk.clone()).await;

        assert!(output.stdout == bulk, "{} bytes", output.stdout.len());
    });
}

fn l_a_jump_goes_to_nodes_only() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;
        let port = world.address.port();
        for (target, expected) in [
            ("127.0.0.1:22".to_owned(), "is an address"),
            (format!("127.0.0.1:{port}"), "is an address"),
            ("[::1]:22".to_owned(), "is an address"),
            ("10.0.0.1:22".to_owned(), "is an address"),
            ("localhost:22".to_owned(), "no node is called"),
            ("example.com:22".to_owned(), "no node is called"),
            ("2130706433:22".to_owned(), "no node is called"),
            ("unknown:22".to_owned(), "no node is called"),
            ("jump:22".to_owned(), "no node is called"),
            (format!("node:{port}"), "is not reachable here"),
            ("node:80".to_owned(), "is not reachable here"),
        ] {
            let output = entry.ssh(&["-W", &target, "jump"]).await;

            assert!(!output.status.success(), "{target}");
            assert!(text(&output.stderr).contains(expected), "{target} {}", text(&output.stderr));
        }
    });
}

fn c_the_entry_has_nothing_else_to_offer() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;

        for arguments in [&["jump"][..], &["jump", "true"], &["-tt", "jump"], &["-s", "jump", "sftp"]] {
            let output = entry.ssh(arguments).await;
            assert_eq!(output.status.code(), Some(255), "{arguments:?} {output:?}");
            assert!(text(&output.stderr).contains("no sessions of its own"), "{arguments:?} {output:?}");
        }
        let remote =
            entry.ssh(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "jump"]).await;
        assert!(text(&remote.stderr).contains("remote port forwarding failed"), "{remote:?}");
        let nested = entry.ssh(&["-J", "jump,jump", "node", "true"]).await;
        assert!(!nested.status.success(), "{nested:?}");
        assert!(text(&nested.stderr).contains("is an address"), "{nested:?}");
    });
}

fn d_certificates_that_are_wrong_do_not_jump() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;
        let expired = Certified {
            valid_before: crate::world::wall().before(Duration::from_secs(3600)),
            ..Certified::default()
        };
        for (what, authority, certified, expected) in [
            ("expired", world.authorities.user.clone(), expired, "your certificate has expired"),
            ("other authority", new_key(), Certified::default(), "Permission denied"),
            ("host authority", world.authorities.host.clone(), Certified::default(), "Permission denied"),
            (
                "other cluster",
                world.authorities.user.clone(),
                Certified { cluster: "other", ..Certified::default() },
                "Permission denied",
            ),
        ] {
            world.write_user("alice", &authority, &certified);

            let output = entry.ssh(&["-W", "node:22", "jump"]).await;

            assert!(!output.status.success(), "{what}");
            assert!(text(&output.stderr).contains(expected), "{what} {}", text(&output.stderr));
        }
        assert_eq!(entry.known.load(Ordering::SeqCst), 0, "strangers give way to others");
    });
}

fn j_a_lock_ends_a_running_jump() {
    block_on(async {
        let world = World::new().await;
        let entry = Entrance::open(&world).await;
        let mut ssh = entry.command(&["-W", "node:22", "jump"]).stdin(Stdio::piped()).spawn().unwrap();
        read_until(&mut ssh, "SSH-2.0").await;

        world.policy.publish(&[role("access", RoleOptions::default())], &[lock("alice", "gone")]);

        let output = ssh.wait_with_output().await.unwrap();
        assert!(text(&output.stderr).contains("access is locked: gone"), "{output:?}");
        wait_until(|| {
            world.audit.has(|event| matches!(event, wayleave_audit::Event::ClientDisconnect { .. }))
        })
        .await;
        let again = entry.ssh(&["-W", "node:22", "jump"]).await;
        assert!(text(&again.stderr).contains("access is locked: gone"), "{again:?}");
    });
}

/// An entry before a world's node.
struct Entrance {
    config: PathBuf,
    /// How many have shown who they are.
    known: Arc<AtomicUsize>,
}

impl Entrance {
    async fn open(world: &World) -> Self {
        let identity = world.authorities.host_credential(&["jump"]);
        let entry = Arc::new(JumpEntry::new(JumpConfig {
            host_id: crate::world::host_id(),
            policy: world.policy.clone(),
            identity: watch::Sender::new(Some(identity)).subscribe(),
            audit: world.audit.clone(),
            clock: Arc::new(SystemClock::new()),
            drain_grace: Duration::from_secs(1),
        }));
        let dialer = Arc::new(ToNode { adapter: world.adapter.clone(), tasks: world.tasks.clone() });
        let known = Arc::new(AtomicUsize::new(0));
        let address = serve(&world.tasks, entry, dialer, known.clone()).await;
        Self { config: Self::write_config(world, address), known }
    }

    fn write_config(world: &World, address: SocketAddr) -> PathBuf {
        let common = format!(
            "UserKnownHostsFile {known}\nGlobalKnownHostsFile /dev/null\nIdentityFile {key}\n\
             CertificateFile {key}-cert.pub\nIdentitiesOnly yes\nIdentityAgent none\nBatchMode yes\n\
             StrictHostKeyChecking yes\n",
            known = world.path("known_hosts").display(),
            key = world.path("alice").display(),
        );
        let config = format!(
            "Host jump\nHostName 127.0.0.1\nPort {port}\nHostKeyAlias jump\nUser whoever\n\
             Host node node.demo\nHostKeyAlias {node}\nUser {login}\n\
             Host *\n{common}",
            port = address.port(),
            node = crate::world::NODE,
            login = own_login(),
        );
        let path = world.path("jump-config");
        std::fs::write(&path, config).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.config).args(arguments);
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    async fn ssh(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }
}

async fn serve(
    tasks: &TaskGroup,
    entry: Arc<JumpEntry>,
    dialer: Arc<dyn Dialer>,
    known: Arc<AtomicUsize>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (group, shutdown) = (tasks.clone(), tasks.shutdown());
    tasks.spawn("entry", async move {
        while let Some(Ok((stream, client))) = shutdown.until(listener.accept()).await {
            let counted = known.clone();
            let known = Box::new(move || {
                let _before = counted.fetch_add(1, Ordering::SeqCst);
            });
            let serving =
                entry.clone().serve(Box::new(stream), client, known, dialer.clone(), shutdown.clone());
            group.spawn_many(serving);
        }
    });
    address
}

/// A proxy that knows one node and reaches it in memory.
struct ToNode {
    adapter: Arc<NodeAdapter>,
    tasks: TaskGroup,
}

impl Dialer for ToNode {
    fn dial(&self, request: DialRequest) -> BoxFuture<'_, Result<Dialed, DialRefusal>> {
        Box::pin(async move {
            let node = request.target.name();
            if node.as_str() != "node" {
                return Err(DialRefusal::UnknownTarget { name: node.to_string() });
            }
            let (near, far) = tokio::io::duplex(64 * 1024);
            let client = request.client_address.unwrap();
            let inbound = Inbound { stream: Box::new(far), request: dial_request(client), resumption: None };
            self.tasks.spawn_many(self.adapter.clone().serve(inbound, Shutdown::new()));
            let id = crate::world::host_id();
            let route = DialRoute { ingress_proxy: id, home_proxy: id, agent: id };
            Ok(Dialed { stream: Box::new(near), route })
        })
    }
}
