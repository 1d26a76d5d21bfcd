//! Shells, commands and sockets without a terminal.

use crate::harness::{
    PATIENCE, block_on, cases, exec, launcher, open_directory, other_account, outcome, own_account, printed,
    spec, try_outcome, until,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_os::{COMMAND_BYTES_MAX, ChildFailure, ChildStreams, Exit, SignalError, SpawnError, Work};

cases![
    codes_and_signals_are_told,
    output_is_complete_and_apart,
    input_ends_when_it_is_dropped,
    a_shell_without_command_is_a_login_shell,
    the_command_goes_to_the_shell_as_it_is,
    f_a_command_too_long_is_refused,
    a_signal_reaches_the_group,
    ending_hangs_up_and_then_kills,
    a_dropped_child_is_hung_up,
    a_user_socket_is_reached_as_the_user,
    an_agent_socket_lives_in_a_private_directory,
    h_a_socket_of_root_stays_closed,
    a_listener_does_not_replace_a_file,
];

fn codes_and_signals_are_told() {
    for (command, expected) in [
        ("exit 0", Exit::Code(0)),
        ("exit 255", Exit::Code(255)),
        ("kill -TERM $$", Exit::Signal { name: "TERM".to_owned(), core_dumped: false }),
        ("kill -KILL $$", Exit::Signal { name: "KILL".to_owned(), core_dumped: false }),
    ] {
        assert_eq!(outcome(spec(own_account(), exec(command)), b"").exit, expected, "{command}");
    }
}

fn output_is_complete_and_apart() {
    let outcome =
        outcome(spec(other_account(), exec("head -c 3000000 /dev/zero | tr '\\0' x; echo err >&2")), b"");

    assert_eq!((outcome.stdout.len(), outcome.stderr.as_str()), (3_000_000, "err\n"));
}

fn input_ends_when_it_is_dropped() {
    let input = vec![b'y'; 2_000_000];

    let outcome = outcome(spec(other_account(), exec("wc -c")), &input);

    assert_eq!(outcome.stdout.trim(), "2000000");
}

fn a_shell_without_command_is_a_login_shell() {
    let account = other_account().with_shell("/bin/bash".into());

    let outcome = outcome(
        spec(account, Work::Shell { terminal: None }),
        b"echo $0; shopt -q login_shell && echo login\n",
    );

    assert_eq!(outcome.stdout, "-bash\nlogin\n");
}

fn the_command_goes_to_the_shell_as_it_is() {
    let bytes = printed(own_account(), "printf '%s' 'a  \"b\" $(x) `y` \\ ' ; echo; echo $0");

    assert_eq!(bytes, "a  \"b\" $(x) `y` \\ \nsh\n");
}

fn f_a_command_too_long_is_refused() {
    let fits = format!("exit 3 #{}", "x".repeat(COMMAND_BYTES_MAX - 8));
    assert_eq!(outcome(spec(own_account(), exec(&fits)), b"").exit, Exit::Code(3));

    for bad in [format!("{fits}x"), "a\0b".to_owned()] {
        let refused = try_outcome(spec(own_account(), exec(&bad)), b"").unwrap_err();
        assert!(matches!(refused, SpawnError::Command), "{refused:?}");
    }
}

fn a_signal_reaches_the_group() {
    block_on(async {
        let command = "trap 'kill $!; exit 9' INT; echo ready; sleep 1000 & wait";
        let (mut child, streams) = launcher().spawn(spec(other_account(), exec(command))).await.unwrap();
        let ChildStreams::Pipes { mut stdout, .. } = streams else { panic!("no pipes") };
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).await.unwrap();

        assert!(matches!(child.signal("NOSUCH"), Err(SignalError::Unknown)));
        child.signal("INT").unwrap();

        assert_eq!(child.wait().await.unwrap(), Exit::Code(9));
        assert!(matches!(child.signal("INT"), Err(SignalError::Ended)));
        assert_eq!(child.pid(), None);
    });
}

fn ending_hangs_up_and_then_kills() {
    check_end("sleep 1000 & echo ready; wait", PATIENCE, "HUP");
    check_end("trap '' HUP; sleep 1000 & echo ready; wait", Duration::from_millis(1), "KILL");
}

fn check_end(command: &str, grace: Duration, signal: &str) {
    block_on(async {
        let (child, streams) = launcher().spawn(spec(other_account(), exec(command))).await.unwrap();
        let ChildStreams::Pipes { mut stdout, .. } = streams else { panic!("no pipes") };
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).await.unwrap();

        let exit = child.end(grace).await.unwrap();

        assert_eq!(exit, Exit::Signal { name: signal.to_owned(), core_dumped: false });
        // The background sleep holds the pipe: it ends only when the whole group is gone.
        assert_eq!(stdout.read(&mut ready).await.unwrap(), 0);
    });
}

fn a_dropped_child_is_hung_up() {
    block_on(async {
        let (child, streams) =
            launcher().spawn(spec(other_account(), exec("sleep 1000 & wait"))).await.unwrap();
        let ChildStreams::Pipes { mut stdout, .. } = streams else { panic!("no pipes") };

        drop(child);

        assert_eq!(stdout.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

fn a_user_socket_is_reached_as_the_user() {
    block_on(async {
        let account = other_account();
        let directory = open_directory();
        std::os::unix::fs::chown(directory.path(), Some(account.uid()), Some(account.gid())).unwrap();
        let path = directory.path().join("socket");
        let listener = launcher().listen_unix(account.clone(), &path).await.unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (account.uid(), 0o600));

        let launcher = launcher();
        let (connected, accepted) =
            tokio::join!(launcher.connect_unix(account.clone(), &path), listener.accept());
        let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());

        assert_eq!(accepted.peer_cred().unwrap().uid(), account.uid());
        connected.write_all(b"hello").await.unwrap();
        drop(connected);
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        drop(listener);
        until(|| !path.exists()).await;
    });
}

fn an_agent_socket_lives_in_a_private_directory() {
    block_on(async {
        let account = other_account();

        let listener = launcher().listen_for_agent(account.clone()).await.unwrap();

        let directory = listener.path().parent().unwrap().to_owned();
        let metadata = std::fs::metadata(&directory).unwrap();
        assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (account.uid(), 0o700));
        let mut spec = spec(account, exec("test -S $SSH_AUTH_SOCK && echo there"));
        spec.agent_socket = Some(listener.path().to_owned());
        let (mut child, streams) = launcher().spawn(spec).await.unwrap();
        let ChildStreams::Pipes { mut stdout, .. } = streams else { panic!("no pipes") };
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), child.wait().await.unwrap()), ("there\n", Exit::Code(0)));
        drop(listener);
        until(|| !directory.exists()).await;
    });
}

fn h_a_socket_of_root_stays_closed() {
    if !crate::harness::is_root() {
        return;
    }
    block_on(async {
        let directory = open_directory();
        let path = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();

        for path in [&path, &link] {
            let refused = launcher().connect_unix(other_account(), path).await.unwrap_err();
            let SpawnError::Child(ChildFailure::Socket { reason, .. }) = refused else {
                panic!("{refused:?}")
            };
            assert!(reason.contains("Permission denied"), "{reason}");
        }
        let refused =
            launcher().listen_unix(other_account(), &directory.path().join("new")).await.unwrap_err();
        assert!(matches!(refused, SpawnError::Child(ChildFailure::Socket { .. })), "{refused:?}");
    });
}

fn a_listener_does_not_replace_a_file() {
    block_on(async {
        let directory = open_directory();
        let path = directory.path().join("file");
        std::fs::write(&path, "mine").unwrap();

        let refused = launcher().listen_unix(own_account(), &path).await.unwrap_err();

        assert!(matches!(refused, SpawnError::Child(ChildFailure::Socket { .. })), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let relative = launcher().connect_unix(own_account(), std::path::Path::new("x")).await.unwrap_err();
        assert!(matches!(relative, SpawnError::Child(ChildFailure::Socket { .. })), "{relative:?}");
    });
}
