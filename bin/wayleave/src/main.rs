//! The daemon `wayleave`: parses its configuration, joins the parts, runs them, drains them. No logic lives here.
//!
//! Invoked as `way`, or as `wayleave client …`, it is the client. Invoked as `__child`, it is the process that becomes a
//! user's session (see `platform/os`).

mod backend;
mod cli;
mod configure;
mod demo;
mod doctor;
mod edge;
mod start;
mod storage;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == wayleave_os::CHILD_ARGUMENT) {
        wayleave_os::run_child();
    }
    let invoked_as = args.first().and_then(|name| Path::new(name).file_name());
    if invoked_as.is_some_and(|name| name == "way") {
        return client(args);
    }
    if args.get(1).is_some_and(|arg| arg == "client") {
        let way = std::iter::once(OsString::from("way")).chain(args.into_iter().skip(2)).collect();
        return client(way);
    }
    cli::run(args)
}

fn client(args: Vec<OsString>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(wayleave_client::run(args));
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            cli::print_error(&anyhow::Error::new(error).context("the runtime cannot start"));
            ExitCode::FAILURE
        }
    }
}
