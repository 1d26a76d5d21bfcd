//! Wall clocks that are wrong, by the library of the package `faketime`; other clocks of a program go on as they are.

use crate::daemon::Daemon;
use crate::program::Program;
use crate::scene::Scene;
use std::path::PathBuf;

/// The wall clock of one process, which can be set while that runs.
pub struct WallClock {
    file: PathBuf,
}

impl WallClock {
    /// Stops a process and starts it again under a clock of its own, which is right.
    ///
    /// # Panics
    /// When it cannot be stopped or the clock cannot be made.
    pub fn of(daemon: &mut Daemon, scene: &Scene) -> Self {
        let clock = Self { file: scene.path(&format!("{}.clock", daemon.name())) };
        clock.set("+0");
        assert_eq!(daemon.stop(), Some(0));
        for (name, value) in rules() {
            daemon.set_env(name, &value);
        }
        daemon.set_env("FAKETIME_TIMESTAMP_FILE", &clock.file.display().to_string());
        // The file is read whenever the time is asked for.
        daemon.set_env("FAKETIME_NO_CACHE", "1");
        daemon.start();
        clock
    }

    /// Sets it: by how much it is ahead (`+1h`) or behind (`-1h`).
    ///
    /// # Panics
    /// When that cannot be written.
    pub fn set(&self, by: &str) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, by).unwrap();
        // At once, for whoever reads it just now.
        std::fs::rename(&next, &self.file).unwrap();
    }
}

/// The program with a wall clock that is wrong from its start.
///
/// # Panics
/// When the library is not there.
pub fn skewed(program: &Program, by: &str) -> Program {
    let rules = rules().into_iter().chain([("FAKETIME", by.to_owned())]);
    rules.fold(program.clone(), |program, (name, value)| program.env(name, value))
}

fn rules() -> [(&'static str, String); 3] {
    let roots = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut places = roots.map(|root| root.join("faketime/libfaketimeMT.so.1"));
    let library =
        places.find(|path| path.exists()).expect("libfaketime is installed (Debian package faketime)");
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ]
}
