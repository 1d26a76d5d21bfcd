//! Children on a terminal.

use crate::harness::{
    block_on, cases, is_root, launcher, on_terminal, other_account, own_account, read_until, spec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_os::{ChildStreams, Exit, TerminalModes, TerminalSize, TerminalSpec, Work};

cases![
    the_terminal_is_the_users,
    the_size_is_as_asked_and_follows,
    interrupt_kills_the_foreground,
    modes_are_applied,
    ten_mebibytes_come_out_exact,
    bytes_go_in_exact,
    a_login_shell_on_a_terminal_is_interactive,
    output_before_the_exit_is_not_lost,
    a_terminal_ends_with_its_session,
    closing_the_terminal_hangs_up,
];

fn plain() -> TerminalSpec {
    terminal(80, 24, TerminalModes::default())
}

/// No echo, no line discipline, no output processing.
fn raw() -> TerminalSpec {
    let off = [38, 36, 39, 40, 50, 51, 53, 59, 70, 72].map(|opcode| (opcode, 0));
    terminal(80, 24, TerminalModes::from_pairs(off))
}

fn terminal(columns: u32, rows: u32, modes: TerminalModes) -> TerminalSpec {
    TerminalSpec::new("xterm-256color", TerminalSize { columns, rows, width_px: 0, height_px: 0 }, modes)
}

async fn read_to_end(reader: &mut wayleave_os::TerminalReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn printed(command: &str, spec: TerminalSpec) -> String {
    block_on(async {
        let (mut child, mut reader, _writer) = on_terminal(other_account(), command, spec).await;
        let bytes = read_to_end(&mut reader).await;
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
        String::from_utf8(bytes).unwrap()
    })
}

fn the_terminal_is_the_users() {
    let uid = other_account().uid();

    let text = printed(
        "tty; stat -c '%u %G %a' $(tty); echo $SSH_TTY $TERM; test -t 0 -a -t 1 -a -t 2 && echo all",
        plain(),
    );

    let lines: Vec<&str> = text.lines().collect();
    let [tty, owner, named, all] = lines.as_slice() else { panic!("{text:?}") };
    assert!(tty.starts_with("/dev/pts/"), "{tty}");
    assert!(owner.starts_with(&format!("{uid} ")), "{owner}");
    // Only root can give it to the group of terminals; otherwise the system's own mode for it stays.
    assert!(owner.ends_with(if is_root() { " tty 620" } else { "0" }), "{owner}");
    assert_eq!(*all, "all");
    assert_eq!(*named, format!("{tty} xterm-256color"));
}

fn the_size_is_as_asked_and_follows() {
    block_on(async {
        let command = "stty size; trap 'stty size' WINCH; read line; stty size";
        let (mut child, mut reader, mut writer) =
            on_terminal(other_account(), command, terminal(101, 37, TerminalModes::default())).await;
        read_until(&mut reader, "37 101").await;

        child.resize(TerminalSize { columns: 132, rows: 50, width_px: 1, height_px: 1 }).unwrap();
        writer.write_all(b"x\n").await.unwrap();

        read_until(&mut reader, "50 132").await;
        let _rest = read_to_end(&mut reader).await;
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
    });
}

fn interrupt_kills_the_foreground() {
    block_on(async {
        let (mut child, mut reader, mut writer) =
            on_terminal(other_account(), "exec sed -u s/in/out/", plain()).await;
        // Its answer shows that no shell is left, which may swallow the signal while it starts a program.
        writer.write_all(b"in\n").await.unwrap();
        read_until(&mut reader, "out").await;

        writer.write_all(b"\x03").await.unwrap();

        // The echo of the key may be flushed with the signal.
        let _rest = read_to_end(&mut reader).await;
        assert_eq!(child.wait().await.unwrap(), Exit::Signal { name: "INT".to_owned(), core_dumped: false });
    });
}

fn modes_are_applied() {
    let modes = TerminalModes::from_pairs([(53, 0), (1, 7), (2, 255), (129, 19_200), (128, 19_200), (72, 0)]);

    let text = printed("stty -a", terminal(80, 24, modes));

    for expected in ["-echo ", "intr = ^G;", "quit = <undef>;", "speed 19200 baud", "-onlcr"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("\r\n"));
}

fn ten_mebibytes_come_out_exact() {
    block_on(async {
        let command = "head -c 10485760 /dev/zero | tr '\\0' 'z'; printf end";
        let (mut child, mut reader, _writer) = on_terminal(other_account(), command, raw()).await;

        let bytes = read_to_end(&mut reader).await;

        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
        assert_eq!(bytes.len(), 10 * 1024 * 1024 + 3);
        assert!(bytes.ends_with(b"zend"));
    });
}

fn bytes_go_in_exact() {
    block_on(async {
        let (mut child, mut reader, mut writer) =
            on_terminal(other_account(), "printf go; head -c 1048576 | sha256sum", raw()).await;
        read_until(&mut reader, "go").await;
        let input: Vec<u8> =
            (0..1_048_576_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();

        let (written, text) = tokio::join!(writer.write_all(&input), read_to_end(&mut reader));

        written.unwrap();
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("input");
        std::fs::write(&file, &input).unwrap();
        let expected = std::process::Command::new("sha256sum").arg(&file).output().unwrap().stdout;
        assert_eq!(text.get(..64), expected.get(..64));
    });
}

fn a_login_shell_on_a_terminal_is_interactive() {
    block_on(async {
        let account = own_account().with_shell("/bin/bash".into());
        let work = Work::Shell { terminal: Some(plain()) };
        let (mut child, streams) = launcher().spawn(spec(account, work)).await.unwrap();
        let ChildStreams::Terminal { mut reader, mut writer } = streams else { panic!("no terminal") };

        writer.write_all(b"echo [$0] [$-]; exit 4\n").await.unwrap();

        let text = String::from_utf8_lossy(&read_to_end(&mut reader).await).into_owned();
        assert_eq!(child.wait().await.unwrap(), Exit::Code(4));
        let flags = text.split("[-bash] [").nth(1).unwrap_or_else(|| panic!("{text}"));
        assert!(flags.contains('i') && flags.contains('m'), "{text}");
    });
}

fn output_before_the_exit_is_not_lost() {
    block_on(async {
        for _ in 0..20 {
            let command = "head -c 20000 /dev/zero | tr '\\0' q; printf last";
            let (mut child, mut reader, _writer) = on_terminal(own_account(), command, raw()).await;
            let mut head = [0; 1];
            reader.read_exact(&mut head).await.unwrap();
            let (exit, rest) = tokio::join!(child.wait(), read_to_end(&mut reader));
            assert_eq!(exit.unwrap(), Exit::Code(0));
            assert_eq!(rest.len(), 20_003);
            assert!(rest.ends_with(b"last"));
        }
    });
}

fn a_terminal_ends_with_its_session() {
    block_on(async {
        // A job in the background holds the terminal open.
        let command = "trap '' HUP; sleep 1000 & head -c 3000 /dev/zero | tr '\\0' ' '; echo $!";
        let (mut child, mut reader, _writer) = on_terminal(own_account(), command, plain()).await;

        let (exit, text) = tokio::join!(child.wait(), read_to_end(&mut reader));

        let text = String::from_utf8(text).unwrap();
        assert_eq!((exit.unwrap(), text.len() > 3000), (Exit::Code(0), true));
        let job = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        nix::sys::signal::kill(job, nix::sys::signal::Signal::SIGKILL).unwrap();
    });
}

fn closing_the_terminal_hangs_up() {
    block_on(async {
        let (child, mut reader, writer) =
            on_terminal(other_account(), "echo ready; sleep 1000", plain()).await;
        read_until(&mut reader, "ready").await;
        drop((reader, writer));

        let exit = child.end(crate::harness::PATIENCE).await.unwrap();

        assert_eq!(exit, Exit::Signal { name: "HUP".to_owned(), core_dumped: false });
    });
}
