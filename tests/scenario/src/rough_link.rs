//! A link between two network namespaces that this process carries frame by frame, as badly as it is told to: the
//! kernel here has no such discipline for its own links.
//!
//! Both ends are TAP devices. What the kernel sends into one is read here, goes through a [`Lane`], and is written to the
//! other.

use crate::impairment::{FrameCounts, Impairment, Lane};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whole frames and nothing before them (`linux/if_tun.h`).
const IFF_TAP_NO_PI: i16 = 0x0002 | 0x1000;
/// More than the largest frame of a device with the usual MTU of 1500.
const FRAME_BYTES_MAX: usize = 2048;
/// Frames that are read from one end before the other has its turn.
const TURN_FRAMES_MAX: usize = 64;

/// The link. It ends, and its devices with it, when it is dropped.
pub(crate) struct RoughLink {
    shared: Arc<Shared>,
    /// Nothing is ever written: its end is what the carrier sees.
    stop: Option<PipeWriter>,
    carrier: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    impairment: Mutex<Impairment>,
    counts: Mutex<[FrameCounts; 2]>,
}

impl RoughLink {
    /// Makes a device in the namespace of the calling thread and one in that of a process, and carries between them:
    /// everything at first.
    ///
    /// # Panics
    /// When the devices cannot be made.
    pub(crate) fn start(near: &str, far: &str, process: u32, seed: u64) -> Self {
        let ends = [tap(near), tap_in(far, process)];
        let shared = Arc::new(Shared::default());
        let (stopped, stop) = std::io::pipe().unwrap();
        let carried = Arc::clone(&shared);
        let carrier = std::thread::spawn(move || carry(&carried, ends, &stopped, seed));
        Self { shared, stop: Some(stop), carrier: Some(carrier) }
    }

    /// How bad it is from now on.
    pub(crate) fn set(&self, impairment: Impairment) {
        *self.shared.impairment.lock().unwrap() = impairment;
    }

    /// What became of the frames so far, of both directions together.
    pub(crate) fn counts(&self) -> FrameCounts {
        let [to, fro] = *self.shared.counts.lock().unwrap();
        FrameCounts {
            passed: to.passed + fro.passed,
            overtaken: to.overtaken + fro.overtaken,
            lost: to.lost + fro.lost,
        }
    }
}

impl Drop for RoughLink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(carrier) = self.carrier.take() {
            let _ended = carrier.join();
        }
    }
}

/// A device in the namespace of a process.
fn tap_in(name: &str, process: u32) -> File {
    let namespace = File::open(format!("/proc/{process}/ns/net")).unwrap();
    let name = name.to_owned();
    // The thread goes there for good, and ends.
    let opening = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        tap(&name)
    });
    opening.join().unwrap()
}

/// `struct ifreq`, as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF`, which is declared as if it took an `int`.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
    InterfaceRequest
);

/// A device in the namespace of the calling thread. It lasts as long as the file.
#[expect(unsafe_code, reason = "no crate in use wraps this call safely")]
fn tap(name: &str) -> File {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TAP_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request has the size and layout of `struct ifreq`, and outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }.unwrap();
    device
}

fn carry(shared: &Shared, ends: [File; 2], stopped: &PipeReader, seed: u64) {
    let began = Instant::now();
    let mut lanes = [Lane::new(seed), Lane::new(!seed)];
    loop {
        let next_at = lanes.iter().filter_map(Lane::next_at).min();
        if !wait_for_frames(&ends, stopped, next_at.map(|at| at.saturating_sub(began.elapsed()))) {
            return;
        }
        let impairment = *shared.impairment.lock().unwrap();
        for (mut end, lane) in ends.iter().zip(&mut lanes) {
            for _ in 0..TURN_FRAMES_MAX {
                let Some(frame) = read_frame(&mut end) else { break };
                lane.take(frame, &impairment, began.elapsed());
            }
        }
        let others = ends.iter().rev();
        for (mut end, lane) in others.zip(&mut lanes) {
            while let Some(frame) = lane.arrived(began.elapsed()) {
                // A device that is down or full loses it, as one does.
                let _lost = end.write(&frame);
            }
        }
        *shared.counts.lock().unwrap() = [lanes[0].counts(), lanes[1].counts()];
    }
}

/// Until there is something to read or the time is over; false when the link is to end.
fn wait_for_frames(ends: &[File; 2], stopped: &PipeReader, limit: Option<Duration>) -> bool {
    let mut watched =
        [ends[0].as_fd(), ends[1].as_fd(), stopped.as_fd()].map(|each| PollFd::new(each, PollFlags::POLLIN));
    // Rounded up: a frame is late rather than early.
    let limit = limit.map(|limit| u16::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u16::MAX));
    match poll(&mut watched, limit.map_or(PollTimeout::NONE, PollTimeout::from)) {
        Ok(_) | Err(Errno::EINTR) => !watched[2].any().unwrap_or(true),
        Err(_) => false,
    }
}

fn read_frame(end: &mut &File) -> Option<Vec<u8>> {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        match end.read(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                return Some(frame);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}
