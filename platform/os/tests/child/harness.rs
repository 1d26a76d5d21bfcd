//! What the cases share: a runner that honours a filter, and children with their output collected.

use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_os::{
    AcceptedEnvironment, Account, Child, ChildSpec, ChildStreams, Exit, Launcher, SpawnError, TerminalReader,
    TerminalSpec, TerminalWriter, Work,
};
use wayleave_vocab::Login;

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One test.
pub(crate) type Case = (&'static str, fn());

/// Runs the cases whose name contains the first plain argument, like the standard harness.
pub(crate) fn run(cases: &[Case]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen: Vec<_> =
        cases.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str()))).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let failed: Vec<_> =
        chosen.iter().filter(|(name, case)| !passes(name, *case)).map(|(name, _)| *name).collect();
    println!("\n{} passed, {} failed: {failed:?}", chosen.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        std::process::exit(101);
    }
}

fn passes(name: &str, case: fn()) -> bool {
    let passed = std::panic::catch_unwind(case).is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    passed
}

/// Names the functions of a module as cases.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use cases;

/// Runs a future to its end on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("within patience") })
}

pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

pub(crate) fn launcher() -> Launcher {
    Launcher::own_binary()
}

pub(crate) fn account(login: &str) -> Account {
    Account::lookup_blocking(&Login::parse(login).unwrap()).unwrap()
}

/// The user that runs the tests, with a plain shell.
pub(crate) fn own_account() -> Account {
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap();
    account(&own.name).with_shell("/bin/sh".into())
}

/// Somebody else with a plain shell when the tests run as root, otherwise the user that runs them.
pub(crate) fn other_account() -> Account {
    let account = if is_root() { account("nobody").with_shell("/bin/sh".into()) } else { own_account() };
    account.with_home("/".into())
}

pub(crate) fn spec(account: Account, work: Work) -> ChildSpec {
    ChildSpec {
        account,
        work,
        environment: AcceptedEnvironment::default(),
        connection: None,
        agent_socket: None,
    }
}

pub(crate) fn exec(command: &str) -> Work {
    Work::Exec { command: command.into(), terminal: None }
}

/// What a child left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a child without a terminal to its end.
pub(crate) fn outcome(spec: ChildSpec, input: &[u8]) -> Outcome {
    try_outcome(spec, input).unwrap()
}

pub(crate) fn try_outcome(spec: ChildSpec, input: &[u8]) -> Result<Outcome, SpawnError> {
    block_on(async {
        let (mut child, streams) = launcher().spawn(spec).await?;
        let ChildStreams::Pipes { mut stdin, mut stdout, mut stderr } = streams else { panic!("no pipes") };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let feed = async {
            // The child need not read what it is given.
            let _unread = stdin.write_all(input).await;
            drop(stdin);
        };
        let (_, out_read, err_read) =
            tokio::join!(feed, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        out_read.unwrap();
        err_read.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok(Outcome { exit: child.wait().await.unwrap(), stdout: text(out), stderr: text(err) })
    })
}

/// What a command prints as `account`, when it succeeds.
pub(crate) fn printed(account: Account, command: &str) -> String {
    let outcome = outcome(spec(account, exec(command)), b"");
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
    outcome.stdout
}

/// A child on a terminal.
pub(crate) async fn on_terminal(
    account: Account,
    command: &str,
    terminal: TerminalSpec,
) -> (Child, TerminalReader, TerminalWriter) {
    let work = Work::Exec { command: command.into(), terminal: Some(terminal) };
    let (child, streams) = launcher().spawn(spec(account, work)).await.unwrap();
    let ChildStreams::Terminal { reader, writer } = streams else { panic!("no terminal") };
    (child, reader, writer)
}

/// Reads until `mark` has been printed; gives everything read.
pub(crate) async fn read_until(reader: &mut TerminalReader, mark: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(mark) {
        let count = reader.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "the terminal ended before {mark:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

/// A directory that everybody may enter.
pub(crate) fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Waits for a condition of the machine, without a clock of its own.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn path_text(path: &std::path::Path) -> String {
    PathBuf::from(path).display().to_string()
}
