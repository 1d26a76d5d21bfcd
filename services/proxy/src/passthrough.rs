//! Passes a client's TLS on to Auth unread: login, joining and the admin API end there, not here.

use std::net::SocketAddr;
use std::sync::Arc;
use wayleave_dial::{ForwardHeader, VERSION};
use wayleave_net::{AddressBook, ConnectError, MessageError, Stream, connect_tls, splice, write_message};
use wayleave_vocab::HostPort;

/// A connection that could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassthroughError {
    #[error("Auth cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("Auth did not take the connection")]
    Header(#[source] MessageError),
    #[error("the connection broke")]
    Splice(#[source] std::io::Error),
}

/// Where Auth is and how it is reached.
pub(crate) struct Passthrough {
    pub(crate) addresses: AddressBook,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Passthrough {
    /// Carries one connection to its end.
    pub(crate) async fn carry<S: Stream>(
        &self,
        client: S,
        address: SocketAddr,
    ) -> Result<(), PassthroughError> {
        let connect = |address: HostPort| async move { connect_tls(&address, self.tls.clone()).await };
        let mut auth = self.addresses.connect(connect).await.map_err(PassthroughError::Connect)?;
        let header = ForwardHeader { v: VERSION, client_address: address };
        write_message(&mut auth, &header).await.map_err(PassthroughError::Header)?;
        splice(client, auth).await.map_err(PassthroughError::Splice)?;
        Ok(())
    }
}
