//! The process that children come from: whose children they are, and what happens when it goes or nobody waits.

use crate::harness::{block_on, cases, exec, launcher, own_account, printed, spec, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};
use tokio::io::AsyncReadExt;
use wayleave_os::{CHILD_ARGUMENT, ChildStreams, Exit};

cases![
    a_child_is_the_daemons_own,
    what_forks_has_none_of_the_daemons_descriptors,
    what_forks_may_be_killed_and_children_go_on,
    signals_to_the_daemons_group_leave_what_forks_alone,
    who_does_not_wait_leaves_no_process,
];

/// Children of this process: id, state, command line.
fn children() -> Vec<(i32, char, String)> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?.chars().next()?;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            (fields.next()? == own).then(|| (pid, state, String::from_utf8_lossy(&line).into_owned()))
        })
        .collect()
}

/// The process that forks. It is the only one before a child is made.
fn nursery() -> i32 {
    let found =
        children().into_iter().find(|(_, state, line)| *state != 'Z' && line.contains(CHILD_ARGUMENT));
    found.expect("it runs").0
}

fn a_child_is_the_daemons_own() {
    assert_eq!(printed(own_account(), "echo $PPID").trim(), std::process::id().to_string());
}

fn what_forks_has_none_of_the_daemons_descriptors() {
    block_on(async {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let launcher = launcher();
        let (mut child, _streams) = launcher.spawn(spec(own_account(), exec("true"))).await.unwrap();
        child.wait().await.unwrap();
        let open = std::fs::read_dir(format!("/proc/{}/fd", nursery())).unwrap().count();
        assert_eq!(open, 4, "three standard streams and the control socket");
    });
}

fn what_forks_may_be_killed_and_children_go_on() {
    block_on(async {
        let launcher = launcher();
        let (mut first, streams) = launcher.spawn(spec(own_account(), exec("cat; exit 7"))).await.unwrap();
        kill(Pid::from_raw(nursery()), Signal::SIGKILL).unwrap();

        let (mut second, _) = launcher.spawn(spec(own_account(), exec("exit 8"))).await.unwrap();

        assert_eq!(second.wait().await.unwrap(), Exit::Code(8));
        drop(streams);
        assert_eq!(first.wait().await.unwrap(), Exit::Code(7));
    });
}

fn signals_to_the_daemons_group_leave_what_forks_alone() {
    block_on(async {
        let launcher = launcher();
        let (mut child, _streams) = launcher.spawn(spec(own_account(), exec("true"))).await.unwrap();
        child.wait().await.unwrap();
        let forks = nursery();
        let group = nix::unistd::getpgid(Some(Pid::from_raw(forks))).unwrap();
        assert_ne!(group, nix::unistd::getpgrp());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            kill(Pid::from_raw(forks), signal).unwrap();
        }

        let command = exec("kill -TERM $$; echo deaf");
        let (mut child, _streams) = launcher.spawn(spec(own_account(), command)).await.unwrap();

        assert_eq!(child.wait().await.unwrap(), Exit::Signal { name: "TERM".to_owned(), core_dumped: false });
        assert_eq!(nursery(), forks);
    });
}

fn who_does_not_wait_leaves_no_process() {
    block_on(async {
        let launcher = launcher();
        for _ in 0..5 {
            let mut context = Context::from_waker(Waker::noop());
            let mut given_up = pin!(launcher.spawn(spec(own_account(), exec("exec sleep 600"))));
            // As far as it gets without waiting.
            assert!(given_up.as_mut().poll(&mut context).is_pending());
        }
        let (mut child, streams) = launcher.spawn(spec(own_account(), exec("echo mine"))).await.unwrap();
        let ChildStreams::Pipes { mut stdout, .. } = streams else { panic!("no pipes") };
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), child.wait().await.unwrap()), ("mine\n", Exit::Code(0)));
        let forks = nursery();
        until(|| children().iter().all(|(pid, ..)| *pid == forks)).await;
    });
}
