//! Who is let in, who is not, and what each may know.

use crate::harness::{block_on, cases, wait_until};
use crate::world::{Certified, Setting, World, lock, new_key, own_login, role, text, wall};
use std::num::NonZeroU32;
use std::time::Duration;
use wayleave_audit::Event;
use wayleave_resource::RoleOptions;
use wayleave_ssh::{CertType, Options};

cases![
    d_certificates_that_are_wrong_let_nobody_in,
    d_a_key_without_certificate_lets_nobody_in,
    d_a_certificate_bound_to_the_right_address_is_taken,
    d_certificates_of_an_authority_that_is_gone_are_refused,
    a_login_that_no_role_allows_is_denied_with_a_reason,
    a_lock_keeps_out_with_its_message,
    nobody_is_let_in_without_a_policy,
    i_nothing_runs_that_cannot_be_audited,
    the_role_says_how_many_connections,
    a_later_key_may_be_tried_after_a_foreign_one,
    a_silent_client_is_cut,
    o_a_proxy_that_lies_about_the_user_gains_nothing,
];

fn d_certificates_that_are_wrong_let_nobody_in() {
    let day = Duration::from_secs(86_400);
    let critical = |name: &str, value: &str| Options::from([(name.to_owned(), value.to_owned())]);
    let plain = Certified::default;
    let table = [
        ("host certificate", Certified { kind: CertType::Host, ..plain() }, "Permission denied"),
        (
            "expired",
            Certified { valid_before: wall().before(day), ..plain() },
            "your certificate has expired",
        ),
        (
            "not yet valid",
            Certified { valid_after: wall().after(day), valid_before: wall().after(day * 2), ..plain() },
            "not valid yet",
        ),
        (
            "other login",
            Certified { principals: vec!["somebody".to_owned()], ..plain() },
            "does not name this login",
        ),
        ("no login", Certified { principals: vec![], ..plain() }, "Permission denied"),
        ("other cluster", Certified { cluster: "other", ..plain() }, "Permission denied"),
        ("no identity", Certified { has_identity: false, ..plain() }, "Permission denied"),
        (
            "unknown option",
            Certified { critical_options: critical("frobnicate@example.com", ""), ..plain() },
            "Permission denied",
        ),
        (
            "forced command",
            Certified { critical_options: critical("force-command", "/bin/true"), ..plain() },
            "Permission denied",
        ),
        (
            "other address",
            Certified { critical_options: critical("source-address", "192.0.2.0/24"), ..plain() },
            "not for your address",
        ),
        (
            "broken address",
            Certified { critical_options: critical("source-address", "127.0.0.1/x"), ..plain() },
            "Permission denied",
        ),
        ("unknown role", Certified { roles: &["access", "gone"], ..plain() }, "your roles have changed"),
        ("no role", Certified { roles: &[], ..plain() }, "access denied: alice as"),
    ];
    block_on(async {
        let world = World::new().await;
        for (what, certified, expected) in table {
            world.write_user("wrong", &world.authorities.user, &certified);
            check_refused(&world, "wrong", what, expected).await;
        }
        world.write_user("wrong", &new_key(), &Certified::default());
        check_refused(&world, "wrong", "other authority", "Permission denied").await;
        world.write_user("wrong", &world.authorities.host, &Certified::default());
        check_refused(&world, "wrong", "host authority", "Permission denied").await;
    });
}

fn d_a_key_without_certificate_lets_nobody_in() {
    block_on(async {
        let world = World::new().await;
        std::fs::remove_file(world.path("alice-cert.pub")).unwrap();

        check_refused(&world, "alice", "no certificate", "Permission denied").await;
    });
}

fn d_a_certificate_bound_to_the_right_address_is_taken() {
    block_on(async {
        let world = World::new().await;
        let critical_options = Options::from([("source-address".to_owned(), "127.0.0.0/8".to_owned())]);
        world.write_user(
            "alice",
            &world.authorities.user,
            &Certified { critical_options, ..Certified::default() },
        );

        assert!(world.run("true").await.status.success());
    });
}

fn d_certificates_of_an_authority_that_is_gone_are_refused() {
    block_on(async {
        let world = World::new().await;
        let other = World::new().await;
        std::fs::copy(other.path("alice"), world.path("stranger")).unwrap();
        std::fs::copy(other.path("alice-cert.pub"), world.path("stranger-cert.pub")).unwrap();

        check_refused(&world, "stranger", "another cluster's", "Permission denied").await;
    });
}

fn a_login_that_no_role_allows_is_denied_with_a_reason() {
    block_on(async {
        let world = World::new().await;
        let principals = vec![own_login(), "daemon".to_owned()];
        world.write_user("alice", &world.authorities.user, &Certified { principals, ..Certified::default() });

        let output = world.ssh("alice", &["-l", "daemon"]).arg("true").output().await.unwrap();

        assert_eq!(output.status.code(), Some(255));
        assert!(text(&output.stderr).contains("access denied: alice as daemon on node"), "{output:?}");
        let is_noted = |event: &Event| matches!(event, Event::SessionRejected { user, login, reason, .. } if user.as_str() == "alice" && login.as_str() == "daemon" && reason.as_str().contains("none with this login"));
        assert!(world.audit.has(is_noted), "{}", world.audit.text());
    });
}

fn a_lock_keeps_out_with_its_message() {
    block_on(async {
        let world = World::new().await;
        let roles = [role("access", RoleOptions::default())];
        world.policy.publish(&roles, &[lock("alice", "call\u{1b}[2J the office")]);

        check_refused(&world, "alice", "locked", "access is locked: call [2J the office").await;
    });
}

fn nobody_is_let_in_without_a_policy() {
    block_on(async {
        let world = World::new().await;
        world.policy.withdraw();

        check_refused(&world, "alice", "no policy", "no policy yet").await;
    });
}

fn i_nothing_runs_that_cannot_be_audited() {
    block_on(async {
        let world = World::new().await;
        let proof = world.path("proof");
        world.audit.fail();

        let output = world.run(&format!("touch {}", proof.display())).await;
        let forward = world.ssh("alice", &["-W", "127.0.0.1:1"]).output().await.unwrap();

        assert_eq!(output.status.code(), Some(255), "{output:?}");
        assert!(!proof.exists());
        assert!(text(&forward.stderr).contains("cannot write its audit log"), "{forward:?}");
    });
}

fn the_role_says_how_many_connections() {
    block_on(async {
        let options = RoleOptions { max_connections: NonZeroU32::new(1), ..RoleOptions::default() };
        let world = World::with(Setting { options, ..Setting::default() }).await;
        let mut first = world.ssh("alice", &[]).arg("echo on; exec sleep 1000").spawn().unwrap();
        crate::sessions::read_until(&mut first, "on").await;

        check_refused(&world, "alice", "second connection", "1 connections are open").await;

        first.kill().await.unwrap();
        while !world.run("true").await.status.success() {}
    });
}

fn a_later_key_may_be_tried_after_a_foreign_one() {
    block_on(async {
        let world = World::new().await;
        world.write_user("foreign", &new_key(), &Certified::default());
        let first = [
            "-o".to_owned(),
            format!("IdentityFile={}", world.path("foreign").display()),
            "-o".to_owned(),
            format!("CertificateFile={}", world.path("foreign-cert.pub").display()),
        ];
        let first: Vec<&str> = first.iter().map(String::as_str).collect();

        let output = world.ssh("alice", &first).arg("echo in").output().await.unwrap();

        assert_eq!(text(&output.stdout), "in\n", "{output:?}");
    });
}

fn a_silent_client_is_cut() {
    block_on(async {
        use tokio::io::AsyncReadExt;
        let world = World::new().await;
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();

        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();

        assert!(said.starts_with(b"SSH-2.0-"));
    });
}

/// Every field of the dial request says something else than the truth.
fn o_a_proxy_that_lies_about_the_user_gains_nothing() {
    use wayleave_net::{Adapter, Inbound};
    block_on(async {
        let world = World::new().await;
        let certified = Certified { name: "mallory", roles: &[], ..Certified::default() };
        world.write_user("mallory", &world.authorities.user, &certified);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = format!("Port={}", listener.local_addr().unwrap().port());
        let adapter = world.adapter.clone();
        world.tasks.spawn("lying proxy", async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut request = crate::world::dial_request("192.0.2.7:22".parse().unwrap());
            request.target = wayleave_dial::DialTarget::Ssh { node: "alice".parse().unwrap() };
            request.from_peer = true;
            request.report_route = true;
            let inbound = Inbound { stream: Box::new(stream), request, resumption: None };
            adapter.serve(inbound, wayleave_runtime::Shutdown::new()).await;
        });

        let output = world.ssh("mallory", &["-o", &port]).arg("echo in").output().await.unwrap();

        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains("access denied: mallory as"), "{output:?}");
        let mut elsewhere = crate::world::dial_request(world.address);
        elsewhere.host_id = Some(wayleave_vocab::HostId::from_random([9; 16]));
        assert!(!world.adapter.serves(&elsewhere), "another host's streams are not served");
    });
}

async fn check_refused(world: &World, user: &str, what: &str, expected: &str) {
    let output = world.ssh(user, &[]).arg("echo in").output().await.unwrap();
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255), "{what}: {output:?}");
    assert!(output.stdout.is_empty(), "{what}");
    assert!(printed.contains(expected), "{what}: {printed}");
    // What is no user certificate never gets as far as being judged.
    if !["no certificate", "host certificate"].contains(&what) {
        let is_noted =
            |event: &Event| matches!(event, Event::AuthAttempt { .. } | Event::SessionRejected { .. });
        wait_until(|| world.audit.has(is_noted)).await;
    }
}
