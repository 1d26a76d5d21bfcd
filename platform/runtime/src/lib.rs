//! Tasks, clock and entropy: the effects that everything above needs and tests replace.
//!
//! A task has a name, an owner ([`TaskGroup`]) and a shutdown signal; nothing is detached, and those that a service needs
//! are missed ([`NeededTasks`]). The clock is a trait, so that a test steps it. Randomness comes from one function. What
//! systemd is told of the process is here too.

mod clock;
mod entropy;
mod needed;
#[cfg(unix)]
mod service_manager;
mod tasks;

pub use clock::{Clock, ManualClock, SystemClock};
pub use entropy::{fill_random, random_bytes, random_u64};
pub use needed::{NeededTasks, TaskLost};
#[cfg(unix)]
pub use service_manager::ServiceManager;
pub use tasks::{Shutdown, TaskGroup};
