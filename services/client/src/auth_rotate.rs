//! `way auth rotate`: one step of a certificate authority's rotation.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::show;
use serde::Serialize;
use wayleave_api::auth::RotateAuthorityRequest;

/// Take one step of the rotation of a certificate authority
///
/// standby -> init -> update_clients -> update_servers -> standby, and from each a way back by rollback.
/// Both keys are trusted until the last step; leave time between the steps (docs/certificates-and-cas.md).
///
/// way auth rotate --type host                     # the next step
/// way auth rotate --type host --phase rollback    # back to the old key
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RotateArgs {
    /// Which authority.
    #[arg(long = "type", value_name = "TYPE", value_parser = ["user", "host", "policy", "openssh"])]
    ca_type: String,
    /// The phase to go to; the next one if left out.
    #[arg(long, value_parser = ["init", "update_clients", "update_servers", "standby", "rollback"])]
    phase: Option<String>,
    /// End trust in the old host key although processes still hold certificates of it: they must join anew.
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Rotated {
    #[serde(rename = "type")]
    ca_type: String,
    phase: String,
    fingerprints: Vec<String>,
    next_phases: Vec<String>,
}

pub(crate) async fn rotate(args: &RotateArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let request = RotateAuthorityRequest {
        r#type: args.ca_type.clone(),
        phase: args.phase.clone().unwrap_or_default(),
        force: args.force,
    };
    let answer = call(access.admin()?.rotate_authority(request)).await?;
    let authority = answer.authority.unwrap_or_default();
    let rotated = Rotated {
        ca_type: authority.r#type,
        phase: authority.phase,
        fingerprints: authority.fingerprints,
        next_phases: answer.next_phases,
    };
    show(global.format(), &rotated, || {
        let ways = rotated.next_phases.join(" or ");
        format!("The {} authority is in phase {}. From here: {ways}.\n", rotated.ca_type, rotated.phase)
    })?;
    Ok(Exit::Done)
}
