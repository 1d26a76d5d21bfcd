//! `wayleave doctor`: checks a configuration, this machine and the way to the cluster, and says what to mend.

mod machine;
mod network;
mod report;

use crate::cli::{DoctorArgs, DoctorFormat, write_out};
use crate::edge;
use report::Report;
use std::process::ExitCode;

pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let mut report = Report::default();
    match edge::read_config(&args.config) {
        Ok(config) => {
            report.good("config", &format!("{} can be read", args.config.display()));
            machine::check(&config, &mut report);
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    runtime.block_on(network::check(&args.config, &config, &mut report));
                    // A name server that does not answer holds a thread.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    report.bad("network", &format!("the runtime cannot start: {error}"), "try again")
                }
            }
        }
        Err(error) => report.bad(
            "config",
            &format!("{error:#}"),
            "mend the file; `wayleave configure` prints one that is right",
        ),
    }
    let text = match args.format {
        DoctorFormat::Text => report.text(),
        DoctorFormat::Json => report.json(),
    };
    let _ = write_out(&text);
    if report.problems() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
