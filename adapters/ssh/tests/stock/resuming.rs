//! Connections whose stream may be lost and come back: what others try with such a stream is no act of its user.

use crate::harness::{block_on, cases, wait_until};
use crate::sessions::read_until;
use crate::world::{World, cluster, dial_request, role, wall};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use wayleave_audit::{Event, Outcome};
use wayleave_identity::UserPrincipal;
use wayleave_net::{Adapter, Inbound, ResumptionEvent};
use wayleave_resource::RoleOptions;
use wayleave_vocab::{Login, RoleName, UserName};

/// More than end a connection whose own client asks for what is refused.
const GUESSES: usize = 100;

cases![
    n_guesses_of_strangers_end_no_session_and_fill_no_journal,
    e_whoever_comes_back_is_judged_by_what_his_certificate_says_now,
];

fn n_guesses_of_strangers_end_no_session_and_fill_no_journal() {
    block_on(async {
        let world = World::new().await;
        let (mut ssh, events) = start(&world).await;

        for _ in 0..GUESSES {
            let reason = "the proof is not by the secret of this stream, or is an old one".to_owned();
            events.send(ResumptionEvent::Refused { user: None, client_address: None, reason }).await.unwrap();
        }
        // Answered behind all of them.
        assert_eq!(answer(&events, principal("alice", "access")).await, Ok(()));

        ssh.stdin.as_mut().unwrap().write_all(b"still here\n").await.unwrap();
        read_until(&mut ssh, "still here").await;
        wait_until(|| world.audit.has(is_failed)).await;
        let noted = world.audit.count(is_failed);
        assert!(noted < GUESSES, "{noted} of {GUESSES} were noted");
    });
}

fn e_whoever_comes_back_is_judged_by_what_his_certificate_says_now() {
    block_on(async {
        let world = World::new().await;
        let brief = RoleOptions { max_detached: Some("0s".parse().unwrap()), ..RoleOptions::default() };
        let roles = [role("access", RoleOptions::default()), role("brief", brief), elsewhere()];
        world.policy.publish(&roles, &[]);
        let (mut ssh, events) = start(&world).await;
        let expired = UserPrincipal { not_after: wall(), ..principal("alice", "access") };
        let others = [
            ("another user", principal("bob", "access")),
            ("no resumption", principal("alice", "brief")),
            ("no such node", principal("alice", "elsewhere")),
            ("a role that is gone", principal("alice", "gone")),
            ("expired", expired),
        ];
        for (what, user) in others {
            assert!(answer(&events, user).await.is_err(), "{what}");
        }
        assert_eq!(answer(&events, principal("alice", "access")).await, Ok(()));
        ssh.stdin.as_mut().unwrap().write_all(b"still here\n").await.unwrap();
        read_until(&mut ssh, "still here").await;
    });
}

/// A role that enters no node here.
fn elsewhere() -> wayleave_resource::Role {
    let mut elsewhere = role("elsewhere", RoleOptions::default());
    elsewhere.spec.allow.node_labels = [("env".to_owned(), vec!["lab".to_owned()])].into();
    elsewhere
}

fn is_failed(event: &Event) -> bool {
    matches!(event, Event::Resumption { outcome: Outcome::Failure { .. }, .. })
}

fn principal(name: &str, role: &str) -> UserPrincipal {
    UserPrincipal {
        name: UserName::parse(name).unwrap(),
        cluster: cluster(),
        roles: [RoleName::parse(role).unwrap()].into(),
        logins: [Login::parse(crate::world::own_login()).unwrap()].into(),
        traits: Default::default(),
        local_admin: false,
        not_after: wall().after(Duration::from_secs(3600)),
    }
}

/// What the node says to somebody who is back.
async fn answer(events: &mpsc::Sender<ResumptionEvent>, user: UserPrincipal) -> Result<(), String> {
    let (answer, answered) = oneshot::channel();
    events.send(ResumptionEvent::Reattach { user, client_address: None, answer }).await.unwrap();
    answered.await.unwrap()
}

/// A session that sends back what it is sent, on a connection of which the test tells what happens.
async fn start(world: &World) -> (Child, mpsc::Sender<ResumptionEvent>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("Port={}", listener.local_addr().unwrap().port());
    let (sender, events) = mpsc::channel(16);
    let (adapter, shutdown) = (Arc::clone(&world.adapter), world.tasks.shutdown());
    world.tasks.spawn("agent", async move {
        let (stream, client) = listener.accept().await.unwrap();
        let inbound =
            Inbound { stream: Box::new(stream), request: dial_request(client), resumption: Some(events) };
        adapter.serve(inbound, shutdown).await;
    });
    let mut ssh = world.ssh("alice", &["-o", &port]);
    let mut ssh = ssh.arg("echo begun; cat").stdin(Stdio::piped()).spawn().unwrap();
    read_until(&mut ssh, "begun").await;
    (ssh, sender)
}
