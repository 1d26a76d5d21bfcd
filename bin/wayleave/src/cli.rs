//! The command line of the daemon.

use crate::{backend, configure, demo, doctor, start};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where the configuration is when nobody says otherwise.
pub(crate) const CONFIG_FILE: &str = "/etc/wayleave.yaml";
/// Exit code of a command line or configuration that cannot be understood.
pub(crate) const EXIT_USAGE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "wayleave",
    version,
    about = "Identity-based access to infrastructure that has no open ports",
    after_help = "Try it now:        wayleave demo\n\
                  Write a config:    wayleave configure --roles auth,proxy > /etc/wayleave.yaml\n\
                  Start:             wayleave start -c /etc/wayleave.yaml\n\
                  People use `way`:  way login --proxy proxy.example.com"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the services that a configuration file enables
    Start(StartArgs),
    /// Print a commented configuration file
    Configure(configure::ConfigureArgs),
    /// Run a whole cluster on this machine and reach a node through it
    Demo(demo::DemoArgs),
    /// Check a configuration and this machine, and say what to mend
    Doctor(DoctorArgs),
    /// Back up, restore and move what the Auth Service keeps
    #[command(subcommand)]
    Backend(backend::BackendCommand),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Which configuration.
#[derive(clap::Args)]
pub(crate) struct StartArgs {
    /// The configuration file
    #[arg(short, long, env = "WAYLEAVE_CONFIG", default_value = CONFIG_FILE)]
    pub(crate) config: PathBuf,
    /// Log at least at severity DEBUG, whatever the file says
    #[arg(short, long)]
    pub(crate) debug: bool,
    /// Serve /metrics, /healthz and /readyz here, such as 127.0.0.1:3000, whatever the file says
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) diag_addr: Option<SocketAddr>,
}

/// What is checked.
#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    /// The configuration file
    #[arg(short, long, env = "WAYLEAVE_CONFIG", default_value = CONFIG_FILE)]
    pub(crate) config: PathBuf,
    /// How findings are printed
    #[arg(long, value_enum, default_value_t = DoctorFormat::Text)]
    pub(crate) format: DoctorFormat,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DoctorFormat {
    Text,
    Json,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Start(args) => return start::run(&args),
        Command::Configure(args) => return configure::run(args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Backend(command) => return backend::run(command),
        Command::Demo(args) => demo::run(args),
        Command::Version => write_out(&format!("wayleave {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wayleave", &mut script);
            write_out(&String::from_utf8_lossy(&script))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; a reader that went away is no failure.
pub(crate) fn write_out(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// One line for what happened, with its causes.
pub(crate) fn print_error(error: &anyhow::Error) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}
