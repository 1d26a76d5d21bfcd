//! Stock programs that bring their own protocol, over a child instead of over SSH: this program stands in for
//! `ssh` when it is started by that name.

use crate::harness::{cases, launcher, open_directory, other_account, own_account, path_text, printed, spec};
use std::path::Path;
use std::process::{Command, Stdio};
use wayleave_os::{ChildStreams, Exit, Work};

cases![
    scp_copies_by_sftp,
    scp_copies_by_its_old_protocol,
    rsync_copies_where_it_is_installed,
    h_a_hostile_environment_of_the_agent_reaches_nobody,
];

/// What this program is called when it stands in for `ssh`.
const STAND_IN: &str = "stand-in-for-ssh";

/// Whether this process was started in place of `ssh`.
pub(crate) fn stands_in() -> bool {
    std::env::args().next().is_some_and(|name| name.ends_with(STAND_IN))
}

/// Runs what the client asks `ssh` to run, as the other user. Options with a value come glued or with `-l`.
pub(crate) fn stand_in() -> ! {
    // rsync hands over streams that do not block, which the real ssh is prepared for.
    rustix::io::ioctl_fionbio(rustix::stdio::stdin(), false).unwrap();
    rustix::io::ioctl_fionbio(rustix::stdio::stdout(), false).unwrap();
    let mut arguments = std::env::args().skip(1).peekable();
    let mut is_subsystem = false;
    while let Some(option) = arguments.next_if(|argument| argument.starts_with('-')) {
        is_subsystem |= option == "-s";
        if option == "-l" || option == "-o" {
            arguments.next();
        }
    }
    let _host = arguments.next();
    let command = arguments.collect::<Vec<_>>().join(" ");
    let work = if is_subsystem { Work::Sftp } else { Work::Exec { command: command.into(), terminal: None } };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let exit = runtime.block_on(async {
        let (mut child, streams) = launcher().spawn(spec(other_account(), work)).await.unwrap();
        let ChildStreams::Pipes { mut stdin, mut stdout, mut stderr } = streams else { panic!("no pipes") };
        let (mut from, mut to, mut errors) = (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
        let upward = async {
            let _child_is_gone = tokio::io::copy(&mut from, &mut stdin).await;
            drop(stdin);
            std::future::pending::<()>().await;
        };
        let downward = async {
            let (output, error) = tokio::join!(
                tokio::io::copy(&mut stdout, &mut to),
                tokio::io::copy(&mut stderr, &mut errors)
            );
            (output.unwrap(), error.unwrap())
        };
        tokio::select! { () = upward => {}, _ = downward => {} }
        child.wait().await.unwrap()
    });
    std::process::exit(match exit {
        Exit::Code(code) => i32::try_from(code).unwrap(),
        Exit::Signal { .. } => 255,
    })
}

/// Prints the environment of a child; started with an environment of its own.
pub(crate) fn print_environment() {
    print!("{}", printed(own_account(), "exec cat /proc/self/environ"));
}

/// Copies a tree there and back by a program that is given the stand-in and the two ends.
fn check_copies(program: &[&str], shell_option: &str) {
    let account = other_account();
    let (here, there) = (open_directory(), open_directory());
    std::os::unix::fs::chown(there.path(), Some(account.uid()), Some(account.gid())).unwrap();
    let stand_in = here.path().join(STAND_IN);
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &stand_in).unwrap();
    let tree = here.path().join("tree");
    std::fs::create_dir_all(tree.join("a b/c")).unwrap();
    let content: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(tree.join("a b/c/large"), &content).unwrap();
    std::fs::write(tree.join("empty"), "").unwrap();
    let remote = format!("host:{}", path_text(&there.path().join("copy")));
    let local = path_text(&here.path().join("back"));

    for (from, to) in [(path_text(&tree), remote.clone()), (remote, local)] {
        let (name, options) = program.split_first().unwrap();
        let output = Command::new("timeout")
            .args(["60", name])
            .args(options)
            .args([shell_option, &path_text(&stand_in), &from, &to])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{from} {to}: {}", String::from_utf8_lossy(&output.stderr));
    }

    let large =
        ["back/a b/c/large", "back/tree/a b/c/large", "back/copy/a b/c/large", "back/copy/tree/a b/c/large"]
            .into_iter()
            .find_map(|name| std::fs::read(here.path().join(name)).ok())
            .unwrap_or_else(|| panic!("nothing came back"));
    assert!(large == content);
}

fn scp_copies_by_sftp() {
    check_copies(&["scp", "-r", "-q", "-s"], "-S");
}

fn scp_copies_by_its_old_protocol() {
    check_copies(&["scp", "-r", "-q", "-O"], "-S");
}

fn rsync_copies_where_it_is_installed() {
    if Path::new("/usr/bin/rsync").exists() {
        check_copies(&["rsync", "-rz"], "-e");
    }
}

fn h_a_hostile_environment_of_the_agent_reaches_nobody() {
    let hostile = [
        ("LD_PRELOAD", "/no/such/library.so"),
        ("LD_LIBRARY_PATH", "/tmp"),
        ("BASH_ENV", "/tmp/x"),
        ("ENV", "/tmp/x"),
        ("PATH", "/tmp"),
        ("IFS", "x"),
        ("CANARY", "of-the-agent"),
    ];

    let output = Command::new(std::env::current_exe().unwrap())
        .arg(crate::PRINT_ARGUMENT)
        .env_clear()
        .envs(hostile)
        .output();

    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = text.split('\0').filter_map(|pair| pair.split('=').next()).collect();
    for (name, value) in hostile {
        assert!(name == "PATH" || !names.contains(&name), "{name}: {text}");
        assert!(!text.split('\0').any(|pair| pair == format!("{name}={value}")), "{text}");
    }
}
