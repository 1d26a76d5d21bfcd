//! What a bug takes with it: the process, where a part of the proxy is gone, and else one connection.

use crate::cluster::{Cluster, PATIENCE, Proxy, until};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use wayleave_net::{BoxStream, Hosting, Known, PublishEntry};
use wayleave_runtime::Shutdown;
use wayleave_telemetry::Diagnostics;

/// Where an entry has its bug.
#[derive(Clone, Copy)]
enum Bug {
    InTheListener,
    InOneConnection,
}

impl PublishEntry for Bug {
    fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        _client: SocketAddr,
        _known: Known,
        _hosting: Arc<dyn Hosting>,
        _shutdown: Shutdown,
    ) -> BoxFuture<'static, ()> {
        match *self {
            Self::InTheListener => panic!("on purpose, in the listener"),
            Self::InOneConnection => Box::pin(async move {
                let _stream = stream;
                panic!("on purpose, in one connection")
            }),
        }
    }
}

/// A proxy with this bug, and where it is.
async fn proxy_with(bug: Bug, cluster: &Cluster, diagnostics: &Diagnostics) -> (Proxy, SocketAddr) {
    let mut config = cluster.config(1);
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.tunnel_listen = Some(listen);
    let adapt = |service: wayleave_proxy::ProxyService| {
        service.diagnostics(diagnostics).publish_entry(Some(Arc::new(bug)))
    };
    (cluster.proxy_with(config, adapt).await, listen)
}

#[tokio::test]
async fn f_a_proxy_ends_with_an_error_when_a_listener_panics() {
    let cluster = Cluster::start().await;
    let (proxy, listen) = proxy_with(Bug::InTheListener, &cluster, &Diagnostics::default()).await;
    let _visitor = TcpStream::connect(listen).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, proxy.result).await.expect("it ends").unwrap();
    let error = ended.expect_err("that is a failure");
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("published machines") && why.contains("panicked"), "{why}");
}

#[tokio::test]
async fn f_a_connection_that_panics_ends_alone_and_is_counted() {
    let (cluster, diagnostics) = (Cluster::start().await, Diagnostics::default());
    let (mut proxy, listen) = proxy_with(Bug::InOneConnection, &cluster, &diagnostics).await;
    for _ in 0..2 {
        let mut visitor = TcpStream::connect(listen).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, visitor.read_u8()).await.expect("it is closed");
        assert!(ended.is_err());
    }
    until(|| diagnostics.metrics.render().lines().any(|line| line == "proxy_task_panics_total 2")).await;
    assert!(proxy.result.try_recv().is_err(), "the proxy goes on");
}
