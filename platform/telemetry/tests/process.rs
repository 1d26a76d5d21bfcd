//! What a whole process sees: its environment, and an error output that nobody reads any more.

use std::process::{Command, Output, Stdio};
use wayleave_telemetry::{FILTER_VARIABLE, InitError, LogConfig, init};

const ROLE_VARIABLE: &str = "WAYLEAVE_TELEMETRY_CHILD";

/// Not a test by itself: what the other tests run in a process of its own.
#[test]
fn child() {
    if std::env::var_os(ROLE_VARIABLE).is_none() {
        return;
    }
    match init(&LogConfig::default()) {
        Ok(guard) => {
            tracing::info!("state");
            tracing::debug!("decision");
            println!("lost {}", guard.lines_lost());
            assert!(matches!(init(&LogConfig::default()), Err(InitError::AlreadySet)));
        }
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn a_closed_error_output_loses_lines_and_stops_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run_child("info", writer.into());
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("lost 1"), "{output:?}");
}

#[test]
fn the_variable_overrides_the_configured_severity() {
    let output = run_child("debug", Stdio::piped());
    let logged = String::from_utf8_lossy(&output.stderr);
    assert!(logged.contains("INFO process: state") && logged.contains("DEBUG process: decision"), "{logged}");
}

#[test]
fn a_filter_that_cannot_be_read_is_refused_by_name() {
    let output = run_child("process=loud", Stdio::piped());
    assert!(String::from_utf8_lossy(&output.stdout).contains("refused: WAYLEAVE_LOG"), "{output:?}");
}

fn run_child(filter: &str, stderr: Stdio) -> Output {
    let test_binary = std::env::current_exe().expect("a running test has a path");
    Command::new(test_binary)
        .args(["--exact", "child", "--nocapture"])
        .env(ROLE_VARIABLE, "1")
        .env(FILTER_VARIABLE, filter)
        .stderr(stderr)
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("the test binary can run itself")
}
