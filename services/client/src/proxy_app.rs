//! `way proxy app`: a port of this machine that leads to a TCP application.
//!
//! The application's agent speaks SSH on the stream: the user proves himself by his certificate, end to end, and each
//! connection is a channel.

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::ssh::{self, connect};
use wayleave_dial::DialTarget;
use wayleave_ssh::TcpEndpoint;
use wayleave_vocab::NodeName;

/// Listen on a port of this machine that leads to a TCP application
///
/// way proxy app web-1                          its only port, on the same port here
/// way proxy app db-1 --target-port 5432 --port 15432
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProxyAppArgs {
    /// The application, as `way ls` shows it.
    #[arg(value_name = "NAME")]
    app: NodeName,
    /// The port here; the application's own if left out, 0 for any.
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Which of the application's ports, if it has several.
    #[arg(long, value_name = "PORT")]
    target_port: Option<u16>,
}

pub(crate) async fn proxy_app(args: ProxyAppArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let target_port = match args.target_port {
        Some(port) => port,
        None => crate::ls::only_tcp_port(&access, &args.app).await?,
    };
    let listen = TcpEndpoint { host: "localhost".to_owned(), port: args.port.unwrap_or(target_port) };
    let target = TcpEndpoint { host: args.app.to_string(), port: target_port };
    let user = access.identity.user().name.to_string();
    let dialled = DialTarget::App { app: args.app.clone() };
    let driver = connect::connect_to(&access, dialled, &user).await?;
    ssh::forward_only(driver, listen, target, args.app.to_string()).await
}
