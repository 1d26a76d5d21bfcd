//! A terminal with somebody at it: tmux, driven and read from outside.

use crate::program::Program;
use crate::scene::Scene;
use crate::wait::{PATIENCE, wait_at_most};
use std::path::PathBuf;

/// A command on a terminal of its own.
pub struct Terminal {
    socket: PathBuf,
    tmux: Program,
}

impl Terminal {
    /// Starts a command on a terminal of 100 columns and 30 lines. The terminal stays when the command ends and then
    /// shows `[ended CODE]`.
    pub fn start(scene: &Scene, name: &str, command: &Program) -> Self {
        let socket = scene.path(&format!("{name}.tmux"));
        let tmux = scene.program("tmux").env("SHELL", "/bin/sh").args(["-f", "/dev/null", "-S"]).arg(&socket);
        let script = format!("{}; echo \"[ended $?]\"; exec cat", command.shell_words());
        let size = ["-x", "100", "-y", "30"];
        let _started = tmux.clone().args(["new-session", "-d", "-s", "t"]).args(size).arg(script).stdout();
        Self { socket, tmux }
    }

    /// Types; names of keys such as `Enter` and `C-c` are understood when alone.
    pub fn press(&self, keys: &[&str]) {
        let _typed = self.tmux.clone().args(["send-keys", "-t", "t"]).args(keys).stdout();
    }

    /// Types a line.
    pub fn line(&self, text: &str) {
        let _typed = self.tmux.clone().args(["send-keys", "-t", "t", "-l", text]).stdout();
        self.press(&["Enter"]);
    }

    /// What the screen shows.
    pub fn screen(&self) -> String {
        self.tmux.clone().args(["capture-pane", "-p", "-t", "t"]).stdout()
    }

    /// Changes its size.
    pub fn resize(&self, columns: u16, lines: u16) {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let _resized =
            self.tmux.clone().args(["resize-window", "-t", "t", "-x", &columns, "-y", &lines]).stdout();
    }

    /// Waits until the screen shows something.
    ///
    /// # Panics
    /// When it does not, with the screen.
    #[track_caller]
    pub fn wait_for_screen(&self, mark: &str) -> String {
        let shown = wait_at_most(PATIENCE, || Some(self.screen()).filter(|screen| screen.contains(mark)));
        shown.unwrap_or_else(|| panic!("no {mark:?} on the screen:\n{}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.socket.exists() {
            let _ended = self.tmux.clone().arg("kill-server").output();
        }
    }
}
