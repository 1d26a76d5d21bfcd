//! `way`, the client for people and administrators: a runtime around `wayleave_client::run`.

use std::ffi::OsString;
use std::process::ExitCode;
use wayleave_telemetry::{FILTER_VARIABLE, LogConfig};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Otherwise there is no log at all, and no time spent on one: what a person must know is an error message.
    let is_debug = wayleave_client::asks_for_debug(&args);
    let is_logging = is_debug || std::env::var_os(FILTER_VARIABLE).is_some();
    let _log = is_logging.then(|| wayleave_telemetry::init(&LogConfig::for_client(is_debug)));
    // One thread: the client is started for every connection, and starts fast.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the process cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(wayleave_client::run(args));
    // A thread that reads a terminal would hold the process for ever.
    runtime.shutdown_background();
    exit
}
