//! What the agent asks of the operating system: accounts, processes that run as them, terminals,
//! and file transfer under a user's own rights.
//!
//! The daemon is threaded, so it never forks itself. It starts its own binary again with
//! [`CHILD_ARGUMENT`]; that process has one thread and forks. What it forks is handed an order on a socket, gives up
//! privileges and becomes what was asked for: see [`Launcher`] for the parent's side and
//! [`run_child`] for the child's. Nothing here decides who may do what: that is `core/policy`.

mod account;
mod child;
mod environment;
mod exit;
mod launch;
mod memory;
mod modes;
mod nursery;
mod order;
mod privileges;
mod process;
mod raw;
mod sftp;
mod socket;
mod terminal;

pub use account::{Account, AccountError};
pub use child::{CHILD_ARGUMENT, run_child};
pub use environment::{
    AcceptedEnvironment, ConnectionAddresses, ENVIRONMENT_VALUE_BYTES_MAX, ENVIRONMENT_VARIABLES_MAX,
    EnvironmentRefusal,
};
pub use exit::Exit;
pub use launch::{ChildSpec, ChildStreams, Launcher, SpawnError, Work};
pub use memory::{GivenBack, IdleMemory, keep_buffer_pages};
pub use modes::TerminalModes;
pub use order::{COMMAND_BYTES_MAX, ChildFailure};
pub use process::{Child, SftpTally, SignalError};
pub use sftp::{SftpAction, SftpActionKind, SftpCounts, SftpReport, SftpServerError, serve_sftp};
pub use socket::UserListener;
pub use terminal::{TerminalReader, TerminalSize, TerminalSpec, TerminalWriter};
