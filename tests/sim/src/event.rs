//! What happens at a time, and who wants to be looked after.

use crate::backend::{Answer, Reply};
use crate::fault::{Fault, Mend};
use crate::network::LinkId;
use crate::plan::PlanKey;
use std::cmp::Ordering;
use wayleave_mux::StreamId;
use wayleave_resume_wire::StreamId as Name;
use wayleave_tunnel::{Connected, TunnelId};
use wayleave_vocab::Mono;

/// A machine that may have effects, and may want to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Machine {
    Mux(LinkId, usize),
    Pool(usize),
    Publisher(usize),
    Table(usize),
    Plan(PlanKey),
    Session(usize),
    Kept(usize, Name),
}

/// A process of an agent: its number, and which boot.
pub(crate) type Boot = (usize, u32);

#[derive(Debug)]
pub(crate) enum Event {
    Deliver(LinkId, usize),
    Wake(Machine),
    /// An agent's connection reaches a proxy: a slot, or whichever the balancer chooses.
    TunnelArrives {
        boot: Boot,
        id: TunnelId,
        slot: Option<usize>,
        avoid: Vec<Connected>,
    },
    TunnelAnswer {
        boot: Boot,
        id: TunnelId,
        answer: TunnelAnswer,
    },
    /// An agent's question to Auth reaches the proxy that passes it on.
    QuestionArrives {
        boot: Boot,
    },
    AnswerArrives {
        boot: Boot,
        answer: Option<Answer>,
    },
    PeerArrives {
        life: usize,
        slot: usize,
    },
    PeerAnswer {
        link: LinkId,
    },
    LifeTick(usize),
    BackendTick,
    StartSlot(usize),
    BootAgent(usize),
    LifeExit(usize),
    Fault(Fault),
    Mend(Mend),
    NewDial,
    CheckDial(usize),
    Redial(usize),
    WriteMore(usize),
    ReadNow(LinkId, StreamId),
    WatchLate(LinkId, Reply),
    Quiet,
    Final,
    End,
}

#[derive(Debug)]
pub(crate) enum TunnelAnswer {
    Accepted(LinkId),
    Refused,
    Already(Connected),
}

/// An event with its time; earlier ones, then those scheduled earlier, are greater (for a max-heap).
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) at: Mono,
    pub(crate) number: u64,
    pub(crate) event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
