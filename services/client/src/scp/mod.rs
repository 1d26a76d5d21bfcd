//! `way scp`: files to and from a node, over SFTP.
//!
//! `place` reads what is copied where, `session` is the SFTP conversation, `transfer` walks trees and copies files.

mod place;
mod session;
mod transfer;

use crate::access::Access;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::resuming::Voice;
use crate::signals::Ending;
use crate::ssh::connect::NodeConnection;
use crate::ssh::{connect, login};
use place::{Place, Plan};
use session::SftpSession;
use transfer::{Options, Transfer};

/// Copy files to or from a node
///
/// way scp report.pdf root@web-1:            into the home directory
/// way scp -r root@web-1:/var/log ./logs     a whole directory
/// way scp -p a b root@web-1:/tmp/           several files, with their times and modes
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, override_usage = "way scp [OPTIONS] SOURCE… TARGET")]
pub(crate) struct ScpArgs {
    /// What is copied, and at last where to. On a node: [LOGIN@]NODE:PATH.
    #[arg(value_name = "PLACE", required = true, num_args = 2..)]
    places: Vec<Place>,
    /// Copy directories with everything in them.
    #[arg(short, long)]
    recursive: bool,
    /// Keep times and modes.
    #[arg(short, long)]
    preserve: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
    /// The account on the node.
    #[arg(short, long, env = "WAY_LOGIN", value_name = "LOGIN")]
    login: Option<String>,
}

pub(crate) async fn scp(args: ScpArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let options = Options {
        is_recursive: args.recursive,
        is_preserving: args.preserve,
        shows_progress: !args.quiet && rustix::termios::isatty(rustix::stdio::stderr()),
    };
    let plan = Plan::new(args.places)?;
    let access = Access::find(global)?;
    let destination = plan.destination();
    let node = destination.node(&access.identity.parts().cluster)?;
    let login = login(destination, args.login.as_deref(), &access.identity)?;
    let mut ending = Ending::watch().map_err(Failure::doing("cannot watch for signals"))?;
    let copying = async {
        let driver = connect::connect(&access, &node, &login, Voice::Quiet).await?;
        copy(&plan, options, driver).await
    };
    // Cut short, the connection tells the node so when it is dropped.
    ending.until(copying).await.unwrap_or_else(|| Err(Failure::failed("interrupted")))
}

async fn copy(plan: &Plan, options: Options, driver: NodeConnection) -> Result<Exit, Failure> {
    let session = SftpSession::open(driver).await?;
    let mut transfer = Transfer::new(session, options);
    let result = match plan {
        Plan::Upload { sources, target, .. } => transfer.upload_all(sources, target).await,
        Plan::Download { sources, target, .. } => transfer.download_all(sources, target).await,
    };
    transfer.finish().await;
    result.map(|()| Exit::Done)
}
