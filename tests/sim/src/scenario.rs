//! What a seed stands for: the cluster's size, addresses, delays, and how much goes wrong.

use crate::balancer::Policy;
use crate::random::Random;
use std::num::NonZeroU16;
use std::time::Duration;
use wayleave_peering::{PlanConfig, PublisherConfig, TableConfig};
use wayleave_vocab::{HostId, HostPort, TunnelStrategy};

/// Faults begin after this much time.
pub(crate) const FAULTS_FROM_MS: u64 = 6_000;
/// No fault begins after this.
pub(crate) const FAULTS_UNTIL_MS: u64 = 50_000;
/// Everything has healed by then.
pub(crate) const QUIET_AT: Duration = Duration::from_secs(70);
/// Everything has converged by then; the last dials are made.
pub(crate) const FINAL_AT: Duration = Duration::from_secs(150);
/// The end.
pub(crate) const END_AT: Duration = Duration::from_secs(170);

/// How agents can address proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// Each proxy has an address of its own.
    Direct,
    /// There is only the balancer's.
    Shared,
    /// Proxies tell addresses that do not work from here.
    Broken,
}

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) proxies: usize,
    pub(crate) agents: usize,
    pub(crate) addresses: Addresses,
    pub(crate) policy: Policy,
    pub(crate) strategy: TunnelStrategy,
    pub(crate) delay_ms: (u64, u64),
    pub(crate) faults: usize,
    pub(crate) dials: usize,
}

impl Scenario {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let proxies = 1 + random.below(4) + usize::from(random.chance(30));
        let low = 1 + random.below(20) as u64;
        Self {
            proxies,
            agents: 1 + random.below(4),
            addresses: random
                .pick(&[Addresses::Direct, Addresses::Shared, Addresses::Broken])
                .unwrap_or(Addresses::Direct),
            policy: if random.chance(50) { Policy::RoundRobin } else { Policy::Random },
            strategy: draw_strategy(random),
            delay_ms: (low, low + random.below(30) as u64),
            faults: random.below(9),
            dials: 10 + random.below(20),
        }
    }
}

pub(crate) fn draw_strategy(random: &mut Random) -> TunnelStrategy {
    if random.chance(35) { TunnelStrategy::AgentMesh } else { peering(1 + random.below(3) as u16) }
}

pub(crate) fn peering(count: u16) -> TunnelStrategy {
    TunnelStrategy::ProxyPeering { agent_connection_count: NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN) }
}

pub(crate) fn proxy_id(slot: usize) -> HostId {
    HostId::from_random([0x10 + slot as u8; 16])
}

pub(crate) fn agent_id(agent: usize) -> HostId {
    HostId::from_random([0xa0 + agent as u8; 16])
}

pub(crate) fn slot_of(proxy: HostId) -> usize {
    usize::from(proxy.as_bytes()[0].saturating_sub(0x10))
}

/// The balancer answers at port 443, proxy `n` at its own host `p<n>`.
pub(crate) fn address(host: &str) -> HostPort {
    HostPort::parse(host, Some(443)).expect("the simulation's host names are valid")
}

/// The slot that an address leads to; none for the balancer's.
pub(crate) fn slot_at(address: &HostPort) -> Option<usize> {
    address.host().strip_prefix('p').and_then(|number| number.parse().ok())
}

/// The timers of the product where they matter, shorter where a run would only wait.
pub(crate) fn pool_config() -> wayleave_tunnel::Config {
    wayleave_tunnel::Config {
        search_wait_max: Duration::from_secs(1),
        search_rest: Duration::from_secs(10),
        // In a run this short only doubt makes an agent ask again.
        ask_interval: Duration::from_secs(24 * 3600),
        doubt_wait: Duration::from_secs(2),
        doubt_wait_max: Duration::from_secs(8),
        lost_wait: Duration::from_secs(2),
        ..wayleave_tunnel::Config::default()
    }
}

pub(crate) fn table_config() -> TableConfig {
    TableConfig { expire_after: Duration::from_secs(20), ..TableConfig::default() }
}

pub(crate) fn publisher_config() -> PublisherConfig {
    PublisherConfig { write_routes_max: 2, ..PublisherConfig::default() }
}

pub(crate) fn plan_config() -> PlanConfig {
    PlanConfig::default()
}

pub(crate) fn mux_config() -> wayleave_mux::Config {
    wayleave_mux::Config {
        window_open_bytes: 16 * 1024,
        window_initial_bytes: 64 * 1024,
        window_max_bytes: 256 * 1024,
        window_pool_bytes: 1024 * 1024,
        send_queue_bytes: 32 * 1024,
        ..wayleave_mux::Config::default()
    }
}
