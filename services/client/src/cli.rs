//! The command line: what can be typed. Each command's own arguments are beside its code.

use crate::failure::{Exit, Failure};
use crate::output::Format;
use crate::{
    auth_rotate, auth_sign, events, explain, invite, locks, login, ls, proxy_app, proxy_ssh, resources, scp,
    ssh, ssh_config, status, tokens, top, users, version,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use wayleave_vocab::{HostPort, Ttl};

/// Port of a proxy when an address names none.
const PROXY_PORT: u16 = 443;

const EXAMPLES: &str = "\
Examples:
  way login --proxy=proxy.example.com --user=alice    log in; certificates last 12 hours
  way ls env=prod                                     the nodes you can reach, by label
  way ssh root@web-1                                  a shell; `way ssh root@web-1 uptime` one command
  way scp -r ./site root@web-1:/srv/                  copy files
  way config >> ~/.ssh/config                         then ssh, scp, rsync and Ansible reach NODE.CLUSTER
  way -c /etc/wayleave.yaml users add alice --roles=access --logins=root   on the Auth host, no login needed
  way tokens add --type=node                          everything a new machine needs to join

Exit codes: 0 done, 1 failed, 2 usage, 3 denied, 4 not found, 5 unreachable, 6 expired credentials;
`way ssh` ends as the remote command did, or with 255 when it failed itself.";

/// Reach servers through Wayleave, and administer the cluster, as far as your roles allow.
#[derive(Debug, Parser)]
#[command(name = "way", version, after_help = EXAMPLES, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Web address of the proxy.
    #[arg(long, global = true, env = "WAY_PROXY", value_name = "HOST[:PORT]", value_parser = proxy_address)]
    pub(crate) proxy: Option<HostPort>,
    /// Act as this identity file instead of the login.
    #[arg(short = 'i', long, global = true, env = "WAY_IDENTITY", value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// On the Auth host: act as the local administrator of the daemon that this file configures.
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The user that the command is about (`login`: also from WAY_USER).
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// How lists and states are printed.
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// How long what is made shall live, such as 30m or 12h.
    #[arg(long, global = true, value_name = "DURATION")]
    pub(crate) ttl: Option<Ttl>,
    /// Tell on standard error what happens.
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Ls(ls::LsArgs),
    Ssh(ssh::SshArgs),
    Scp(scp::ScpArgs),
    /// Lead this machine's input and output, or a port of it, to something.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    Config(ssh_config::ConfigArgs),
    Get(resources::GetArgs),
    Create(resources::CreateArgs),
    Edit(resources::EditArgs),
    Rm(resources::RmArgs),
    /// Join tokens for new machines.
    #[command(subcommand, visible_alias = "token")]
    Tokens(tokens::TokensCommand),
    /// Users of the cluster.
    #[command(subcommand, visible_alias = "user")]
    Users(users::UsersCommand),
    /// Accept an invitation or a reset.
    #[command(subcommand)]
    Invite(invite::InviteCommand),
    /// Certificates for automation.
    #[command(subcommand)]
    Auth(AuthCommand),
    Explain(explain::ExplainArgs),
    /// What happened in the cluster: the audit log.
    #[command(subcommand, visible_alias = "event")]
    Events(events::EventsCommand),
    /// Lock somebody or something out, at once.
    #[command(subcommand, visible_alias = "lock")]
    Locks(locks::LocksCommand),
    Version(version::VersionArgs),
    Completion(version::CompletionArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    Ssh(proxy_ssh::ProxySshArgs),
    App(proxy_app::ProxyAppArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    Sign(auth_sign::SignArgs),
    Rotate(auth_rotate::RotateArgs),
}

impl Command {
    /// Carries the command out.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<Exit, Failure> {
        match self {
            Self::Login(args) => login::login(args, global).await,
            Self::Logout(args) => login::logout(&args, global),
            Self::Status(args) => status::status(&args, global).await,
            Self::Top(args) => top::top(&args, global).await,
            Self::Ls(args) => ls::ls(&args, global).await,
            Self::Ssh(args) => ssh::ssh(args, global).await,
            Self::Scp(args) => scp::scp(args, global).await,
            Self::Proxy(ProxyCommand::Ssh(args)) => proxy_ssh::proxy_ssh(&args, global).await,
            Self::Proxy(ProxyCommand::App(args)) => proxy_app::proxy_app(args, global).await,
            Self::Config(args) => ssh_config::config(&args, global),
            Self::Get(args) => resources::get(&args, global).await,
            Self::Create(args) => resources::create(&args, global).await,
            Self::Edit(args) => resources::edit(&args, global).await,
            Self::Rm(args) => resources::rm(&args, global).await,
            Self::Tokens(command) => tokens::tokens(command, global).await,
            Self::Users(command) => users::users(command, global).await,
            Self::Invite(command) => invite::invite(command, global).await,
            Self::Auth(AuthCommand::Sign(args)) => auth_sign::sign(&args, global).await,
            Self::Auth(AuthCommand::Rotate(args)) => auth_rotate::rotate(&args, global).await,
            Self::Explain(args) => explain::explain(&args, global).await,
            Self::Events(command) => events::events(command, global).await,
            Self::Locks(command) => locks::locks(command, global).await,
            Self::Version(args) => version::version(&args, global).await,
            Self::Completion(args) => version::completion(&args),
        }
    }
}

fn proxy_address(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, Some(PROXY_PORT)).map_err(|e| e.to_string())
}

impl GlobalArgs {
    /// The format, for commands that can print any of them.
    pub(crate) fn format(&self) -> Format {
        self.format.unwrap_or_default()
    }

    /// The lifetime in milliseconds, 0 when none was given.
    pub(crate) fn ttl_ms(&self) -> u64 {
        self.ttl.map_or(0, |ttl| u64::try_from(ttl.0.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    #[test]
    fn global_options_are_taken_before_and_behind_the_command() {
        for line in ["way -i id --format json ls", "way ls -i id --format json"] {
            let cli = parse(line);
            assert_eq!(cli.global.identity.as_deref(), Some(std::path::Path::new("id")), "{line}");
            assert_eq!(cli.global.format(), Format::Json);
        }
        let cli = parse("way --proxy https://proxy.example.com/ status");
        assert_eq!(cli.global.proxy.unwrap().to_string(), "proxy.example.com:443");
    }

    #[test]
    fn options_of_a_remote_command_are_left_to_it() {
        let Command::Ssh(args) = parse("way ssh -t root@web-1 ls -l --format x -i y").command else {
            panic!("not ssh")
        };
        assert!(args.tty);
        assert_eq!(args.command, ["ls", "-l", "--format", "x", "-i", "y"]);
        let Command::Ssh(args) = parse("way ssh root@web-1 -N -L 1:h:2").command else { panic!("not ssh") };
        assert!(args.no_command && args.command.is_empty());
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        for line in [
            "way",
            "way ls --format xml",
            "way --proxy a:b:c ls",
            "way tokens add --ttl 5",
            "way auth sign",
            "way events",
            "way events ls --from yesterday",
            "way events ls --limit 0",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
