//! Commands that need a release build: the load generator and the demo.

use crate::process::{cargo, root, succeeds};
use crate::test_run;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};

/// The binaries under load come from the same build as the load generator.
pub(crate) fn bench(arguments: &[String]) -> Result<ExitCode> {
    if let Some(missing) = test_run::provide()? {
        return Ok(missing);
    }
    let packages = ["-p", "wayleave", "-p", "way", "-p", "wayleave-bench"];
    if !succeeds(cargo().args(["build", "--release", "--locked", "--bins"]).args(packages))? {
        bail!("the release build failed");
    }
    let program = Workspace::load()?.target_directory.join("release/wayleave-bench");
    if !program.is_file() {
        bail!("bench/load builds no program wayleave-bench yet");
    }
    let status = Command::new(program).args(arguments).current_dir(root()).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the README tells a newcomer to type.
pub(crate) fn demo(arguments: &[String]) -> Result<ExitCode> {
    let passed = succeeds(
        cargo()
            .args(["run", "--release", "--", "demo"])
            .args(arguments)
            .stdin(std::process::Stdio::inherit()),
    )?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
