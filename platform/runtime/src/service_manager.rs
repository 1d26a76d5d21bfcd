//! What the service manager wants to know of this process: that it is ready, that it lives, that it ends.
//!
//! The protocol of systemd (`sd_notify(3)`): datagrams of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names.
//! Without that variable nothing is sent.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Longest status that is told, in bytes.
const STATUS_BYTES_MAX: usize = 200;
/// A watchdog that wants to hear more often is answered this often.
const ALIVE_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The service manager that started this process, if there is one that listens.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let Some(name) = variable("NOTIFY_SOCKET") else { return Self { socket: None, watchdog: None } };
        let socket = connect(&name)
            .inspect_err(|error| tracing::warn!(%error, "the service manager's NOTIFY_SOCKET cannot be used"))
            .ok();
        // Without a number the watchdog is for whoever reads it.
        let is_for_us =
            variable("WATCHDOG_PID").is_none_or(|id| id.to_str() == Some(&std::process::id().to_string()));
        let usec = variable("WATCHDOG_USEC").filter(|_| is_for_us && socket.is_some());
        let usec = usec.and_then(|text| text.to_str()?.parse::<u64>().ok()).filter(|usec| *usec > 0);
        Self { socket, watchdog: usec.map(Duration::from_micros) }
    }

    /// The process does what it is there for. May be said again, with another status.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// The process has begun to end.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", line(status)));
    }

    /// The process lives.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often [`ServiceManager::alive`] is to be said: twice in the time of the watchdog, if there is one.
    pub fn alive_interval(&self) -> Option<Duration> {
        self.watchdog.map(|within| (within / 2).max(ALIVE_INTERVAL_MIN))
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!(%error, message, "the service manager was not told");
        }
    }
}

/// A name with `@` in front is one of Linux's abstract names.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Better not told than a process that waits for who should watch it.
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address(name)?)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(not(target_os = "linux"))]
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    SocketAddr::from_pathname(name)
}

/// One line, cut.
fn line(status: &str) -> String {
    let mut line = status.replace(char::is_control, " ");
    let mut end = line.len().min(STATUS_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_as_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        let socket = connect(path.as_os_str()).unwrap();
        let manager = ServiceManager { socket: Some(socket), watchdog: Some(Duration::from_secs(10)) };
        assert_eq!(manager.alive_interval(), Some(Duration::from_secs(5)));
        let heard = || {
            let mut buffer = [0; 1024];
            let length = listening.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        manager.ready("two\nlines");
        assert_eq!(heard(), "READY=1\nSTATUS=two lines");
        manager.alive();
        assert_eq!(heard(), "WATCHDOG=1");
        manager.stopping(&"é".repeat(STATUS_BYTES_MAX));
        let told = heard();
        assert!(told.starts_with("STOPPING=1\nSTATUS=é") && told.len() < STATUS_BYTES_MAX + 20, "{told}");
    }

    #[test]
    fn g_nobody_who_listens_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager { socket: Some(connect(path.as_os_str()).unwrap()), watchdog: None };
        (0..10_000).for_each(|_| manager.alive());
        drop(listening);
        manager.ready("");
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
        ServiceManager { socket: None, watchdog: None }.ready("");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_names_are_reached() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("wayleave-notify-{}", std::process::id());
        let listening = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        connect(OsStr::new(&format!("@{name}"))).unwrap().send(b"x").unwrap();
        assert_eq!(listening.recv(&mut [0; 8]).unwrap(), 1);
    }
}
