//! Two users of one node: neither touches what the other has forwarded.

use crate::forwarding::{Agent, allocated_port, check_echo, echo_server, forward};
use crate::harness::{block_on, cases};
use crate::world::{Certified, World, text};
use tokio::net::{TcpStream, UnixStream};

cases![
    k_a_port_that_one_user_forwards_is_not_anothers,
    k_a_socket_that_one_user_forwards_is_not_anothers,
    k_an_agent_that_one_user_forwards_is_closed_to_others,
];

/// A world with a second user, who enters the same account.
async fn shared_world() -> World {
    let world = World::new().await;
    world.write_user("bob", &world.authorities.user, &Certified { name: "bob", ..Certified::default() });
    world
}

fn k_a_port_that_one_user_forwards_is_not_anothers() {
    block_on(async {
        let world = shared_world().await;
        let target = echo_server(&world).await;
        let mut alice = world.ssh("alice", &["-N", "-R", &format!("0:127.0.0.1:{target}")]).spawn().unwrap();
        let port = allocated_port(&mut alice).await;

        let theft = format!("{port}:127.0.0.1:1");
        let refused =
            world.ssh("bob", &["-N", "-o", "ExitOnForwardFailure=yes", "-R", &theft]).output().await.unwrap();
        assert!(text(&refused.stderr).contains("remote port forwarding failed"), "{refused:?}");
        // Neither what he is refused nor what he ends is hers.
        assert!(world.ssh("bob", &[]).arg("true").status().await.unwrap().success());

        check_echo(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
    });
}

fn k_a_socket_that_one_user_forwards_is_not_anothers() {
    block_on(async {
        let world = shared_world().await;
        let target = echo_server(&world).await;
        let remote = world.path("remote");
        let spec = format!("{}:127.0.0.1:{target}", remote.display());
        let _alice = forward(&world, &["-R", &spec], &remote).await;

        let theft = format!("{}:127.0.0.1:1", remote.display());
        let refused =
            world.ssh("bob", &["-N", "-o", "ExitOnForwardFailure=yes", "-R", &theft]).output().await.unwrap();
        assert!(!refused.status.success(), "{refused:?}");

        check_echo(UnixStream::connect(&remote).await.unwrap()).await;
    });
}

fn k_an_agent_that_one_user_forwards_is_closed_to_others() {
    block_on(async {
        let world = shared_world().await;
        let agent = Agent::start(&world).await;
        let option = format!("IdentityAgent={}", agent.socket);
        let look = "stat -c '%a %u' \"$(dirname \"$SSH_AUTH_SOCK\")\"; id -u";

        let output = world.ssh("alice", &["-A", "-o", &option]).arg(look).output().await.unwrap();

        let seen = text(&output.stdout);
        let (directory, own) = seen.trim_end().split_once('\n').unwrap();
        assert_eq!(directory, format!("700 {own}"), "{output:?}");
    });
}
