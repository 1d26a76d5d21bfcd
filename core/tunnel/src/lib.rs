//! An agent's pool of reverse tunnels: which proxies, when, how many, what to give up.
//!
//! [`Pool`] is a machine without IO. It is told what happened (`handle_*`), says what to do
//! ([`Pool::poll_effect`]) and when it wants to be woken ([`Pool::poll_timeout`]). It never closes the last
//! way in before there is another. The strategy comes from verified policy and the list of proxies from Auth; what a
//! proxy tells of others is a hint (`proxies`, `inquiry`). How a tunnel carries streams is `wire/mux`, who may dial through it is
//! `core/policy`, how proxies find the agent is `core/peering`.

mod backoff;
mod config;
mod effect;
mod inquiry;
mod jitter;
mod pool;
mod proxies;
mod reconcile;

pub use config::Config;
pub use effect::{CloseReason, Connected, DialFailure, Effect, TunnelId};
pub use jitter::Jitter;
pub use pool::Pool;
pub use proxies::{PROXIES_MAX, ProxyInfo, ProxyList, ProxyListError, ZONE_BYTES_MAX, Zone};
