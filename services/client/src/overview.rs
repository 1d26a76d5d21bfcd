//! What other programs than `way` ask the Auth Service of this machine.

use crate::access::{Access, call};
use std::path::Path;
use wayleave_api::auth::{GetOverviewRequest, GetOverviewResponse};

/// How the cluster is doing, asked as the local administrator of the Auth host with this configuration file.
///
/// # Errors
/// What a person may read.
pub async fn overview(config: &Path) -> Result<GetOverviewResponse, String> {
    let asked =
        async { call(Access::local(config, None)?.admin()?.get_overview(GetOverviewRequest {})).await };
    asked.await.map_err(|failure| failure.message)
}
