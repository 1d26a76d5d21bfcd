//! SFTP version 3 as OpenSSH speaks it (draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL): bytes to
//! requests and replies and back, for both sides.
//!
//! Pure: no file is opened here. A server reads [`frame::split`], [`Message::decode`] and answers through
//! [`Output`]; the files are `platform/os`. A client drives [`SftpClient`], with [`Download`] and [`Upload`]
//! to keep many requests in flight.

mod attributes;
mod client;
pub mod frame;
mod handle;
mod longname;
mod reader;
mod request;
mod response;
mod status;
mod transfer;

pub use attributes::{Attributes, Owner, Times};
pub use client::{ClientError, ClientEvent, ClientLimits, Reply, RequestId, SftpClient};
pub use handle::{HANDLE_BYTES, HandleTable, HandlesFull};
pub use longname::{LocalTime, longname};
pub use reader::Malformed;
pub use request::{BadRequest, Extension, Message, OpenFlags, Request};
pub use response::{FileSystem, Limits, Name, Output, Response, ResponseBody};
pub use status::{Status, StatusCode};
pub use transfer::{Download, DownloadStep, Upload};

/// The version both sides speak.
pub const VERSION: u32 = 3;

/// Longest packet in bytes without its length, OpenSSH's limit too.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Most file data in one read or write.
pub const DATA_BYTES_MAX: usize = PACKET_BYTES_MAX - 1024;

/// Longest path in bytes, as Linux has it.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most names in one reply that we write.
pub const NAMES_MAX: usize = 128;
