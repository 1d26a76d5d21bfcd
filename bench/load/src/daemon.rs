//! A server process of one measurement, ended when it is dropped.

use crate::proc_fs;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to do what is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end after it was asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long one that serves sessions may take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Daemon {
    pub(crate) name: String,
    child: Child,
    errors: PathBuf,
}

impl Daemon {
    /// Starts it with its errors in a file.
    ///
    /// # Errors
    /// When it cannot start.
    pub(crate) fn start(name: &str, command: &mut Command, errors: &Path) -> Result<Self> {
        let file = File::create(errors).with_context(|| errors.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { name: name.to_owned(), child, errors: errors.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// When it has ended, with its last words.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let errors = fs::read_to_string(&self.errors).unwrap_or_default();
            bail!("{} ended with {status}: {}", self.name, errors.trim());
        }
        Ok(())
    }

    /// Waits until it is listening on all of these, without losing more than a moment.
    ///
    /// # Errors
    /// When it ends or does not within [`PATIENCE`].
    pub(crate) fn wait_listening(&mut self, addresses: &[SocketAddr], look: Duration) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for address in addresses {
            while TcpStream::connect(address).is_err() {
                self.check()?;
                if Instant::now() > deadline {
                    bail!("{} does not listen on {address}", self.name);
                }
                pause(look);
            }
        }
        Ok(())
    }

    /// Waits until nothing runs below it but what its sessions are forked from.
    ///
    /// # Errors
    /// When something keeps running.
    pub(crate) fn wait_alone(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !proc_fs::session_processes(self.pid()).is_empty() {
            if Instant::now() > deadline {
                bail!("processes below {} do not end", self.name);
            }
            pause(LOOK);
        }
        Ok(())
    }

    /// Asks it to end, and waits until it has let go of what runs.
    ///
    /// # Errors
    /// When it takes longer than [`DRAIN_PATIENCE`] or fails.
    pub(crate) fn drain(&mut self) -> Result<()> {
        ask_to_end(&self.child);
        let deadline = Instant::now() + DRAIN_PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended with {status}", self.name),
                None => pause(LOOK),
            }
        }
        bail!("{} does not end", self.name)
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is gone already.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it had to be killed.
    pub(crate) fn stop(mut self) -> Result<()> {
        if end(&mut self.child) { Ok(()) } else { bail!("{} did not end when asked", self.name) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// False when it had to be killed.
fn end(child: &mut Child) -> bool {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return true;
    }
    ask_to_end(child);
    let deadline = Instant::now() + STOP_PATIENCE;
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return true;
        }
        pause(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn ask_to_end(child: &Child) {
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status();
}

/// Looks again and again until there is an answer.
///
/// # Errors
/// When there is none within [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        pause(LOOK);
    }
}

/// Lets time pass.
#[expect(clippy::disallowed_methods, reason = "idle time is part of what is measured")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Ports on loopback that are free now; another program could take one in between, and then starting fails.
///
/// # Errors
/// When there is none.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("no free ports")?;
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    addresses.try_into().ok().context("no free ports")
}
