//! SSH for the cluster: the agent's SSH Service, and the proxy's entry for plain `ssh -J`.
//!
//! [`NodeAdapter`] serves the streams that proxies open to an agent: it verifies the user's certificate
//! itself, asks `core/policy`, and gives shells, commands, file transfer and forwarding with the rights of
//! the login. [`JumpEntry`] takes SSH connections at a proxy and joins `direct-tcpip` channels to streams
//! of nodes; it opens nothing else, and the SSH inside ends at the agent.
//!
//! Neither speaks SSH by itself (`wire/ssh`), decides who may do what (`core/policy`), or starts a process
//! of a user (`platform/os`). Both run on one driver: `driver` is the loop around a connection, `pump`
//! joins channels to byte streams, `authenticate` judges certificates.

mod audit;
mod authenticate;
mod driver;
mod identity;
mod jump;
mod limits;
mod link;
mod node;
mod policy_view;
mod publish;
mod pump;

pub use audit::{AuditError, AuditSink};
pub use identity::{HostIdentityError, host_identity};
pub use jump::{JumpConfig, JumpEntry};
pub use node::{LocalSwitches, NodeAdapter, NodeConfig};
pub use policy_view::{PolicySource, PolicyView};
pub use publish::{
    Challenge, PublicationAuthority, PublicationError, PublishConfig, PublishListener, PublishWish,
    Published, SignWish,
};
