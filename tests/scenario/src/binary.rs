//! Where the daemon and the client are.

use std::path::PathBuf;

/// The daemon.
pub fn wayleave() -> PathBuf {
    find("wayleave")
}

/// The client.
pub fn way() -> PathBuf {
    find("way")
}

/// In `WAYLEAVE_BIN_DIR`, else beside the directory of the test programs (`target/debug/deps/..`).
fn find(name: &str) -> PathBuf {
    let directory = match std::env::var_os("WAYLEAVE_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned(),
    };
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build -p {name}`, or `cargo xtask test`",
        path.display()
    );
    path
}
