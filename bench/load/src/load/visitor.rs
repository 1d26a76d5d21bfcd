//! A plain local port whose connections lead through a proxy to one agent, as a user's own port forwarding does.
//!
//! Some connections to the proxy are made ahead, as the peer that it is measured beside does.

use crate::authority::Authority;
use crate::options::VisitorOptions;
use crate::{say, wait_end_of_input};
use anyhow::{Result, bail};
use rustls::ClientConfig;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wayleave_dial::{DialRequest, DialResponse, DialTarget, VERSION};
use wayleave_net::{BoxStream, connect_tls, read_message, splice, write_message};
use wayleave_runtime::{TaskGroup, random_bytes};
use wayleave_vocab::{HostPort, NodeName, TraceId};

/// Connections that are made ahead.
const AHEAD: usize = 8;
/// Of those some may be too old.
const TRIES_MAX: usize = 2 * AHEAD;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(options: VisitorOptions) -> Result<()> {
    let tls = Authority::read(&options.ca)?.dial_tls()?;
    let node = NodeName::parse(&options.node)?;
    let listener = TcpListener::bind(options.listen).await?;
    let tasks = TaskGroup::new();
    let (sender, ahead) = mpsc::channel(1);
    for _ in 0..AHEAD {
        let (proxy, tls, sender) = (options.proxy.clone(), tls.clone(), sender.clone());
        tasks.spawn_many(async move { connect_ahead(proxy, tls, sender).await });
    }
    let ahead = Arc::new(tokio::sync::Mutex::new(ahead));
    let connections = tasks.clone();
    tasks.spawn("visitor", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (ahead, node) = (ahead.clone(), node.clone());
            connections.spawn_many(async move {
                if let Err(error) = visit(stream, &ahead, node).await {
                    eprintln!("a visit failed: {error:#}");
                }
            });
        }
    });
    say(&json!({ "listening": options.listen.to_string() }))?;
    wait_end_of_input().await
}

async fn connect_ahead(proxy: HostPort, tls: Arc<ClientConfig>, sender: mpsc::Sender<BoxStream>) {
    loop {
        match connect_tls(&proxy, tls.clone()).await {
            Ok(stream) => {
                if sender.send(Box::new(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                eprintln!("a connection ahead failed: {error}");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

type Ahead = tokio::sync::Mutex<mpsc::Receiver<BoxStream>>;

async fn visit(stream: TcpStream, ahead: &Ahead, node: NodeName) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let Some(mut proxied) = ahead.lock().await.recv().await else { bail!("nothing connects any more") };
        match dial(&mut proxied, &node).await {
            Ok(()) => {
                splice(stream, proxied).await?;
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no try")))
}

/// Asks for a stream to a node.
///
/// # Errors
/// When it is refused or does not come.
pub(crate) async fn dial(stream: &mut BoxStream, node: &NodeName) -> Result<()> {
    let request = DialRequest {
        v: VERSION,
        target: DialTarget::Ssh { node: node.clone() },
        host_id: None,
        client_address: None,
        trace_id: TraceId::from_random(random_bytes()),
        from_peer: false,
        report_route: false,
        resume: None,
        needs: std::collections::BTreeSet::new(),
    };
    write_message(stream, &request).await?;
    match read_message(stream, ANSWER_TIMEOUT).await? {
        DialResponse::Established { .. } => Ok(()),
        DialResponse::Refused { refusal } => Err(refusal.into()),
    }
}
