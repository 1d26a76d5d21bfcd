//! Clients on the stopwatch. They speak plain TCP to a local port, whoever is behind it, or dial by the proxy's TLS port.

use crate::authority::{Authority, agent_name};
use crate::latency::Latencies;
use crate::options::{DialsOptions, StreamOptions, SweepOptions};
use crate::say;
use crate::target::{DOWNLOAD, ECHO, UPLOAD};
use crate::visitor::dial;
use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wayleave_net::{BoxStream, connect_tls};

/// How long one connection of one byte may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 128 * 1024;
const BYTES_PER_MIB: u64 = 1024 * 1024;

/// Connects, sends a byte, waits until it comes back, closes; again and again.
pub(crate) async fn dials(options: DialsOptions) -> Result<()> {
    let left = Arc::new(AtomicU64::new(options.count));
    let started = Instant::now();
    let workers = (0..options.concurrency).map(|_| {
        let left = left.clone();
        async move {
            let mut latencies = Latencies::default();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let began = Instant::now();
                match tokio::time::timeout(DIAL_TIMEOUT, echo_once(options.connect)).await {
                    Ok(Ok(())) => latencies.add(began.elapsed()),
                    Ok(Err(_)) | Err(_) => latencies.failed += 1,
                }
            }
            latencies
        }
    });
    let mut all = Latencies::default();
    for latencies in futures::future::join_all(workers).await {
        all.join(latencies);
    }
    say(&all.report(started.elapsed()))
}

async fn echo_once(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO]).await?;
    ensure!(stream.read_u8().await? == ECHO, "another byte came back");
    Ok(())
}

/// One connection of many bytes.
pub(crate) async fn stream(options: StreamOptions) -> Result<()> {
    let bytes = options.mib * BYTES_PER_MIB;
    let started = Instant::now();
    let mut stream = TcpStream::connect(options.connect).await?;
    stream.set_nodelay(true)?;
    if options.is_download {
        download(&mut stream, bytes).await?
    } else {
        upload(&mut stream, bytes).await?
    }
    say(&json!({ "seconds": started.elapsed().as_secs_f64(), "bytes": bytes }))
}

async fn download(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    stream.write_u8(DOWNLOAD).await?;
    stream.write_u64(bytes).await?;
    let (mut chunk, mut count) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match stream.read(&mut chunk).await? {
            0 => break,
            read => count += read as u64,
        }
    }
    ensure!(count == bytes, "{count} of {bytes} bytes came");
    Ok(())
}

async fn upload(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    stream.write_u8(UPLOAD).await?;
    let (chunk, mut left) = (vec![0; CHUNK_BYTES], bytes);
    while left > 0 {
        let count = left.min(CHUNK_BYTES as u64);
        stream.write_all(chunk.get(..count as usize).unwrap_or_default()).await?;
        left -= count;
    }
    stream.shutdown().await?;
    let count = stream.read_u64().await?;
    ensure!(count == bytes, "{count} of {bytes} bytes arrived");
    Ok(())
}

/// One dial to each of many agents by the proxy's TLS port.
pub(crate) async fn sweep(options: SweepOptions) -> Result<()> {
    let tls = Authority::read(&options.ca)?.dial_tls()?;
    let started = Instant::now();
    let numbers = options.first..options.first + options.count;
    let reaching = futures::stream::iter(numbers).map(|number| {
        let (tls, proxy) = (tls.clone(), &options.proxy);
        async move {
            let began = Instant::now();
            let reached = async {
                let in_time = |what| move |_| anyhow::anyhow!("no {what} within {DIAL_TIMEOUT:?}");
                let connecting = tokio::time::timeout(DIAL_TIMEOUT, connect_tls(proxy, tls));
                let mut stream: BoxStream = Box::new(connecting.await.map_err(in_time("connection"))??);
                let name = agent_name(number)?;
                let dialling = tokio::time::timeout(DIAL_TIMEOUT, dial(&mut stream, &name));
                dialling.await.map_err(in_time("answer"))??;
                stream.write_all(&[ECHO]).await?;
                stream.flush().await?;
                let echo = tokio::time::timeout(DIAL_TIMEOUT, stream.read_u8());
                ensure!(echo.await.map_err(in_time("echo"))?? == ECHO, "another byte came back");
                stream.shutdown().await?;
                Ok::<_, anyhow::Error>(began.elapsed())
            };
            reached.await.with_context(|| format!("agent {number}"))
        }
    });
    let mut reaching = std::pin::pin!(reaching.buffer_unordered(options.concurrency));
    let mut latencies = Latencies::default();
    while let Some(reached) = reaching.next().await {
        match reached {
            Ok(took) => latencies.add(took),
            Err(error) => {
                latencies.failed += 1;
                eprintln!("an agent is not reached: {error:#}");
            }
        }
    }
    say(&latencies.report(started.elapsed()))
}
