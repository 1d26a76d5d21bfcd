//! The rows of BUDGETS that are measured, each in a module.

mod keystroke;
mod memory;
mod reach;
mod rolling;
mod session;
mod session_rate;
mod silence;
mod size;
mod start;
mod storm;
mod stream;
mod tunnel;
mod tunnel_dial;
mod tunnel_memory;
mod tunnel_stream;

use crate::place::Place;
use crate::report::Findings;
use anyhow::{Result, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    StockSession,
    WaySession,
    Stream,
    Keystroke,
    Start,
    Memory,
    Size,
    TunnelStream,
    TunnelDial,
    TunnelMemory,
    Reach,
    DialRate,
    Storm,
    Silence,
    Rolling,
    SessionRate,
}

impl Row {
    pub(crate) const ALL: [Self; 16] = [
        Self::StockSession,
        Self::WaySession,
        Self::Stream,
        Self::Keystroke,
        Self::Start,
        Self::Memory,
        Self::Size,
        Self::TunnelStream,
        Self::TunnelDial,
        Self::TunnelMemory,
        Self::Reach,
        Self::DialRate,
        Self::Storm,
        Self::Silence,
        Self::Rolling,
        Self::SessionRate,
    ];

    pub(crate) fn parse(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|row| row.number().to_string() == text) {
            Some(row) => Ok(row),
            None => bail!("{text:?} is no option and no row that is measured"),
        }
    }

    /// As BUDGETS counts.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::StockSession => 1,
            Self::WaySession => 2,
            Self::Stream => 3,
            Self::Keystroke => 4,
            Self::Start => 5,
            Self::Memory => 6,
            Self::Size => 7,
            Self::TunnelStream => 8,
            Self::TunnelDial => 9,
            Self::TunnelMemory => 10,
            Self::Reach => 11,
            Self::DialRate => 12,
            Self::Storm => 13,
            Self::Silence => 14,
            Self::Rolling => 15,
            Self::SessionRate => 16,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::StockSession => "`ssh node true`, stock OpenSSH via `way proxy ssh`, peered, cold",
            Self::WaySession => "`way ssh node true`, peered, new connection",
            Self::Stream => "one SSH stream, aes128-gcm, stock client, peered and one hop",
            Self::Keystroke => "keystroke echo added by two proxies, idle and beside a copy",
            Self::Start => "start to listening, all roles, existing data directory",
            Self::Memory => "resident memory: idle agent; proxy + Auth + SSH in one process",
            Self::Size => "release binary sizes, stripped",
            Self::TunnelStream => "TCP stream through a tunnel, one hop and peered",
            Self::TunnelDial => "new TCP connection and one byte there and back, one hop and peered",
            Self::TunnelMemory => "memory of the proxy for each idle tunnel of an agent",
            Self::Reach => "tunnel up until another proxy reaches the agent",
            Self::DialRate => "dials a second through peering: open, one byte, close",
            Self::Storm => "all proxies killed: agents come back",
            Self::Silence => "home proxy falls silent: a dial succeeds by the other tunnel",
            Self::Rolling => "rolling restart of all proxies under 1,000 sessions and 500 dials a second",
            Self::SessionRate => "new SSH sessions a second, two cores shared with the load",
        }
    }

    pub(crate) fn goal(self) -> &'static str {
        match self {
            Self::StockSession => "<= 0.6 x `ssh -J`, <= 1.0 x direct",
            Self::WaySession => "<= 0.2 x `ssh -J`",
            Self::Stream => "peered >= 1.0 x `ssh -J` (stretch 1.2); one hop >= 1.5 x 0.46 x direct",
            Self::Keystroke => {
                "idle p50 <= 0.4 ms added; p99 beside a copy <= 0.5 x `ssh -J` with the same copy"
            }
            Self::Start => "<= 150 ms",
            Self::Memory => "<= 12 MiB / <= 30 MiB, after 100 sessions and 60 s idle",
            Self::Size => "daemon <= 40 MB, `way` <= 15 MB",
            Self::TunnelStream => "one hop >= 1.0 x, peered >= 0.75 x rathole TLS",
            Self::TunnelDial => "one hop <= 1.0 x, peered <= 1.4 x rathole TLS",
            Self::TunnelMemory => "<= 20 KiB of RssAnon (stretch 12), after one dial each and idle",
            Self::Reach => {
                "p50 <= 20 ms, p99 <= 100 ms, by each way that routes travel; also at 60,000 tunnels"
            }
            Self::DialRate => ">= 1.0 x rathole TLS, none fails",
            Self::Storm => "99.9 % back <= 10 s; no request to Auth by a returning agent",
            Self::Silence => "p99 <= 1 s with `agent_connection_count` 2",
            Self::Rolling => "0 failed dials, 0 lost sessions, 0 bytes lost",
            Self::SessionRate => ">= 150 a second; agent CPU <= 5 ms; memory <= 1 MiB a session",
        }
    }

    pub(crate) fn measure(self, place: &mut Place<'_>) -> Result<Findings> {
        match self {
            Self::StockSession => session::stock(place),
            Self::WaySession => session::way(place),
            Self::Stream => stream::measure(place),
            Self::Keystroke => keystroke::measure(place),
            Self::Start => start::measure(place),
            Self::Memory => memory::measure(place),
            Self::Size => size::measure(place),
            Self::TunnelStream => tunnel_stream::measure(place),
            Self::TunnelDial => tunnel_dial::latency(place),
            Self::TunnelMemory => tunnel_memory::measure(place),
            Self::Reach => reach::measure(place),
            Self::DialRate => tunnel_dial::rate(place),
            Self::Storm => storm::measure(place),
            Self::Silence => silence::measure(place),
            Self::Rolling => rolling::measure(place),
            Self::SessionRate => session_rate::measure(place),
        }
    }
}
