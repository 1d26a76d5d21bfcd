//! Commands, shells, terminals, and many of them on one connection.

use crate::harness::{block_on, cases, wait_until};
use crate::world::{Setting, World, own_login, text};
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use wayleave_audit::Event;
use wayleave_resource::RoleOptions;

cases![
    a_command_prints_and_returns_its_code,
    a_command_killed_by_a_signal_says_so,
    input_reaches_the_command_and_its_end_too,
    bulk_goes_both_ways_unchanged,
    a_shell_without_a_terminal_reads_commands,
    a_terminal_is_a_real_one,
    a_client_sets_only_what_shows_text,
    ten_channels_share_a_connection_and_an_eleventh_is_refused,
    the_role_says_how_many_sessions,
    f_an_unread_channel_delays_no_other,
    f_a_channel_that_the_program_does_not_read_delays_no_other,
    a_client_that_goes_away_takes_its_processes_along,
    an_account_that_is_not_there_is_said_so,
    output_after_the_end_of_the_program_is_not_lost,
];

fn a_command_prints_and_returns_its_code() {
    block_on(async {
        let world = World::new().await;

        let output = world.run("echo out; echo err >&2; exit 3").await;

        assert_eq!(text(&output.stdout), "out\n", "{output:?}");
        assert_eq!(text(&output.stderr), "err\n");
        assert_eq!(output.status.code(), Some(3));
        let ended = |event: &Event| matches!(event, Event::SessionEnd { exit_code: Some(3), .. });
        wait_until(|| world.audit.has(ended)).await;
        assert!(world.audit.has(|event| matches!(event, Event::SessionStart { interactive: false, .. })));
        let is_exec = |event: &Event| matches!(event, Event::Exec { command, .. } if command.as_str().starts_with("echo out"));
        assert!(world.audit.has(is_exec), "{}", world.audit.text());
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

        let output = feed(world.ssh("alice", &[]).arg("wc -c"), vec![b'x'; 100_000]).await;

        assert_eq!(text(&output.stdout).trim(), "100000", "{output:?}");
    });
}

fn bulk_goes_both_ways_unchanged() {
    block_on(async {
        let world = World::new().await;
        let bulk = pattern(32 * 1024 * 1024);

        let output = feed(world.ssh("alice", &[]).arg("cat"), bulk.clone()).await;

        assert!(output.stdout == bulk, "the bytes differ");
    });
}

fn a_shell_without_a_terminal_reads_commands() {
    block_on(async {
        let world = World::new().await;

        let output = feed(&mut world.ssh("alice", &["-T"]), b"echo shell; tty; exit 4\n".to_vec()).await;

        assert!(text(&output.stdout).contains("shell\nnot a tty"), "{output:?}");
        assert_eq!(output.status.code(), Some(4));
    });
}

/// Driven by a terminal emulator: size, its change, the interrupt key, the exit code.
fn a_terminal_is_a_real_one() {
    block_on(async {
        let world = World::new().await;
        let config = world.write_config("alice");
        let tmux = Tmux::start(
            &world.path("tmux"),
            &format!("ssh -F {} -tt 127.0.0.1; echo code=$?; cat", config.display()),
        )
        .await;

        tmux.type_until("stty size; echo term=$TERM tty=$SSH_TTY", "tty=/dev/pts/").await;
        tmux.wait_shown("30 100").await;
        tmux.command(&["resize-window", "-x", "120", "-y", "40"]).await;
        tmux.type_until("stty size", "40 120").await;
        tmux.type_until("echo going to $((40+1)); sleep 1000; echo slept", "going to 41").await;
        tmux.command(&["send-keys", "C-c"]).await;
        tmux.wait_shown("^C").await;
        tmux.type_until("echo after $((40+2))", "after 42").await;
        tmux.type_until("exit 5", "code=5").await;

        assert!(world.audit.has(|event| matches!(event, Event::SessionStart { interactive: true, .. })));
    });
}

fn a_client_sets_only_what_shows_text() {
    block_on(async {
        let world = World::new().await;
        let set = ["-o", "SetEnv=LC_TEST=yes LD_PRELOAD=/tmp/x BASH_ENV=/tmp/y"];

        let output = world.ssh("alice", &set).arg("env").output().await.unwrap();

        let printed = text(&output.stdout);
        assert!(printed.contains("LC_TEST=yes\n"), "{printed}");
        assert!(!printed.contains("LD_PRELOAD") && !printed.contains("BASH_ENV"), "{printed}");
        assert!(printed.contains(&format!("USER={}\n", own_login())), "{printed}");
        assert!(printed.contains("SSH_CONNECTION=127.0.0.1 "), "{printed}");
    });
}

fn ten_channels_share_a_connection_and_an_eleventh_is_refused() {
    block_on(async {
        let world = World::new().await;
        let master = Master::start(&world).await;
        let mut running = Vec::new();
        for number in 0..10 {
            let mut ssh =
                master.ssh(&world).arg(format!("echo {number}; cat")).stdin(Stdio::piped()).spawn().unwrap();
            read_until(&mut ssh, &number.to_string()).await;
            running.push(ssh);
        }

        let eleventh = master.ssh(&world).arg("true").output().await.unwrap();

        // Stock ssh then opens a connection of its own.
        assert!(text(&eleventh.stderr).contains("refused by peer"), "{eleventh:?}");
        check_noted(&world, "10 sessions are open").await;
        for mut ssh in running {
            drop(ssh.stdin.take());
            let output = ssh.wait_with_output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let next = master.ssh(&world).arg("true").output().await.unwrap();
        assert!(next.stderr.is_empty(), "there is room again: {next:?}");
    });
}

fn the_role_says_how_many_sessions() {
    block_on(async {
        let options = RoleOptions { max_sessions: std::num::NonZeroU32::new(1), ..RoleOptions::default() };
        let world = World::with(Setting { options, ..Setting::default() }).await;
        let master = Master::start(&world).await;
        let mut first = master.ssh(&world).arg("echo on; cat").stdin(Stdio::piped()).spawn().unwrap();
        read_until(&mut first, "on").await;

        let second = master.ssh(&world).arg("true").output().await.unwrap();

        assert!(text(&second.stderr).contains("refused by peer"), "{second:?}");
        check_noted(&world, "1 sessions are open").await;
    });
}

fn f_an_unread_channel_delays_no_other() {
    block_on(async {
        let world = World::new().await;
        let master = Master::start(&world).await;
        let unread = master.ssh(&world).arg("head -c 67108864 /dev/zero").spawn().unwrap();

        for _ in 0..3 {
            let output = feed(master.ssh(&world).arg("cat"), pattern(8 * 1024 * 1024)).await;
            assert_eq!(output.stdout.len(), 8 * 1024 * 1024);
        }

        let output = unread.wait_with_output().await.unwrap();
        assert_eq!(output.stdout.len(), 67_108_864, "and it is all there when somebody reads");
    });
}

fn f_a_channel_that_the_program_does_not_read_delays_no_other() {
    block_on(async {
        let world = World::new().await;
        let master = Master::start(&world).await;
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let mut stuck =
            master.ssh(&world).arg("echo on; exec sleep 1000").stdin(Stdio::from(zero)).spawn().unwrap();
        read_until(&mut stuck, "on").await;

        for _ in 0..3 {
            let output = feed(master.ssh(&world).arg("cat"), pattern(8 * 1024 * 1024)).await;
            assert_eq!(output.stdout.len(), 8 * 1024 * 1024);
        }
    });
}

fn a_client_that_goes_away_takes_its_processes_along() {
    block_on(async {
        let world = World::new().await;
        let mut ssh = world.ssh("alice", &[]).arg("echo pid=$$; exec sleep 1000").spawn().unwrap();
        let printed = read_until(&mut ssh, "\n").await;
        let pid = printed.trim().trim_start_matches("pid=").to_owned();

        ssh.kill().await.unwrap();

        wait_until(|| !is_running(&pid)).await;
        let ended = |event: &Event| matches!(event, Event::SessionEnd { reason: Some(reason), .. } if reason.as_str().contains("disconnected"));
        wait_until(|| world.audit.has(ended)).await;
    });
}

fn an_account_that_is_not_there_is_said_so() {
    block_on(async {
        let world = World::new().await;
        let mut role = crate::world::role("access", RoleOptions::default());
        role.spec.allow.logins.push("no-such-login".to_owned());
        world.policy.publish(&[role], &[]);
        let certified = crate::world::Certified {
            principals: vec!["no-such-login".to_owned()],
            ..crate::world::Certified::default()
        };
        world.write_user("bob", &world.authorities.user, &certified);

        let output = world.ssh("bob", &["-l", "no-such-login"]).arg("true").output().await.unwrap();

        let printed = text(&output.stderr);
        assert!(printed.contains("this machine has no login no-such-login"), "{printed}");
    });
}

fn output_after_the_end_of_the_program_is_not_lost() {
    block_on(async {
        let world = World::new().await;

        let output = world.run("(sleep 0.3; echo late) & echo early; exit 6").await;

        assert_eq!(text(&output.stdout), "early\nlate\n");
        assert_eq!(output.status.code(), Some(6));
    });
}

/// A refused session is in the audit log.
async fn check_noted(world: &World, expected: &str) {
    let is_noted = |event: &Event| matches!(event, Event::SessionRejected { reason, .. } if reason.as_str().contains(expected));
    wait_until(|| world.audit.has(is_noted)).await;
}

/// A connection that other clients share.
pub(crate) struct Master {
    socket: String,
    _ssh: Child,
}

impl Master {
    pub(crate) async fn start(world: &World) -> Self {
        let path = world.path("master");
        let socket = path.display().to_string();
        let ssh = world.ssh("alice", &["-M", "-S", &socket, "-N"]).spawn().unwrap();
        wait_until(|| path.exists()).await;
        Self { socket, _ssh: ssh }
    }

    pub(crate) fn ssh(&self, world: &World) -> Command {
        world.ssh("alice", &["-S", &self.socket])
    }
}

/// Writes to a program and reads all it says.
pub(crate) async fn feed(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = async move {
        // The program need not read it all.
        let _unread = stdin.write_all(&input).await;
        drop(stdin);
    };
    tokio::join!(writing, child.wait_with_output()).1.unwrap()
}

/// Reads what a program prints until a mark.
pub(crate) async fn read_until(child: &mut Child, mark: &str) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut printed = String::new();
    while !printed.contains(mark) {
        let mut byte = [0];
        assert_ne!(stdout.read(&mut byte).await.unwrap(), 0, "it ended before {mark:?}: {printed:?}");
        printed.push(char::from(byte[0]));
    }
    printed
}

/// Whether a process runs (a zombie does not).
pub(crate) fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

/// Bytes that differ at every position, so that loss and repetition show.
pub(crate) fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

/// A terminal emulator with one pane. Killed with the test.
struct Tmux {
    socket: String,
}

impl Tmux {
    async fn start(socket: &Path, command: &str) -> Self {
        let tmux = Self { socket: socket.display().to_string() };
        tmux.command(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "31", command]).await;
        tmux.command(&["set-option", "status", "off"]).await;
        tmux.command(&["resize-window", "-x", "100", "-y", "30"]).await;
        tmux
    }

    async fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-S", &self.socket]).args(arguments).output().await.unwrap();
        assert!(output.status.success(), "{arguments:?} {output:?}");
        text(&output.stdout)
    }

    /// Types a line, again when a shell that was just starting dropped it, until something is shown.
    async fn type_until(&self, line: &str, wanted: &str) {
        loop {
            self.command(&["send-keys", "-l", line]).await;
            self.command(&["send-keys", "Enter"]).await;
            let patience = std::time::Duration::from_secs(5);
            if tokio::time::timeout(patience, self.wait_shown(wanted)).await.is_ok() {
                return;
            }
        }
    }

    async fn wait_shown(&self, wanted: &str) {
        while !self.command(&["capture-pane", "-p", "-J"]).await.contains(wanted) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _gone = std::process::Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}
