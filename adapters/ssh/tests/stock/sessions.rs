//! Commands, shells and terminals.

use crate::harness::{block_on, cases};
use crate::world::{World, text};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use wayleave_audit::Event;

cases![
    a_command_prints_and_returns_its_code,
    a_command_killed_by_a_signal_says_so,
    input_reaches_the_command_and_its_end_too,
    bulk_goes_both_ways_unchanged,
];

fn a_command_prints_and_returns_its_code() {
    block_on(async {
        let world = World::new().await;

        let output = world.run("echo out; echo err >&2; exit 3").await;

        assert_eq!(text(&output.stdout), "out\n", "{output:?}");
        assert_eq!(text(&output.stderr), "err\n");
        assert_eq!(output.status.code(), Some(3));
        let ended = |event: &Event| matches!(event, Event::SessionEnd { exit_code: Some(3), .. });
        crate::harness::until(|| world.audit.has(ended)).await;
        assert!(world.audit.has(|event| matches!(event, Event::SessionStart { interactive: false, .. })));
        let exec = |event: &Event| matches!(event, Event::Exec { command, .. } if command.as_str().starts_with("echo out"));
        assert!(world.audit.has(exec), "{}", world.audit.text());
    });
}

fn a_command_killed_by_a_signal_says_so() {
    block_on(async {
        let world = World::new().await;

        let output = world.ssh("alice", &["-v"]).arg("kill -TERM $$").output().await.unwrap();

        assert_eq!(output.status.code(), Some(255));
        assert!(text(&output.stderr).contains("exit-signal"), "{}", text(&output.stderr));
    });
}

fn input_reaches_the_command_and_its_end_too() {
    block_on(async {
        let world = World::new().await;
        let mut ssh = world.ssh("alice", &[]).arg("wc -c").stdin(Stdio::piped()).spawn().unwrap();

        let mut stdin = ssh.stdin.take().unwrap();
        stdin.write_all(&[b'x'; 100_000]).await.unwrap();
        drop(stdin);

        let output = ssh.wait_with_output().await.unwrap();
        assert_eq!(text(&output.stdout).trim(), "100000", "{output:?}");
    });
}

fn bulk_goes_both_ways_unchanged() {
    block_on(async {
        let world = World::new().await;
        let bulk: Vec<u8> = (0..32 * 1024 * 1024_u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        let mut ssh = world.ssh("alice", &[]).arg("cat").stdin(Stdio::piped()).spawn().unwrap();

        let mut stdin = ssh.stdin.take().unwrap();
        let sent = bulk.clone();
        let (_, output) = tokio::join!(
            async move {
                stdin.write_all(&sent).await.unwrap();
                drop(stdin);
            },
            ssh.wait_with_output()
        );

        assert!(output.unwrap().stdout == bulk, "the bytes differ");
    });
}
