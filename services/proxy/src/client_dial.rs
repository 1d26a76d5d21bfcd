//! A client that dials a resource: one TLS connection, one dial request, one stream.

use crate::dial::ProxyDialer;
use crate::service::Shared;
use crate::web::ServerTls;
use std::net::SocketAddr;
use std::sync::Arc;
use wayleave_dial::{DialRefusal, DialRequest, DialResponse, Heard};
use wayleave_identity::Principal;
use wayleave_keystore::Audience;
use wayleave_net::{
    Admission, DIAL_MESSAGE_TIMEOUT, Dialer, MessageError, read_dial_request, splice, write_message,
};
use wayleave_runtime::{Clock, Shutdown};

/// A client that was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientDialError {
    #[error("the client's certificate identifies no user")]
    NotAUser,
    #[error("the client's certificate is not believed")]
    Identify(#[source] wayleave_keystore::IdentifyError),
    #[error("the dial request did not arrive")]
    Request(#[source] MessageError),
    #[error("the answer could not be sent")]
    Answer(#[source] MessageError),
    #[error("the stream broke")]
    Splice(#[source] std::io::Error),
}

pub(crate) async fn serve(
    shared: &Arc<Shared>,
    mut tls: ServerTls,
    client: SocketAddr,
    admission: &Admission,
    shutdown: Shutdown,
) -> Result<(), ClientDialError> {
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let principal = shared
        .config
        .trust
        .identify(chain, Audience::Client, shared.clock.wall())
        .map_err(ClientDialError::Identify)?;
    let Principal::User(user) = principal else {
        return Err(ClientDialError::NotAUser);
    };
    admission.known();
    let heard = read_dial_request(&mut tls, DIAL_MESSAGE_TIMEOUT, "the proxy").await;
    let request = match heard.map_err(ClientDialError::Request)? {
        Heard::Request(request) => *request,
        Heard::Refused(refusal) => {
            tracing::debug!(user = %user.name, %refusal, "a dial request cannot be carried out");
            let answer = DialResponse::Refused { refusal };
            return write_message(&mut tls, &answer).await.map_err(ClientDialError::Answer);
        }
    };
    let report_route = request.report_route;
    tracing::debug!(user = %user.name, target = ?request.target, trace_id = %request.trace_id, "dialling");
    let dialled = if shutdown.is_requested() {
        Err(DialRefusal::Unavailable { detail: "this proxy is going away, try again".to_owned() })
    } else {
        // What the client says of itself and of the way is replaced by what this proxy knows.
        let request =
            DialRequest { client_address: Some(client), from_peer: false, host_id: None, ..request };
        ProxyDialer(shared.clone()).dial(request).await
    };
    let dialled = match dialled {
        Ok(dialled) => dialled,
        Err(refusal) => {
            let answer = DialResponse::Refused { refusal };
            return write_message(&mut tls, &answer).await.map_err(ClientDialError::Answer);
        }
    };
    let answer = DialResponse::Established { route: report_route.then_some(dialled.route) };
    write_message(&mut tls, &answer).await.map_err(ClientDialError::Answer)?;
    splice(tls, dialled.stream).await.map_err(ClientDialError::Splice)?;
    Ok(())
}
