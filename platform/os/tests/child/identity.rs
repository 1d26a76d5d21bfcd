//! Whose rights a child has, and what it inherits.

use crate::harness::{
    cases, exec, is_root, open_directory, other_account, outcome, own_account, path_text, printed, spec,
    try_outcome,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use wayleave_os::{ChildFailure, ConnectionAddresses, Exit, SpawnError, Work};

cases![
    h_a_child_is_the_other_user_for_real,
    h_the_groups_are_those_of_the_account,
    h_the_environment_is_exact,
    h_nothing_of_the_agents_environment_is_inherited,
    h_no_other_descriptor_is_inherited,
    h_root_cannot_be_regained,
    h_files_of_root_stay_closed,
    signals_and_mask_are_fresh,
    the_child_leads_its_own_session,
    standard_streams_can_be_opened_by_path,
    a_missing_shell_is_told,
    a_missing_home_is_told_and_the_root_directory_entered,
];

fn h_a_child_is_the_other_user_for_real() {
    let account = other_account();
    let (uid, gid) = (account.uid(), account.gid());

    let status = printed(account, "cat /proc/self/status");

    let ids = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(|id| id.parse().unwrap()).collect::<BTreeSet<u32>>()
    };
    assert_eq!((ids("Uid:"), ids("Gid:")), (BTreeSet::from([uid]), BTreeSet::from([gid])));
    if uid != 0 {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
        }
    }
}

fn h_the_groups_are_those_of_the_account() {
    let account = other_account();
    let wanted: BTreeSet<u32> = account.groups().iter().copied().collect();

    let held = printed(account, "id -G");

    assert_eq!(held.split_whitespace().map(|id| id.parse().unwrap()).collect::<BTreeSet<u32>>(), wanted);
}

fn h_the_environment_is_exact() {
    let account = other_account();
    let login = account.login().to_string();
    let mut spec = spec(account.clone(), exec("exec /usr/bin/env"));
    spec.environment.accept("LANG", "de_DE.UTF-8").unwrap();
    spec.environment.accept("LC_TIME", "C").unwrap();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    spec.connection = Some(ConnectionAddresses {
        client: address("[::ffff:192.0.2.7]:4000"),
        server: address("[2001:db8::1]:22"),
    });
    spec.agent_socket = Some("/tmp/ssh-x/agent.1".into());

    let text = outcome(spec, b"").stdout;

    let path = if account.is_root() {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    } else {
        "PATH=/usr/local/bin:/usr/bin:/bin"
    };
    let home = format!("HOME={}", path_text(account.home()));
    let (user, logname) = (format!("USER={login}"), format!("LOGNAME={login}"));
    let expected = BTreeSet::from([
        user.as_str(),
        logname.as_str(),
        home.as_str(),
        path,
        "SHELL=/bin/sh",
        "LANG=de_DE.UTF-8",
        "LC_TIME=C",
        "SSH_CLIENT=192.0.2.7 4000 22",
        "SSH_CONNECTION=192.0.2.7 4000 2001:db8::1 22",
        "SSH_AUTH_SOCK=/tmp/ssh-x/agent.1",
    ]);
    // A shell may add its own.
    let own = ["PWD=", "_=", "SHLVL=", "OLDPWD="];
    let printed =
        text.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))).collect::<BTreeSet<_>>();
    assert_eq!(printed, expected);
}

fn h_nothing_of_the_agents_environment_is_inherited() {
    let this = std::env::vars_os().count();
    assert!(this > 0, "cargo sets variables, so there is something to inherit");

    let text = printed(other_account(), "tr '\\0' '\\n' < /proc/$$/environ");

    for hostile in ["LD_", "CARGO", "RUST"] {
        assert!(!text.lines().any(|line| line.starts_with(hostile)), "{text}");
    }
}

fn h_no_other_descriptor_is_inherited() {
    // One that the parent's own parent left open for every program.
    let leaked = std::fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();

    // By the shell alone: a pipe to another program would be one of its own. What it lists them with is closed again.
    let listed =
        printed(other_account(), "for fd in /proc/$$/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; true");

    let numbers: BTreeSet<&str> = listed.lines().collect();
    assert_eq!(numbers, BTreeSet::from(["0", "1", "2"]), "{listed}");
}

fn h_root_cannot_be_regained() {
    if !is_root() {
        return;
    }
    let tries = "import os\nfor f in (lambda: os.setuid(0), lambda: os.setresuid(0,0,0), lambda: os.setgid(0), \
                 lambda: os.setgroups([0])):\n  try:\n    f(); print('regained')\n  except PermissionError: print('no')";

    let text = printed(other_account(), &format!("python3 -c \"{tries}\""));

    assert_eq!(text, "no\n".repeat(4));
}

fn h_files_of_root_stay_closed() {
    if !is_root() {
        return;
    }
    let directory = open_directory();
    let canary = directory.path().join("canary");
    std::fs::write(&canary, "canary-of-root").unwrap();
    std::fs::set_permissions(&canary, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    let outcome = outcome(
        spec(other_account(), exec(&format!("cat {} /etc/shadow; ls /root", path_text(&canary)))),
        b"",
    );

    assert_ne!(outcome.exit, Exit::Code(0));
    assert_eq!(outcome.stdout, "", "{outcome:?}");
}

fn signals_and_mask_are_fresh() {
    // 32 and 33 are the C library's own: it neither lets us reset them nor minds what they are.
    const OF_THE_C_LIBRARY: u64 = 0b11 << 31;

    // Executed, as a shell blocks signals while it starts another program.
    let status = printed(own_account(), "exec cat /proc/self/status");

    for set in ["SigBlk", "SigIgn"] {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{set}:\t"))).unwrap();
        assert_eq!(u64::from_str_radix(line, 16).unwrap() & !OF_THE_C_LIBRARY, 0, "{set}: {line}");
    }
}

fn the_child_leads_its_own_session() {
    let text = printed(own_account(), "cut -d' ' -f1,5,6 /proc/$$/stat; umask");

    let mut words = text.split_whitespace();
    let pid = words.next();
    assert_eq!((words.next(), words.next(), words.next()), (pid, pid, Some("0022")));
}

fn standard_streams_can_be_opened_by_path() {
    let outcome = outcome(spec(other_account(), exec("echo out > /dev/stdout; echo err > /dev/stderr")), b"");

    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

fn a_missing_shell_is_told() {
    let account = own_account().with_shell("/no/such/shell".into());

    let refused = try_outcome(spec(account, Work::Shell { terminal: None }), b"").unwrap_err();

    let SpawnError::Child(ChildFailure::Shell { shell, reason }) = refused else { panic!("{refused:?}") };
    assert_eq!((shell.as_str(), reason.as_str()), ("/no/such/shell", "No such file or directory"));
}

fn a_missing_home_is_told_and_the_root_directory_entered() {
    let account = own_account().with_home("/no/such/home".into());

    let outcome = outcome(spec(account, exec("pwd; echo $HOME")), b"");

    assert_eq!(outcome.stdout, "/\n/no/such/home\n");
    assert!(outcome.stderr.starts_with("No home directory /no/such/home: No such file"), "{outcome:?}");
}
