//! What `way` does: the client for people, the admin tool, and the helper of stock OpenSSH.
//!
//! One entry, [`run`], takes a command line and gives an exit code. There is no policy here: what somebody may is
//! decided by Auth and by agents; this crate asks and shows. The SSH it speaks is `wire/ssh`, driven in `ssh/`.
//!
//! Where to look: `cli` for the commands, `access` for as whom they act, [`identity_file`] for the format that
//! others write and read, `failure` for exit codes.

mod access;
mod auth_rotate;
mod auth_sign;
mod cli;
mod dial;
mod events;
mod explain;
mod failure;
mod first_contact;
mod home;
pub mod identity_file;
mod invite;
mod locks;
mod login;
mod ls;
mod moment;
mod new_keys;
mod output;
mod overview;
mod prompt;
mod proxy_app;
mod proxy_ssh;
mod pump;
mod resources;
mod resuming;
mod routes;
mod scp;
mod signals;
mod ssh;
mod ssh_config;
mod status;
mod stdio;
mod terminal;
mod tokens;
mod tokens_openssh;
mod top;
mod traces;
mod users;
mod version;

pub use invite::Invitation;
pub use overview::overview;

use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command};
use failure::{Exit, SSH_FAILURE};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one command line; the first argument is the program's name.
///
/// Results go to standard output, failures as `error: …` and `hint: …` to standard error. The exit codes are 0 ok,
/// 1 failed, 2 usage, 3 denied, 4 not found, 5 unreachable, 6 expired credentials; `way ssh` gives the remote
/// command's own code, and 255 for its own failures. It wants a Tokio runtime with IO and time; one thread is enough.
/// A thread may still be blocked in a read of standard input when it returns: shut the runtime down in the background.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return parse_failure(&error),
    };
    let is_ssh = matches!(cli.command, Command::Ssh(_));
    let exit = match traces::with_traces(cli.command.run(&cli.global)).await {
        Ok(exit) => exit.code(),
        Err(failure) => {
            output::note(&failure.to_string());
            if is_ssh && failure.exit != Exit::Usage { SSH_FAILURE } else { failure.exit.code() }
        }
    };
    ExitCode::from(exit)
}

/// Whether a command line asks for a log on standard error; the composition root sets it up.
pub fn asks_for_debug(args: &[OsString]) -> bool {
    args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--debug")
}

fn parse_failure(error: &clap::Error) -> ExitCode {
    // Help and version are no failures, and go to standard output. Nobody to tell when that is gone.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(Exit::Usage.code()),
    }
}
