//! Joins two streams: bytes both ways, half-close kept, until both directions ended or one failed.

use std::io;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

/// Size of each direction's buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// Copies until both directions ended; gives the bytes from `a` to `b` and from `b` to `a`.
///
/// # Errors
/// The first error of either stream; both are to be dropped then.
pub async fn splice<A, B>(mut a: A, mut b: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER_BYTES, BUFFER_BYTES).await
}
