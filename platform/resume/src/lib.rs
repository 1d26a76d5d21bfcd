//! Streams between `way` and an agent that outlive the connection that carries them.
//!
//! [`ClientStream`] and [`AgentStream`] are byte streams for whoever uses them; below each runs the machine of
//! `core/resume` over frames of `wire/resume`. The client makes connections anew when one is lost ([`Redial`]); the
//! agent ([`Resumptions`]) keeps its end and gives it to whoever proves to be the same client. Proxies in between
//! carry the frames and know nothing of them.
//!
//! Who may use a stream is not decided here: the agent's adapter is asked each time (`ResumptionEvent`).

mod agent;
mod client;
mod link;
mod pending;
mod wakers;

pub use agent::{AgentStream, Begun, MaxDetached, Resumptions, ResumptionsConfig};
pub use client::{Agent, ClientStream, News, Redial, RedialError, RedialTo, Redialled};
pub use wayleave_resume::Budget;
