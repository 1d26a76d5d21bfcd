//! Hosts with addresses of their own on a network between namespaces, on which packets can be lost without a word.
//!
//! A host's frames to another are lost by sending them to a hardware address that nobody has: neither side is told. The
//! link of a host can be [rough](RoughLink): it loses some frames, and is slow with the others.

use crate::impairment::{FrameCounts, Impairment};
use crate::program::Program;
use crate::rough_link::RoughLink;
use crate::wait::wait_until;
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const BRIDGE: &str = "br0";
const NOBODY: &str = "02:00:00:00:ff:ff";

/// The namespace of the calling thread and what it starts, with a bridge to all hosts. It ends with the thread.
pub struct Network {
    hub: Host,
    count: u8,
}

/// One address on the network.
pub struct Host {
    ip: IpAddr,
    device: &'static str,
    /// Keeps the namespace; none for the thread's own.
    keeper: Option<Child>,
    link: Option<RoughLink>,
}

impl Network {
    /// Moves the calling thread to a new network.
    ///
    /// # Panics
    /// When that is not allowed: only root can.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let hub = Host { ip: address(1), device: BRIDGE, keeper: None, link: None };
        hub.ip("link set lo up");
        hub.ip(&format!("link add {BRIDGE} type bridge"));
        hub.ip(&format!("addr add {}/24 dev {BRIDGE}", hub.ip));
        hub.ip(&format!("link set {BRIDGE} up"));
        Self { hub, count: 1 }
    }

    /// Where the calling thread is.
    pub fn hub(&self) -> &Host {
        &self.hub
    }

    /// A new host.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn host(&mut self) -> Host {
        let (host, port) = self.unlinked();
        self.hub.ip(&format!("link add {port} type veth peer name {} netns {}", host.device, host.process()));
        self.attach(host, &port)
    }

    /// A new host whose link can be [made bad](Host::impair); the seed says what that does to which frame.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn rough_host(&mut self, seed: u64) -> Host {
        let (mut host, port) = self.unlinked();
        host.link = Some(RoughLink::start(&port, host.device, host.process(), seed));
        self.attach(host, &port)
    }

    /// A host by itself, and what its end of the bridge is to be called.
    fn unlinked(&mut self) -> (Host, String) {
        self.count += 1;
        // Ends when its input does, which is when this process ends at the latest.
        let keeper = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        let (own, its) = (namespace("thread-self"), keeper.id().to_string());
        wait_until("the host's namespace", || namespace(&its) != own);
        let host = Host { ip: address(self.count), device: "eth0", keeper: Some(keeper), link: None };
        (host, format!("port{}", self.count))
    }

    fn attach(&self, host: Host, port: &str) -> Host {
        self.hub.ip(&format!("link set {port} master {BRIDGE} up"));
        host.ip("link set lo up");
        host.ip(&format!("addr add {}/24 dev {}", host.ip, host.device));
        host.ip(&format!("link set {} up", host.device));
        host
    }
}

impl Host {
    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.ip
    }

    /// The program, on this host.
    #[must_use]
    pub fn inside(&self, program: Program) -> Program {
        let prefix = self.prefix();
        let Some((through, arguments)) = prefix.split_first() else { return program };
        program.within(through, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The words before a command line that has it run on this host.
    pub fn prefix(&self) -> Vec<String> {
        let Some(keeper) = &self.keeper else { return Vec::new() };
        ["nsenter", "-t", &keeper.id().to_string(), "-n"].map(str::to_owned).to_vec()
    }

    /// How bad the link of this host is from now on.
    ///
    /// # Panics
    /// When it is no [rough](Network::rough_host) one.
    pub fn impair(&self, impairment: Impairment) {
        self.link.as_ref().unwrap().set(impairment);
    }

    /// What became of the frames on the link of this host, of both directions together.
    ///
    /// # Panics
    /// When it is no [rough](Network::rough_host) one.
    pub fn frame_counts(&self) -> FrameCounts {
        self.link.as_ref().unwrap().counts()
    }

    /// What this host sends to another is lost from now on.
    pub fn lose_to(&self, other: &Self) {
        self.ip(&format!("neigh replace {} lladdr {NOBODY} nud permanent dev {}", other.ip, self.device));
    }

    /// It arrives again.
    pub fn arrive_at(&self, other: &Self) {
        self.ip(&format!("neigh del {} dev {}", other.ip, self.device));
    }

    /// Nothing passes between this host and others.
    pub fn part_from(&self, others: &[&Self]) {
        for other in others {
            self.lose_to(other);
            other.lose_to(self);
        }
    }

    /// Everything does again.
    pub fn meet(&self, others: &[&Self]) {
        for other in others {
            self.arrive_at(other);
            other.arrive_at(self);
        }
    }

    fn process(&self) -> u32 {
        self.keeper.as_ref().unwrap().id()
    }

    fn ip(&self, arguments: &str) {
        let program = Program::new("ip").args(arguments.split(' '));
        let _done = self.inside(program).output().succeeded();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, number))
}
