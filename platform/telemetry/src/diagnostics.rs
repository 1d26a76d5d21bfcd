//! The diagnostics listener: `/metrics`, `/healthz` and `/readyz` over plain HTTP, for whoever watches this process.
//!
//! It is off unless configured and has no login, so it belongs on loopback or a network of the operators.

use crate::health::{Health, State};
use crate::metrics::Registry;
use crate::trace::Tracer;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use wayleave_net::{Admission, BindError, Slots, accept_loop, bind};
use wayleave_runtime::{Shutdown, TaskGroup};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last, so that slots come free.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
const BUFFER_BYTES: usize = 16 * 1024;
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a process shows of itself. Clones show the same.
#[derive(Clone, Default)]
pub struct Diagnostics {
    /// Numbers.
    pub metrics: Registry,
    /// Whether it can work.
    pub health: Health,
    /// What happens to connections.
    pub tracer: Tracer,
}

/// The listener, open and not yet served.
pub struct DiagnosticsListener {
    listener: TcpListener,
    diagnostics: Diagnostics,
}

impl Diagnostics {
    /// Opens the listener.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(&self, address: SocketAddr) -> Result<DiagnosticsListener, BindError> {
        let listener = bind("wayleave.diag_addr", address).await?;
        Ok(DiagnosticsListener { listener, diagnostics: self.clone() })
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served\n".to_owned());
        }
        let json = "application/json";
        match path {
            "/healthz" => response(StatusCode::OK, json, "{\"status\":\"ok\"}\n".to_owned()),
            "/readyz" => {
                let readiness = self.health.readiness();
                let status = match readiness.status {
                    State::Ok | State::Degraded => StatusCode::OK,
                    State::Starting | State::Unready => StatusCode::SERVICE_UNAVAILABLE,
                };
                let body = serde_json::to_string(&readiness).unwrap_or_default();
                response(status, json, format!("{body}\n"))
            }
            "/metrics" => response(StatusCode::OK, PROMETHEUS_TEXT, self.metrics.render()),
            _ => {
                let text = "there are /metrics, /healthz and /readyz\n".to_owned();
                response(StatusCode::NOT_FOUND, "text/plain", text)
            }
        }
    }
}

impl DiagnosticsListener {
    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until shutdown.
    pub async fn run(self, tasks: TaskGroup, shutdown: Shutdown) {
        let (diagnostics, ending) = (self.diagnostics, shutdown.clone());
        let serve = move |stream: TcpStream, _: SocketAddr, admission: Admission| {
            let (diagnostics, ending) = (diagnostics.clone(), ending.clone());
            async move {
                admission.known();
                let serving = tokio::time::timeout(CONNECTION_TIMEOUT, serve(diagnostics, stream));
                let _ = ending.until(serving).await;
            }
        };
        let slots = Slots { connections_max: CONNECTIONS_MAX, strangers_max: CONNECTIONS_MAX };
        accept_loop("diagnostics", self.listener, slots, tasks, shutdown, serve).await;
    }
}

async fn serve(diagnostics: Diagnostics, stream: TcpStream) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = diagnostics.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a diagnostics connection was closed");
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Finding;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn check(address: SocketAddr, path: &str, status: u16, body: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = ask(address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(body), "{answer}");
    }

    #[tokio::test]
    async fn metrics_health_and_readiness_are_served() {
        let diagnostics = Diagnostics::default();
        diagnostics.metrics.counter("dials_total", "Dials.", &[]).increment();
        let listener = diagnostics.bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.address().unwrap();
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        tasks.spawn("diagnostics", listener.run(tasks.clone(), shutdown.clone()));
        check(address, "/healthz", 200, "{\"status\":\"ok\"}").await;
        check(address, "/readyz", 503, "\"starting\"").await;
        diagnostics.health.started();
        check(address, "/readyz", 200, "{\"status\":\"ok\",\"reasons\":[]}").await;
        diagnostics.health.check(|| vec![Finding::degraded("auth_unreachable", "Auth does not answer")]);
        check(address, "/readyz", 200, "auth_unreachable").await;
        diagnostics.health.check(|| vec![Finding::unready("draining", "ending")]);
        check(address, "/readyz", 503, "\"draining\"").await;
        check(address, "/metrics", 200, "dials_total 1\n").await;
        check(address, "/", 404, "/readyz").await;
        let posted = ask(address, "POST /metrics HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        shutdown.request();
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_silent_clients_of_the_diagnostics_delay_nobody() {
        let diagnostics = Diagnostics::default();
        let listener = diagnostics.bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.address().unwrap();
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        tasks.spawn("diagnostics", listener.run(tasks.clone(), shutdown.clone()));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX / 2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        check(address, "/healthz", 200, "ok").await;
        shutdown.request();
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }
}
