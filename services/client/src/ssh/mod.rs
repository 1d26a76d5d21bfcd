//! `way ssh`: our own SSH client, for shells, commands and forwards.
//!
//! `connect` makes the connection, `driver` runs it, `session` is what a person sees of it, `forward` and `socks`
//! are the ports, `escape` the keys that are not for the node. The protocol itself is `wire/ssh`.

pub(crate) mod connect;
pub(crate) mod driver;
pub(crate) mod endpoint;
mod escape;
mod forward;
mod session;
mod socks;
#[cfg(test)]
pub(crate) mod test_node;

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::dial::Destination;
use crate::failure::{Exit, Failure};
use crate::identity_file::Identity;
use crate::output::note;
use crate::resuming::Voice;
use crate::terminal;
use forward::{DynamicSpec, ForwardSpec};
use session::Session;
use std::ffi::OsString;
use std::io::IsTerminal;
use wayleave_ssh::TcpEndpoint;
use wayleave_vocab::Login;

/// Open a shell or run a command on a node
///
/// way ssh root@web-1                         a shell
/// way ssh root@web-1 'uptime; df -h'         a command
/// way ssh -t root@web-1 top                  a command that wants a terminal
/// way ssh -N -L 5432:db-1:5432 root@web-1    a forwarded port, no command
///
/// The exit code is that of the remote command, or 255.
/// Escapes at the start of a line: ~. ends, ~? shows the others.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SshArgs {
    /// The node, and the account on it.
    #[arg(value_name = "[LOGIN@]NODE")]
    destination: Destination,
    /// The command and its arguments; a shell if there is none.
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
    /// The account on the node.
    #[arg(short, long, env = "WAY_LOGIN", value_name = "LOGIN")]
    login: Option<String>,
    /// Ignored: nodes are reached through their tunnels, not by a port.
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Forward a local port to a host as the node reaches it.
    #[arg(short = 'L', long = "local-forward", value_name = "[BIND:]PORT:HOST:PORT")]
    local: Vec<ForwardSpec>,
    /// Forward a port of the node to a host as this machine reaches it.
    #[arg(short = 'R', long = "remote-forward", value_name = "[BIND:]PORT:HOST:PORT")]
    remote: Vec<ForwardSpec>,
    /// Offer a local SOCKS proxy that connects from the node.
    #[arg(short = 'D', long = "dynamic-forward", value_name = "[BIND:]PORT")]
    dynamic: Vec<DynamicSpec>,
    /// Offer this machine's SSH agent to the node.
    #[arg(short = 'A', long)]
    forward_agent: bool,
    /// Ask for a terminal, also for a command.
    #[arg(short = 't', long, overrides_with = "no_tty")]
    pub(crate) tty: bool,
    /// Ask for no terminal.
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Run nothing: only forward ports.
    #[arg(short = 'N', long)]
    pub(crate) no_command: bool,
    /// Give the command no standard input.
    #[arg(short = 'n', long)]
    no_stdin: bool,
}

pub(crate) async fn ssh(args: SshArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    if args.no_command && !args.command.is_empty() {
        return Err(Failure::usage("-N runs no command, and there is one").hint("leave one of them out"));
    }
    if args.port.or(args.destination.port).is_some_and(|port| port != 22) {
        note("note: the port is ignored; nodes are reached through their tunnels");
    }
    let node = args.destination.node(&access.identity.parts().cluster)?;
    let login = login(&args.destination, args.login.as_deref(), &access.identity)?;
    let voice = if terminal::is_terminal() && std::io::stderr().is_terminal() {
        Voice::Terminal
    } else {
        Voice::Quiet
    };
    let driver = connect::connect(&access, &node, &login, voice).await?;
    Session::new(driver, args, node.to_string()).run().await
}

/// Keeps one forwarded port until the connection ends or the user interrupts.
pub(crate) async fn forward_only(
    driver: connect::NodeConnection,
    listen: TcpEndpoint,
    target: TcpEndpoint,
    name: String,
) -> Result<Exit, Failure> {
    let args = SshArgs {
        destination: Destination { login: None, host: name.clone(), port: None },
        command: Vec::new(),
        login: None,
        port: None,
        local: vec![ForwardSpec { listen, target }],
        remote: Vec::new(),
        dynamic: Vec::new(),
        forward_agent: false,
        tty: false,
        no_tty: true,
        no_command: true,
        no_stdin: true,
    };
    Session::new(driver, args, name).run().await
}

/// The account to use: as said, or the one of this machine's user if the certificate has it, or the only one there is.
pub(crate) fn login(
    destination: &Destination,
    flag: Option<&str>,
    identity: &Identity,
) -> Result<String, Failure> {
    let own = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
    choose_login(destination.login.as_deref().or(flag), own().as_deref(), identity)
}

fn choose_login(said: Option<&str>, own: Option<&str>, identity: &Identity) -> Result<String, Failure> {
    if let Some(said) = said {
        return Login::parse(said).map(|login| login.to_string()).map_err(|e| Failure::usage(e.to_string()));
    }
    let logins = &identity.user().logins;
    let own = own.filter(|own| logins.iter().any(|login| login.as_str() == *own));
    let only = if logins.len() == 1 { logins.first().map(Login::as_str) } else { None };
    own.or(only).map(str::to_owned).ok_or_else(|| {
        let yours: Vec<&str> = logins.iter().map(Login::as_str).collect();
        let hint = if yours.is_empty() {
            "your roles give you no login: ask the administrator for one".to_owned()
        } else {
            format!("write LOGIN@NODE; yours are {}", yours.join(", "))
        };
        Failure::usage("as which account?").hint(hint)
    })
}

/// A command as the node's shell gets it: the words with blanks between them, as OpenSSH does it.
fn command_line(words: &[OsString]) -> Vec<u8> {
    words.iter().map(|word| word.as_encoded_bytes()).collect::<Vec<_>>().join(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};

    #[test]
    fn the_account_is_the_one_that_can_be_meant() {
        let identity = identity(END);
        let choose = |said, own| choose_login(said, own, &identity).map_err(|f| f.exit);
        assert_eq!(choose(Some("x"), Some("root")), Ok("x".to_owned()));
        assert_eq!(choose(None, Some("ubuntu")), Ok("ubuntu".to_owned()));
        assert_eq!(choose(None, Some("alice")), Err(Exit::Usage));
        assert_eq!(choose(Some("-x"), None), Err(Exit::Usage));
    }

    #[test]
    fn a_command_is_joined_as_openssh_joins_it() {
        let words = ["echo".into(), "a b".into(), "-n".into()];
        assert_eq!(command_line(&words), b"echo a b -n");
    }
}
