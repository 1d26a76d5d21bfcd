//! Machines without an agent: what a proxy does for them beside the SSH that is spoken with them.

use crate::cluster::{Cluster, PATIENCE, check_echo};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use wayleave_dial::DialRequest;
use wayleave_net::{Adapter, BoxStream, Hosting, Inbound, Known, PublishEntry};
use wayleave_runtime::Shutdown;
use wayleave_vocab::HostId;

fn machine() -> HostId {
    HostId::from_random([9; 16])
}

/// Hosts one machine for as long as somebody is connected.
struct Publishing;

impl PublishEntry for Publishing {
    fn serve(
        self: Arc<Self>,
        mut stream: BoxStream,
        _client: SocketAddr,
        known: Known,
        hosting: Arc<dyn Hosting>,
        _shutdown: Shutdown,
    ) -> BoxFuture<'static, ()> {
        known();
        Box::pin(async move {
            let _hosted = hosting.host(machine(), Arc::new(Echo));
            let _end = stream.read_u8().await;
        })
    }
}

/// Sends back what it is sent.
struct Echo;

impl Adapter for Echo {
    fn serves(&self, _request: &DialRequest) -> bool {
        true
    }

    fn serve(self: Arc<Self>, inbound: Inbound, _shutdown: Shutdown) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (mut read, mut write) = tokio::io::split(inbound.stream);
            let _end = tokio::io::copy(&mut read, &mut write).await;
        })
    }
}

#[tokio::test]
async fn a_draining_proxy_waits_for_streams_of_peers_to_machines_that_it_serves() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(machine(), "web-1");
    let mut config = cluster.config(1);
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.tunnel_listen = Some(listen);
    let home = cluster.proxy_with(config, |service| service.publish_entry(Some(Arc::new(Publishing)))).await;
    let ingress = cluster.proxy(2).await;
    let published = TcpStream::connect(listen).await.unwrap();
    let mut stream = cluster.reach(&ingress, "web-1").await;
    check_echo(&mut *stream).await;
    home.shutdown.request();
    crate::cluster::until(|| {
        cluster.auth.proxies().iter().any(|known| known.host_id == home.id.to_string() && known.draining)
    })
    .await;
    check_echo(&mut *stream).await;
    assert!(!home.ended.drained(std::time::Duration::from_millis(500)).await, "it waits for the stream");
    check_echo(&mut *stream).await;
    drop((stream, published));
    assert!(home.ended.drained(PATIENCE).await);
}
