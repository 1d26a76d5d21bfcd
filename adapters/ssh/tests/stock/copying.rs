//! Files: sftp, scp in both protocols, rsync; and their refusal.

use crate::harness::{block_on, cases, wait_until};
use crate::sessions::{feed, pattern};
use crate::world::{Setting, World, text};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use wayleave_adapter_ssh::LocalSwitches;
use wayleave_audit::{Event, Outcome, SftpAction, SftpActionKind};
use wayleave_resource::RoleOptions;

cases![
    sftp_copies_there_and_back,
    i_an_sftp_session_that_is_cut_is_summed_up,
    scp_copies_by_both_protocols,
    rsync_copies_a_tree,
    a_role_can_forbid_file_copy,
    the_agent_can_forbid_file_copy,
    other_subsystems_are_refused,
];

fn sftp_copies_there_and_back() {
    block_on(async {
        let world = World::new().await;
        let (source, there, back) = files(&world);
        let config = world.write_config("alice");
        let batch = format!(
            "put {source} {there}\nget {there} {back}\nls -l {there}\n",
            source = source.display(),
            there = there.display(),
            back = back.display()
        );

        let mut sftp = Command::new("sftp");
        sftp.arg("-F").arg(config).args(["-b", "-", "127.0.0.1"]);
        sftp.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let output = feed(&mut sftp, batch.into_bytes()).await;

        assert!(output.status.success(), "{output:?}");
        assert!(std::fs::read(&back).unwrap() == std::fs::read(&source).unwrap());
        let is_sftp = |event: &Event| matches!(event, Event::Subsystem { outcome: Outcome::Success, .. });
        assert!(world.audit.has(is_sftp), "{}", world.audit.text());
        check_summary(&world, &there).await;
    });
}

/// One file of 5 MB went there and came back: the summary and the session's end say so.
async fn check_summary(world: &World, there: &Path) {
    let is_told = |event: &Event| match event {
        Event::SftpSummary { totals, actions, actions_omitted: 0, .. } => {
            let of = |kind| {
                let is_it = |a: &&SftpAction| a.action == kind && a.path.as_str() == there.to_str().unwrap();
                actions.iter().filter(is_it).count()
            };
            (totals.files_read, totals.files_written) == (1, 1)
                && (totals.bytes_read, totals.bytes_written) == (5_000_000, 5_000_000)
                && (of(SftpActionKind::Read), of(SftpActionKind::Write)) == (1, 1)
        }
        _ => false,
    };
    let is_counted = |event: &Event| {
        matches!(event, Event::SessionEnd { traffic: Some(t), .. }
            if t.bytes_received > 5_000_000 && t.bytes_sent > 5_000_000)
    };
    wait_until(|| world.audit.has(is_told) && world.audit.has(is_counted)).await;
}

fn i_an_sftp_session_that_is_cut_is_summed_up() {
    block_on(async {
        let world = World::new().await;
        let (source, there, _) = files(&world);
        let config = world.write_config("alice");
        let mut sftp = Command::new("sftp");
        sftp.arg("-F").arg(config).args(["-b", "-", "127.0.0.1"]).kill_on_drop(true);
        sftp.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut sftp = sftp.spawn().unwrap();
        let batch = format!("put {} {}\nrm {1}\n", source.display(), there.display());
        let input = sftp.stdin.as_mut().unwrap();
        input.write_all(batch.as_bytes()).await.unwrap();
        // It stays for more commands; the session is cut when what was asked for is done.
        wait_until(|| there.exists()).await;
        wait_until(|| !there.exists()).await;

        world.policy.publish(&[], &[]);

        let is_told = |event: &Event| {
            matches!(event, Event::SftpSummary { totals, .. }
                if totals.removed == 1 && totals.bytes_written == 5_000_000)
        };
        wait_until(|| world.audit.has(is_told)).await;
    });
}

fn scp_copies_by_both_protocols() {
    block_on(async {
        let world = World::new().await;
        let (source, there, back) = files(&world);
        for protocol in ["-s", "-O"] {
            let remote = format!("127.0.0.1:{}", there.display());

            let put = scp(&world, &[protocol, source.to_str().unwrap(), &remote]).await;
            let get = scp(&world, &[protocol, &remote, back.to_str().unwrap()]).await;

            assert!(put.status.success() && get.status.success(), "{protocol} {put:?} {get:?}");
            assert!(std::fs::read(&back).unwrap() == std::fs::read(&source).unwrap(), "{protocol}");
            std::fs::remove_file(&there).unwrap();
            std::fs::remove_file(&back).unwrap();
        }
    });
}

fn rsync_copies_a_tree() {
    block_on(async {
        let world = World::new().await;
        let config = world.write_config("alice");
        let tree = world.path("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        for (name, bytes) in [("a/one", 10), ("a/b/two", 3_000_000)] {
            std::fs::write(tree.join(name), pattern(bytes)).unwrap();
        }

        let output = Command::new("rsync")
            .arg("-a")
            .args(["-e", &format!("ssh -F {}", config.display())])
            .arg(format!("{}/", tree.display()))
            .arg(format!("127.0.0.1:{}/", world.path("copy").display()))
            .output()
            .await
            .unwrap();

        assert!(output.status.success(), "{output:?}");
        assert!(std::fs::read(world.path("copy/a/b/two")).unwrap() == pattern(3_000_000));
    });
}

fn a_role_can_forbid_file_copy() {
    let options = RoleOptions { ssh_file_copy: Some(false), ..RoleOptions::default() };
    check_refused(Setting { options, ..Setting::default() }, "your roles do not allow file copy");
}

fn the_agent_can_forbid_file_copy() {
    let switches = LocalSwitches { ssh_file_copy: false, ..LocalSwitches::default() };
    check_refused(Setting { switches, ..Setting::default() }, "this node does not allow file copy");
}

fn other_subsystems_are_refused() {
    block_on(async {
        let world = World::new().await;

        let output = world.ssh("alice", &["-s"]).arg("netconf").output().await.unwrap();

        assert_eq!(output.status.code(), Some(255), "{output:?}");
        assert!(text(&output.stderr).contains("subsystem request failed"), "{output:?}");
    });
}

fn check_refused(setting: Setting, expected: &str) {
    block_on(async {
        let world = World::with(setting).await;
        let (source, there, _) = files(&world);
        let remote = format!("127.0.0.1:{}", there.display());
        for protocol in ["-s", "-O"] {
            let output = scp(&world, &[protocol, source.to_str().unwrap(), &remote]).await;

            assert!(!output.status.success(), "{protocol}");
            assert!(text(&output.stderr).contains(expected), "{protocol} {}", text(&output.stderr));
            assert!(!there.exists());
        }
        let is_refused =
            |event: &Event| matches!(event, Event::Subsystem { outcome: Outcome::Failure { .. }, .. });
        assert!(world.audit.has(is_refused));
        assert!(world.run("true").await.status.success(), "commands are not file copy");
    });
}

/// A file with content, where it goes, and where it comes back.
fn files(world: &World) -> (PathBuf, PathBuf, PathBuf) {
    let source = world.path("source");
    std::fs::write(&source, pattern(5_000_000)).unwrap();
    (source, world.path("there"), world.path("back"))
}

async fn scp(world: &World, arguments: &[&str]) -> Output {
    let config = world.write_config("alice");
    Command::new("scp").arg("-F").arg(config).args(arguments).output().await.unwrap()
}
