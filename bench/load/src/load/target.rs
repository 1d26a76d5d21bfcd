//! What is behind agents, visitors and peers alike: each connection begins with a byte that says what it wants.

use crate::options::TargetOptions;
use crate::{say, wait_end_of_input};
use anyhow::Result;
use serde_json::json;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wayleave_runtime::TaskGroup;

/// Every byte comes back.
pub(crate) const ECHO: u8 = b'e';
/// Then comes a length in eight bytes, and so many bytes go back.
pub(crate) const DOWNLOAD: u8 = b'd';
/// All that comes is counted, and the count goes back in eight bytes.
pub(crate) const UPLOAD: u8 = b'u';

const CHUNK_BYTES: usize = 128 * 1024;

pub(crate) async fn serve(options: TargetOptions) -> Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    let tasks = TaskGroup::new();
    let connections = tasks.clone();
    tasks.spawn("target", async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that breaks off is its own measurement's failure.
            connections.spawn_many(async move { drop(answer(stream).await) });
        }
    });
    say(&json!({ "listening": options.listen.to_string() }))?;
    wait_end_of_input().await
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        ECHO => {
            stream.write_all(&[ECHO]).await?;
            let mut buffer = [0; 1024];
            loop {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    return stream.shutdown().await;
                }
                stream.write_all(buffer.get(..read).unwrap_or_default()).await?;
            }
        }
        DOWNLOAD => {
            let mut left = stream.read_u64().await?;
            let chunk = vec![0; CHUNK_BYTES];
            while left > 0 {
                let count = left.min(CHUNK_BYTES as u64);
                stream.write_all(chunk.get(..count as usize).unwrap_or_default()).await?;
                left -= count;
            }
            stream.shutdown().await
        }
        UPLOAD => {
            let (mut chunk, mut count) = (vec![0; CHUNK_BYTES], 0);
            loop {
                match stream.read(&mut chunk).await? {
                    0 => break,
                    read => count += read as u64,
                }
            }
            stream.write_u64(count).await?;
            stream.shutdown().await
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other} is nothing to ask for"))),
    }
}
