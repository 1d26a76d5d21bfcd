//! `wayleave-load`: what stands around proxies while they are measured.
//!
//! Simulated agents with certificates, TLS and tunnels of their own; visitors whose local port leads through a proxy to
//! such an agent; the target behind them; and clients that count what comes back and how fast. The proxies in between
//! are the product's own. Each command prints one line of JSON when it is ready or done.

mod agents;
mod authority;
mod client;
mod keeper;
mod latency;
mod options;
mod pooled;
mod probe;
mod reach;
mod sessions;
mod target;
mod visitor;

use anyhow::Result;
use options::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error:#}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match command {
            Command::Target(options) => target::serve(options).await,
            Command::Agents(options) => agents::run(options).await,
            Command::Pooled(options) => pooled::run(options).await,
            Command::Probe(options) => probe::run(options).await,
            Command::Sessions(options) => sessions::run(options).await,
            Command::Visitor(options) => visitor::run(options).await,
            Command::Dials(options) => client::dials(options).await,
            Command::Stream(options) => client::stream(options).await,
            Command::Sweep(options) => client::sweep(options).await,
            Command::Reach(options) => reach::run(options).await,
        }
    });
    runtime.shutdown_background();
    done
}

/// One line for whoever started this program.
fn say(line: &serde_json::Value) -> Result<()> {
    use std::io::Write as _;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Waits for the end of standard input: whoever started this program is done with it.
async fn wait_end_of_input() -> Result<()> {
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut tokio::io::stdin(), &mut rest).await?;
    Ok(())
}
