//! Sessions that end while they run, each for its reason, with a word to the user.

use crate::forwarding::{Agent, allocated_port, check_echo, echo_server, is_failure, wait_until_refused};
use crate::harness::{block_on, cases, wait_until};
use crate::sessions::{is_running, read_until};
use crate::world::{Certified, Setting, World, lock, role, text, wall};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Child;
use wayleave_audit::{DisconnectReason, Event, PortAction};
use wayleave_policy::Settings;
use wayleave_resource::{LabelSelector, RoleOptions};
use wayleave_vocab::{Labels, Ttl};

cases![
    j_a_lock_ends_running_sessions,
    j_a_removed_role_ends_running_sessions,
    j_a_changed_role_ends_what_it_no_longer_allows,
    j_changed_labels_end_what_they_no_longer_match,
    j_a_certificate_that_runs_out_ends_sessions_where_configured,
    j_a_certificate_that_runs_out_leaves_sessions_otherwise_and_opens_no_new_ones,
    j_a_changed_role_ends_remote_forwards,
    j_a_changed_role_ends_a_forwarded_agent,
    j_a_remote_forward_takes_nothing_new_after_the_certificate,
    j_a_remote_forward_takes_nothing_new_while_the_agent_stops,
    j_silence_ends_sessions,
    j_a_program_that_ignores_the_hangup_is_killed,
    g_a_client_that_answers_no_probe_is_given_up_as_the_cluster_says,
    a_change_that_concerns_nobody_ends_nothing,
    a_drain_waits_for_sessions_and_then_ends_them,
];

fn j_a_lock_ends_running_sessions() {
    block_on(async {
        let world = World::new().await;
        let (ssh, pid) = start(&world, "").await;

        let roles = [role("access", RoleOptions::default())];
        world.policy.publish(&roles, &[lock("alice", "lost laptop")]);

        check_ended(ssh, &pid, "the session is ended: access is locked: lost laptop").await;
        check_noted(&world, DisconnectReason::Locked).await;
    });
}

fn j_a_removed_role_ends_running_sessions() {
    block_on(async {
        let world = World::new().await;
        let (ssh, pid) = start(&world, "").await;

        world.policy.publish(&[role("other", RoleOptions::default())], &[]);

        check_ended(ssh, &pid, "your roles no longer allow this session").await;
        check_noted(&world, DisconnectReason::PolicyChanged).await;
    });
}

fn j_a_changed_role_ends_what_it_no_longer_allows() {
    block_on(async {
        let world = World::new().await;
        let (ssh, pid) = start(&world, "").await;

        let mut changed = role("access", RoleOptions::default());
        changed.spec.allow.logins = vec!["somebody".to_owned()];
        world.policy.publish(&[changed], &[]);

        check_ended(ssh, &pid, "your roles no longer allow this session").await;
    });
}

fn j_changed_labels_end_what_they_no_longer_match() {
    block_on(async {
        let world = World::new().await;
        let mut labelled = role("access", RoleOptions::default());
        labelled.spec.allow.node_labels = LabelSelector::from([("env".to_owned(), vec!["dev".to_owned()])]);
        world.labels.send_replace("env=dev".parse::<Labels>().unwrap());
        world.policy.publish(&[labelled], &[]);
        let (ssh, pid) = start(&world, "").await;

        world.labels.send_replace("env=prod".parse::<Labels>().unwrap());

        check_ended(ssh, &pid, "your roles no longer allow this session").await;
    });
}

fn j_a_certificate_that_runs_out_ends_sessions_where_configured() {
    block_on(async {
        let options = RoleOptions { disconnect_expired_cert: Some(true), ..RoleOptions::default() };
        let world = World::with(Setting { options, ..Setting::default() }).await;
        certify_for(&world, Duration::from_secs(4));
        let (ssh, pid) = start(&world, "").await;

        check_ended(ssh, &pid, "your certificate has expired: log in again").await;
        check_noted(&world, DisconnectReason::CertificateExpired).await;
    });
}

fn j_a_certificate_that_runs_out_leaves_sessions_otherwise_and_opens_no_new_ones() {
    block_on(async {
        let world = World::new().await;
        let ends = certify_for(&world, Duration::from_secs(4));
        let master = crate::sessions::Master::start(&world).await;
        let mut running =
            master.ssh(&world).arg("echo on; exec cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        read_until(&mut running, "on").await;

        wait_until(|| wall() > ends).await;
        // A change of policy that judges the connection anew finds nothing wrong with what runs.
        world.policy.publish(&[role("access", RoleOptions::default())], &[]);
        let new = master.ssh(&world).arg("true").output().await.unwrap();

        assert!(text(&new.stderr).contains("your certificate has expired"), "{new:?}");
        drop(running.stdin.take());
        assert!(running.wait().await.unwrap().success());
    });
}

fn j_a_changed_role_ends_remote_forwards() {
    block_on(async {
        let world = World::new().await;
        let (mut ssh, port) = start_forward(&world).await;
        check_echo(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;

        let options = RoleOptions { port_forwarding: Some(false), ..RoleOptions::default() };
        world.policy.publish(&[role("access", options)], &[]);

        wait_until_refused(port).await;
        let is_ended = |event: &Event| matches!(event, Event::Port { action: PortAction::RemoteStop, .. });
        wait_until(|| world.audit.has(is_ended)).await;
        assert!(ssh.try_wait().unwrap().is_none(), "the connection itself is still allowed");
    });
}

fn j_a_changed_role_ends_a_forwarded_agent() {
    block_on(async {
        let world = World::new().await;
        let agent = Agent::start(&world).await;
        let option = format!("IdentityAgent={}", agent.socket);
        let mut ssh = world
            .ssh("alice", &["-A", "-o", &option])
            .arg("echo $SSH_AUTH_SOCK; read -r line; ssh-add -L")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let socket = read_until(&mut ssh, "\n").await.trim().to_owned();
        assert!(Path::new(&socket).exists(), "{socket}");

        let options = RoleOptions { forward_agent: Some(false), ..RoleOptions::default() };
        world.policy.publish(&[role("access", options)], &[]);

        wait_until(|| !Path::new(&socket).exists()).await;
        ssh.stdin.as_mut().unwrap().write_all(b"go on\n").await.unwrap();
        let output = ssh.wait_with_output().await.unwrap();
        assert!(!text(&output.stdout).contains("agent-test-key"), "{output:?}");
    });
}

fn j_a_remote_forward_takes_nothing_new_after_the_certificate() {
    block_on(async {
        let world = World::new().await;
        let ends = certify_for(&world, Duration::from_secs(4));
        let (_ssh, port) = start_forward(&world).await;

        wait_until(|| wall() > ends).await;

        check_takes_nothing(&world, port, "ran out").await;
    });
}

fn j_a_remote_forward_takes_nothing_new_while_the_agent_stops() {
    block_on(async {
        let world = World::new().await;
        let target = echo_server(&world).await;
        // A session keeps the connection for as long as the drain lasts.
        let mut ssh = world
            .ssh("alice", &["-R", &format!("0:127.0.0.1:{target}")])
            .arg("echo ready; exec cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let port = allocated_port(&mut ssh).await;
        read_until(&mut ssh, "ready").await;

        world.tasks.shutdown().request();

        check_takes_nothing(&world, port, "shutting down").await;
    });
}

/// An ssh that forwards a port back to an echo server, and the port.
async fn start_forward(world: &World) -> (Child, u16) {
    let target = echo_server(world).await;
    let mut ssh = world.ssh("alice", &["-N", "-R", &format!("0:127.0.0.1:{target}")]).spawn().unwrap();
    let port = allocated_port(&mut ssh).await;
    (ssh, port)
}

/// Whoever connects to a forwarded port is cut, and that is noted.
async fn check_takes_nothing(world: &World, port: u16, reason: &str) {
    let is_refused = |event: &Event| is_failure(event, PortAction::RemoteConnection, reason);
    while !world.audit.has(is_refused) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        let mut back = Vec::new();
        let _cut = stream.shutdown().await;
        let _cut = stream.read_to_end(&mut back).await;
        assert_eq!(back, b"");
    }
}

fn j_silence_ends_sessions() {
    block_on(async {
        let limit = Some(Ttl(Duration::from_secs(2)));
        let options = RoleOptions { client_idle_timeout: limit, ..RoleOptions::default() };
        let world = World::with(Setting { options, ..Setting::default() }).await;
        let talks = "for i in 1 2 3 4 5 6 7; do echo $i; sleep 0.5; done; exit 7";
        let mut talkative = world.ssh("alice", &[]).arg(talks).spawn().unwrap();
        for number in 1..8 {
            read_until(&mut talkative, &format!("{number}\n")).await;
            // Whatever makes the limits be looked at finds that it is not silent.
            world.labels.send_replace(format!("n={number}").parse::<Labels>().unwrap());
        }
        let talkative = talkative.wait_with_output().await.unwrap();
        assert_eq!(talkative.status.code(), Some(7), "what talks is not silent: {talkative:?}");
        let (ssh, pid) = start(&world, "").await;

        check_ended(ssh, &pid, "silent for 2 s").await;
        check_noted(&world, DisconnectReason::Idle).await;
    });
}

fn g_a_client_that_answers_no_probe_is_given_up_as_the_cluster_says() {
    block_on(async {
        let world = World::new().await;
        let (ssh, pid) = start(&world, "").await;
        let (stopped, its_pid) = start(&world, "").await;
        let client = nix::unistd::Pid::from_raw(i32::try_from(stopped.id().unwrap()).unwrap());
        nix::sys::signal::kill(client, nix::sys::signal::Signal::SIGSTOP).unwrap();

        // Both run already: the numbers of a change count for them too.
        let settings = Settings {
            keep_alive_interval: Ttl(Duration::from_secs(1)),
            keep_alive_count_max: 2,
            ..Settings::default()
        };
        world.policy.publish_with(settings, &[role("access", RoleOptions::default())], &[]);

        wait_until(|| !is_running(&its_pid)).await;
        assert!(is_running(&pid), "whoever answers goes on");
        drop((ssh, stopped));
    });
}

fn j_a_program_that_ignores_the_hangup_is_killed() {
    block_on(async {
        let world = World::new().await;
        let (ssh, pid) = start(&world, "trap '' HUP TERM; ").await;

        world.policy.publish(&[], &[]);

        check_ended(ssh, &pid, "your roles no longer allow this session").await;
    });
}

fn a_change_that_concerns_nobody_ends_nothing() {
    block_on(async {
        let world = World::new().await;
        let mut ssh = world
            .ssh("alice", &[])
            .arg("echo on; exec cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        read_until(&mut ssh, "on").await;

        let roles = [role("access", RoleOptions::default()), role("other", RoleOptions::default())];
        world.policy.publish(&roles, &[lock("bob", "")]);
        world.labels.send_replace("a=b".parse::<Labels>().unwrap());

        assert!(world.run("true").await.status.success());
        drop(ssh.stdin.take());
        assert!(ssh.wait().await.unwrap().success());
    });
}

fn a_drain_waits_for_sessions_and_then_ends_them() {
    block_on(async {
        let world = World::with(Setting { drain_grace: Duration::from_secs(3), ..Setting::default() }).await;
        let mut short = world.ssh("alice", &[]).arg("echo on; sleep 0.5; exit 9").spawn().unwrap();
        read_until(&mut short, "on").await;
        let (long, pid) = start(&world, "").await;

        world.tasks.shutdown().request();

        let output = short.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(9), "{output:?}");
        check_ended(long, &pid, "the service is stopping").await;
        assert!(world.tasks.finish(Duration::from_secs(30)).await);
    });
}

/// A session that sleeps, and its process.
async fn start(world: &World, before: &str) -> (Child, String) {
    let command = format!("{before}echo pid=$$; while true; do sleep 1000; done");
    let mut ssh = world.ssh("alice", &[]).arg(command).spawn().unwrap();
    let printed = read_until(&mut ssh, "\n").await;
    (ssh, printed.trim().trim_start_matches("pid=").to_owned())
}

/// Writes alice a short-lived certificate; tells when it ends.
fn certify_for(world: &World, life: Duration) -> wayleave_vocab::Wall {
    let valid_before = wall().after(life);
    world.write_user("alice", &world.authorities.user, &Certified { valid_before, ..Certified::default() });
    valid_before
}

async fn check_ended(ssh: Child, pid: &str, expected: &str) {
    let output = ssh.wait_with_output().await.unwrap();
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert!(
        printed.contains(&format!(
            "wayleave: the session is ended: {}",
            expected.trim_start_matches("the session is ended: ")
        )) || printed.contains(expected),
        "{printed}"
    );
    wait_until(|| !is_running(pid)).await;
}

async fn check_noted(world: &World, expected: DisconnectReason) {
    let is_noted =
        |event: &Event| matches!(event, Event::ClientDisconnect { cause, .. } if *cause == expected);
    wait_until(|| world.audit.has(is_noted)).await;
    let is_ended = |event: &Event| matches!(event, Event::SessionEnd { reason: Some(_), .. });
    wait_until(|| world.audit.has(is_ended)).await;
}
