//! `way proxy ssh`: the SSH protocol of a node on standard input and output, for ProxyCommand.

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::dial::Destination;
use crate::failure::{Exit, Failure};
use crate::pump::pump;
use crate::resuming::{self, Opened, Voice};
use crate::signals::Ending;
use crate::stdio::{Input, Output};
use std::time::Duration;

/// How long what the ssh that started us has written may take to leave, once ssh has ended us.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connect standard input and output to the SSH service of a node
///
/// For ~/.ssh/config, which `way config` writes: ProxyCommand way proxy ssh %r@%h:%p
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProxySshArgs {
    /// The node; login and port are ignored, and `.CLUSTER` behind the name is dropped.
    #[arg(value_name = "[LOGIN@]NODE[:PORT]")]
    destination: Destination,
}

pub(crate) async fn proxy_ssh(args: &ProxySshArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let node = args.destination.node(&access.identity.parts().cluster)?;
    let mut ending = Ending::watch().map_err(Failure::doing("cannot watch for signals"))?;
    let Opened { stream, .. } = resuming::open(&access, &node, Voice::Quiet).await?;
    let mut pumping = Box::pin(pump(Input::open(), Output::stdout(), stream));
    let pumped = match ending.until(&mut pumping).await {
        Some(pumped) => pumped,
        // An ssh that is done hangs up on us: its last words are in the pipe.
        None => tokio::time::timeout(GOODBYE_TIMEOUT, pumping).await.unwrap_or(Ok(())),
    };
    match pumped {
        Ok(()) => Ok(Exit::Done),
        // The ssh that started us is gone.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error) => {
            Err(Failure::new(Exit::Unreachable, format!("the connection to {node} broke: {error}"))
                .hint("the node, its agent or a proxy went away; connect again"))
        }
    }
}
