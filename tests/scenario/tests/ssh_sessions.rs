//! Sessions of stock OpenSSH, and of `way ssh`: commands, terminals, environment, accounts, many at once.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wayleave_scenario::{
    Checks, Cluster, Program, Ssh, Terminal, check_all, descendants, is_alive, wait_until,
};

#[test]
fn sessions_of_stock_ssh() {
    let mut cluster = Cluster::builder("ssh_sessions")
        .proxies(2)
        .nodes(&["web-1"])
        .peering(1)
        .node_lines(&["labels:", "  env: test"])
        .start();
    let mut checks = Checks::default();
    check_all!(checks, &cluster;
        a_signal_that_ends_the_command_is_told,
        a_signal_of_the_client_reaches_the_command,
        a_terminal_behaves_like_one,
        a_terminal_of_way_behaves_like_one,
        a_terminal_by_script_behaves_like_one,
        a_command_may_have_a_terminal,
        the_environment_is_clean_and_takes_what_is_allowed,
        only_logins_of_the_user_are_entered,
        input_may_end_before_output_does,
        a_client_that_vanishes_takes_its_command_along,
        a_client_that_vanishes_from_a_copy_takes_it_along,
        one_master_carries_ten_channels,
        an_unread_channel_stalls_no_other,
        many_connections_at_once,
        keepalives_are_answered,
    );
    if nix::unistd::geteuid().is_root() {
        check_all!(checks, &mut cluster; h_a_login_runs_as_that_account_with_nothing_of_the_agent);
    }
    checks.end();
}

fn ssh(cluster: &Cluster) -> Ssh {
    cluster.ssh(&cluster.identity(), 0)
}

fn a_signal_that_ends_the_command_is_told(cluster: &Cluster) {
    let output = ssh(cluster).run("web-1", &["-v"], "kill -TERM $$").output().ended_with(255);
    assert!(output.stderr_text().contains("exit-signal"), "{output}");
    let way = cluster.way(&cluster.identity(), 1).args(["ssh", "root@web-1", "kill -TERM $$"]).output();
    assert_eq!(way.code, Some(255), "{way}");
}

/// A command without a terminal ends when its client does not want it any more.
fn a_signal_of_the_client_reaches_the_command(cluster: &Cluster) {
    let mut running =
        ssh(cluster).run("web-1", &["-tt"], "trap 'echo caught; exit 9' INT; echo ready; cat").start();
    running.wait_for_stdout("ready");
    running.write(b"\x03");
    assert_eq!(running.wait().code, Some(9));
}

fn a_terminal_behaves_like_one(cluster: &Cluster) {
    let ssh = ssh(cluster);
    drive_terminal(cluster, "ssh", &ssh.program("ssh").arg("-t").arg(ssh.target("root", "web-1")).arg("sh"));
}

fn a_terminal_of_way_behaves_like_one(cluster: &Cluster) {
    let way = cluster.way(&cluster.identity(), 1).args(["ssh", "-t", "root@web-1", "sh"]);
    drive_terminal(cluster, "way", &way);
}

fn drive_terminal(cluster: &Cluster, name: &str, command: &Program) {
    let terminal = Terminal::start(&cluster.scene, name, command);
    terminal.wait_for_screen("#");
    terminal.line("PS1='prompt> '; echo $((6*7)) answers");
    terminal.wait_for_screen("42 answers");
    terminal.line("tty; stty size; echo told-$((1+1))");
    let screen = terminal.wait_for_screen("told-2");
    assert!(screen.contains("/dev/pts/") && screen.contains("30 100"), "{screen}");
    terminal.line("trap 'stty size' WINCH; echo trapped");
    terminal.wait_for_screen("\ntrapped");
    terminal.resize(90, 25);
    // The trap runs when the shell reads its next line, at the latest.
    terminal.line("");
    terminal.wait_for_screen("25 90");
    terminal.line("echo sleeping-$((1+1)); sleep 1000");
    terminal.wait_for_screen("sleeping-2");
    terminal.press(&["C-c"]);
    terminal.line("echo interrupted $?");
    terminal.wait_for_screen("interrupted 130");
    terminal.line("stty -echo; read secret; stty echo; echo length ${#secret}");
    terminal.line("hidden-word");
    let screen = terminal.wait_for_screen("length 11");
    assert!(!screen.contains("hidden-word"), "{screen}");
    terminal.line("exit 7");
    terminal.wait_for_screen("[ended 7]");
}

fn a_terminal_by_script_behaves_like_one(cluster: &Cluster) {
    let ssh = ssh(cluster);
    let inner = ssh.run("web-1", &["-t"], "test -t 0 && test -t 1 && echo terminal").shell_words();
    let output = cluster.scene.program("script").args(["-qec", &inner, "/dev/null"]).output().succeeded();
    assert!(output.stdout_text().contains("terminal"), "{output}");
}

fn a_command_may_have_a_terminal(cluster: &Cluster) {
    let ssh = ssh(cluster);
    ssh.run("web-1", &["-T"], "test -t 0 || echo none").output().succeeded().printed("none");
    ssh.run("web-1", &["-tt"], "test -t 0 && echo one").output().succeeded().printed("one");
    let _ended = ssh.run("web-1", &["-tt"], "exit 3").output().ended_with(3);
}

fn the_environment_is_clean_and_takes_what_is_allowed(cluster: &Cluster) {
    let ssh = ssh(cluster);
    let options = ["-o", "SetEnv=LC_SCENARIO=kept LD_PRELOAD=/nowhere.so BASH_ENV=/nowhere WAYLEAVE_X=1"];
    let text = ssh.run("web-1", &options, "env").stdout();
    assert!(text.contains("LC_SCENARIO=kept"), "{text}");
    for refused in ["LD_PRELOAD", "BASH_ENV", "WAYLEAVE_", "RUST_BACKTRACE"] {
        assert!(!text.contains(refused), "{refused} in {text}");
    }
    for set in ["HOME=/root", "USER=root", "LOGNAME=root", "SHELL=", "PATH=", "SSH_CONNECTION="] {
        assert!(text.contains(set), "{set} not in {text}");
    }
}

/// An account that is not root, with a group of its own beside the first, on a node of its own.
fn h_a_login_runs_as_that_account_with_nothing_of_the_agent(cluster: &mut Cluster) {
    let file = cluster.node_file("accounts");
    let (passwd, group) =
        ("tester:x:54321:54321:Tester:/:/bin/sh\n", "tester:x:54321:\ncrew:x:54322:tester\n");
    let data = file.data_dir.display().to_string();
    let agent = cluster.add_node_with_accounts(file, passwd, group).daemon.pid();
    cluster.add_user("tess", "access", "tester");
    let ssh = cluster.ssh(&cluster.sign("tess", "1h"), 0);
    let run = |options: &[&str], command: &str| {
        ssh.program("ssh").args(options).arg(ssh.target("tester", "accounts")).arg(command).output()
    };
    wait_until("the node with the account", || run(&[], "true").code == Some(0));
    run(&[], "id -u; id -g; id -G; pwd; echo $HOME $USER $SHELL")
        .printed("54321\n54321\n54321 54322\n/\n/ tester /bin/sh");
    let status = run(&[], "cat /proc/self/status").stdout_text();
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{capabilities}:\t0000000000000000")), "{status}");
    }
    // Nothing of the agent is open: three streams, and what `ls` opens to look.
    run(&[], "ls /proc/self/fd | wc -l").printed("4");
    let _denied = run(&[], &format!("ls {data}")).failed();
    let _denied = run(&[], &format!("kill -0 {agent}")).failed();
    let _denied = run(&[], &format!("cat /proc/{agent}/environ")).failed();
    let _denied = run(&[], "cat /etc/shadow").failed();
    run(&["-tt"], "stat -c '%U %a' $(tty)").succeeded().printed("tester 620");
    let _denied = ssh.program("ssh").arg(ssh.target("root", "accounts")).arg("true").output().ended_with(255);
}

fn only_logins_of_the_user_are_entered(cluster: &Cluster) {
    let ssh = ssh(cluster);
    for login in ["daemon", "no-such-account"] {
        let refused = ssh.program("ssh").arg(ssh.target(login, "web-1")).arg("true").output().ended_with(255);
        assert!(refused.stderr_text().contains("denied"), "{refused}");
        let target = format!("{login}@web-1");
        let refused = cluster.way(&cluster.identity(), 0).args(["ssh", &target, "true"]).output();
        let _refused = refused.ended_with(255).complaining("denied");
    }
}

fn input_may_end_before_output_does(cluster: &Cluster) {
    let ssh = ssh(cluster);
    let command = "cat >/dev/null; seq 1 200000 | tail -1";
    ssh.run("web-1", &[], command).input("end").output().succeeded().printed("200000");
    // A command that closes its output early does not end the session early.
    let _ended = ssh
        .run("web-1", &[], "exec >&- 2>&-; head -c 3 >/dev/null; exit 5")
        .input("abc")
        .output()
        .ended_with(5);
}

fn a_client_that_vanishes_takes_its_command_along(cluster: &Cluster) {
    let agent = cluster.nodes[0].daemon.pid();
    let before = descendants(agent);
    let mut running = ssh(cluster).run("web-1", &["-tt"], "echo started; exec sleep 1000").start();
    running.wait_for_stdout("started");
    let started: Vec<i32> = descendants(agent).into_iter().filter(|pid| !before.contains(pid)).collect();
    assert!(!started.is_empty());
    running.signal(Signal::SIGKILL);
    wait_until("the command to end with its client", || started.iter().all(|pid| !is_alive(*pid)));
}

/// What it had not read yet must not cut off what its end has to tell.
fn a_client_that_vanishes_from_a_copy_takes_it_along(cluster: &Cluster) {
    let agent = cluster.nodes[0].daemon.pid();
    let words = ssh(cluster).run("web-1", &[], "cat /dev/zero").shell_words();
    for _ in 0..5 {
        let before = descendants(agent);
        let mut client = Command::new("sh");
        client.args(["-c", &format!("exec {words}")]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let mut copy = client.stdout.take().unwrap();
        copy.read_exact(&mut vec![0; 10_000_000]).unwrap();
        let started: Vec<i32> = descendants(agent).into_iter().filter(|pid| !before.contains(pid)).collect();
        assert!(!started.is_empty());
        client.kill().unwrap();
        client.wait().unwrap();
        drop(copy);
        wait_until("the copy to end with its client", || started.iter().all(|pid| !is_alive(*pid)));
    }
}

fn one_master_carries_ten_channels(cluster: &Cluster) {
    let ssh = ssh(cluster);
    let socket = cluster.scene.path("master");
    let control = format!("ControlPath={}", socket.display());
    let mut master = ssh.run("web-1", &["-M", "-N", "-o", &control], "").start();
    wait_until("the master connection", || socket.exists());
    let mut channels: Vec<_> = (0..10)
        .map(|number| ssh.run("web-1", &["-o", &control], &format!("read line; echo {number} $line")).start())
        .collect();
    channels.iter_mut().for_each(|channel| channel.write("said\n"));
    for (number, channel) in channels.iter_mut().enumerate() {
        channel.wait().succeeded().printed(&format!("{number} said"));
    }
    let exit =
        ssh.program("ssh").args(["-o", &control, "-O", "exit"]).arg(ssh.target("root", "web-1")).output();
    let _ended = exit.succeeded();
    let _ended = master.wait();
}

/// One channel of a master is not read, and several times what any window holds waits in it.
fn an_unread_channel_stalls_no_other(cluster: &Cluster) {
    let ssh = ssh(cluster);
    let socket = cluster.scene.path("stalled");
    let control = format!("ControlPath={}", socket.display());
    let mut master = ssh.run("web-1", &["-M", "-N", "-o", &control], "").start();
    wait_until("the master connection", || socket.exists());
    let words = ssh.run("web-1", &["-o", &control], "head -c 50000000 /dev/zero").shell_words();
    // Its output is a pipe that nobody reads.
    let mut unread =
        Command::new("sh").args(["-c", &words]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let agent = cluster.nodes[0].daemon.pid();
    wait_until("the unread command to be blocked", || {
        descendants(agent).iter().any(|pid| wayleave_scenario::command_line(*pid).starts_with("head -c"))
    });
    let begin = Instant::now();
    for number in 0..5 {
        let command = format!("head -c 1000000 /dev/zero | wc -c; echo {number}");
        let text = ssh.run("web-1", &["-o", &control], &command).stdout();
        assert_eq!(text, format!("1000000\n{number}\n"));
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // It was not cut off either: read now, it is whole.
    let mut whole = unread.stdout.take().unwrap();
    let length = std::io::copy(&mut whole, &mut std::io::sink()).unwrap();
    assert_eq!(length, 50_000_000);
    unread.wait().unwrap();
    let exit =
        ssh.program("ssh").args(["-o", &control, "-O", "exit"]).arg(ssh.target("root", "web-1")).output();
    let _ended = exit.succeeded();
    let _ended = master.wait();
}

fn many_connections_at_once(cluster: &Cluster) {
    let clients = [cluster.ssh(&cluster.identity(), 0), cluster.ssh(&cluster.identity(), 1)];
    let mut running: Vec<_> = (0..12)
        .map(|number| clients[number % 2].run("web-1", &[], &format!("cat; echo {number}")).start())
        .collect();
    running.iter_mut().for_each(wayleave_scenario::Running::close_input);
    for (number, client) in running.iter_mut().enumerate() {
        client.wait().succeeded().printed(&number.to_string());
    }
}

fn keepalives_are_answered(cluster: &Cluster) {
    let options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"];
    let ssh = ssh(cluster);
    ssh.run("web-1", &options, "sleep 3.5; echo alive").output().succeeded().printed("alive");
}
