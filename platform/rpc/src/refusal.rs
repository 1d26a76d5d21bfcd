//! A channel that says why the other side refused its certificate.
//!
//! In TLS 1.3 a server judges a client's certificate when the client may already be talking. Its alert then ends the
//! connection, and the calls that wait are told no more than that they were cancelled. Here the alert is noted where it is
//! read, and they are told.

use futures::future::BoxFuture;
use hyper::{Request, Response};
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// A channel that connects when it is first used, and again after a loss. Clones share the connection.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    refusal: Refusal,
}

impl Channel {
    /// `refusal` is what the streams of its connector are [noting](Noting) in.
    pub(crate) fn new(inner: tonic::transport::Channel, refusal: Refusal) -> Self {
        Self { inner, refusal }
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (call, refusal) = (self.inner.call(request), self.refusal.clone());
        Box::pin(async move { call.await.map_err(|error| refusal.status().map_or(error.into(), Into::into)) })
    }
}

/// What ended the newest connection of a channel before the other side said anything else.
#[derive(Clone, Default)]
pub(crate) struct Refusal(Arc<Mutex<Option<Arc<rustls::Error>>>>);

impl Refusal {
    /// The next connection begins.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }

    fn note(&self, error: &io::Error) {
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        *self.lock() = reason.cloned().map(Arc::new);
    }

    fn status(&self) -> Option<Status> {
        let reason = self.lock().clone()?;
        let mut status = Status::unavailable(format!("the connection was refused: {reason}"));
        status.set_source(reason);
        Some(status)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<rustls::Error>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that notes why it ended before anything was read from it.
pub(crate) struct Noting<S> {
    stream: S,
    refusal: Refusal,
    has_heard: bool,
}

impl<S> Noting<S> {
    pub(crate) fn new(stream: S, refusal: Refusal) -> Self {
        Self { stream, refusal, has_heard: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => self.has_heard = true,
            Poll::Ready(Err(error)) if !self.has_heard => self.refusal.note(error),
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::TokioIo;
    use rustls::AlertDescription;
    use tonic::transport::Endpoint;
    use tower::ServiceExt as _;

    /// Takes everything, and says why it refuses when it is asked.
    struct Refusing;

    impl AsyncRead for Refusing {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert)))
        }
    }

    impl AsyncWrite for Refusing {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn refused(channel: &mut Channel) -> Box<dyn Error + Send + Sync> {
        let request = Request::get("/").body(Body::empty()).unwrap();
        channel.ready().await.unwrap().call(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_call_is_told_why_the_other_side_refused_and_the_next_is_not() {
        let refusal = Refusal::default();
        let noted = refusal.clone();
        let mut is_first = true;
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            noted.forget();
            let stream = std::mem::take(&mut is_first).then(|| Noting::new(Refusing, noted.clone()));
            std::future::ready(stream.map(TokioIo::new).ok_or(io::ErrorKind::ConnectionRefused))
        });
        let connector = connector.map_err(io::Error::from);
        let endpoint = Endpoint::from_static("http://auth").connect_with_connector_lazy(connector);
        let mut channel = Channel::new(endpoint, refusal);

        let told = refused(&mut channel).await.downcast::<Status>().unwrap();
        assert_eq!(told.code(), tonic::Code::Unavailable);
        assert!(told.source().unwrap().downcast_ref::<rustls::Error>().is_some(), "{told:?}");
        assert!(refused(&mut channel).await.downcast::<Status>().is_err());
    }
}
