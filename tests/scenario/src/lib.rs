//! Whole clusters of real processes on loopback, for tests that look from outside.
//!
//! A test makes a [`Scene`] (a directory, the logs, the canary secrets), starts a [`Cluster`] in it, and drives `way`,
//! stock clients and raw sockets against it. Whatever a scene started it ends, by process id, and nothing else. At
//! its end no daemon may have logged an error that the test did not announce, and no canary may stand in any log.
//! Nothing here sleeps: every wait is for a condition, and has a deadline.

#![expect(clippy::unwrap_used, reason = "a test harness stops at the first surprise")]

mod binary;
mod canary;
mod certificates;
mod checks;
mod cluster;
mod config_file;
mod daemon;
mod echo_server;
mod etcd_server;
mod forwarder;
mod impairment;
mod network;
mod one_time_code;
mod port;
mod postgres_server;
mod process_tree;
mod program;
mod rough_link;
mod scene;
mod spread;
mod ssh;
mod terminal;
mod tls_client;
mod wait;
mod wall_clock;

pub use binary::{way, wayleave};
pub use canary::{canary, is_canary_in, note_canary};
pub use certificates::Certificates;
pub use checks::Checks;
pub use cluster::{Cluster, ClusterBuilder, Invitation, Node, Proxy};
pub use config_file::{AuthFile, NodeFile, ProxyFile, Way};
pub use daemon::Daemon;
pub use echo_server::EchoServer;
pub use etcd_server::EtcdServer;
pub use forwarder::{Forwarder, Manner};
pub use impairment::{FrameCounts, Impairment};
pub use network::{Host, Network};
pub use one_time_code::OneTimeCodes;
pub use port::free_port;
pub use postgres_server::PostgresServer;
pub use process_tree::{
    command_line, descendants, holds_in_memory, is_alive, listening_ports, resident_bytes,
};
pub use program::{Output, Program, Running};
pub use scene::Scene;
pub use spread::Spread;
pub use ssh::Ssh;
pub use terminal::Terminal;
pub use tls_client::{TlsClient, is_timeout, tls_connect, tls_over, web_ping};
pub use wait::{PATIENCE, wait_for, wait_until, wait_until_within};
pub use wall_clock::{WallClock, skewed};
