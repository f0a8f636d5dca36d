//! Accept loop of the admin listener, with plain HTTP or TLS, few connections and timeouts.
//!
//! `admin` starts [`accept()`]. The listener has its own limits and reserves file descriptors, so
//! that it stays reachable while the public listener is full.

use std::fs::File;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client_addresses::{Peer, Peers, Source};
use super::sockets::{Connection, Listener};
use crate::accept::AcceptRetry;
use crate::telemetry::LogLimit;

/// The timeout for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for an idle connection, and for a request head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for a stalled write of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of file descriptors reserved for connections when the process has no others left.
pub(super) const RESERVED_DESCRIPTORS: usize = 4;

/// Returns the TLS settings of the server in use. A reload changes them.
pub(crate) type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// The TLS settings of the server in use, restricted to HTTP/1.1.
struct Tls {
    source: TlsSource,
    last: Option<(Arc<ServerConfig>, TlsAcceptor)>,
}

impl Tls {
    fn acceptor(&mut self) -> TlsAcceptor {
        let in_use = (self.source)();
        match &self.last {
            Some((last, acceptor)) if Arc::ptr_eq(last, &in_use) => acceptor.clone(),
            _ => {
                let mut config = ServerConfig::clone(&in_use);
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                let acceptor = TlsAcceptor::from(Arc::new(config));
                self.last = Some((in_use, acceptor.clone()));
                acceptor
            }
        }
    }
}

/// The signals that stop the listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopping {
    /// Closes the listening socket. Open connections end after their running responses.
    pub(super) accepting: CancellationToken,
    /// Closes the connections.
    pub(super) connections: CancellationToken,
}

impl Stopping {
    /// Closes everything.
    pub(super) fn stop(&self) {
        self.accepting.cancel();
        self.connections.cancel();
    }
}

/// What the sockets of the admin listener share.
#[derive(Clone)]
pub(super) struct Shared {
    /// The TLS settings of TCP connections; none for plain HTTP.
    pub(super) tls: Option<TlsSource>,
    pub(super) router: Router,
    pub(super) peers: Peers,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: Stopping,
}

/// Accepts connections until `stopping.accepting` is cancelled.
pub(super) async fn accept(listener: Arc<Listener>, shared: Shared) {
    let failures = LogLimit::per_minute();
    let mut reserve = Reserve::new();
    let mut tls = shared.tls.clone().map(|source| Tls { source, last: None });
    loop {
        let use_reserve = |error: &std::io::Error| {
            let has_freed = reserve.free_one();
            if let Some(left_out) = failures.permit("accept") {
                tracing::warn!(
                    %error,
                    has_freed,
                    left_out,
                    "the admin listener cannot accept a connection"
                );
            }
            if has_freed { AcceptRetry::AtOnce } else { AcceptRetry::AfterDelay }
        };
        let next = listener.next(&shared.stopping.accepting, use_reserve).await;
        let Some((connection, source)) = next else { break };
        reserve.refill();
        shared.spawn(connection, source, tls.as_mut().map(Tls::acceptor));
    }
    for (connection, source) in listener.queued() {
        shared.spawn(connection, source, None);
    }
}

impl Shared {
    /// Serves a connection in a task, if there is room for it.
    fn spawn(&self, connection: Connection, source: Source, tls: Option<TlsAcceptor>) {
        let Some(peer) = self.peers.admit(source) else { return };
        let Stopping { accepting: ending, connections: stop } = self.stopping.clone();
        let serving = serve(connection, tls, self.router.clone(), peer.clone(), ending);
        self.tasks.spawn(async move {
            tokio::select! {
                () = serving => {}
                () = peer.closed() => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

/// Open descriptors in reserve, closed one by one when an accept finds no free descriptor.
struct Reserve(Vec<File>);

impl Reserve {
    fn new() -> Reserve {
        let mut reserve = Reserve(Vec::with_capacity(RESERVED_DESCRIPTORS));
        reserve.refill();
        reserve
    }

    fn refill(&mut self) {
        while self.0.len() < RESERVED_DESCRIPTORS {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    /// Frees a descriptor for the next accept; false if none is left.
    fn free_one(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

/// Serves a connection. Once `ending` is cancelled, it ends after its running response.
async fn serve(
    connection: Connection,
    tls: Option<TlsAcceptor>,
    router: Router,
    peer: Arc<Peer>,
    ending: CancellationToken,
) {
    let router = router.layer(Extension(peer));
    let socket = match connection {
        Connection::Local(stream) => return serve_http(stream, router, ending).await,
        Connection::Tcp(socket) => socket,
    };
    let _ = socket.set_nodelay(true);
    match tls {
        None => serve_http(socket, router, ending).await,
        Some(tls) => {
            if let Ok(Ok(stream)) =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await
            {
                serve_http(stream, router, ending).await;
            }
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite,
    router: Router,
    ending: CancellationToken,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    // hyper closes a connection whose first request has not arrived when it must end.
    let has_request = CancellationToken::new();
    let (router, arrived) = (TowerToHyperService::new(router), has_request.clone());
    let service = service_fn(move |request| {
        arrived.cancel();
        router.call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper applies it between requests as well, so it is the idle timeout too.
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    let may_end = async { tokio::join!(has_request.cancelled(), ending.cancelled()) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = may_end => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin listener broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unread_response_closes_the_connection() {
        let router = Router::new().route("/", get(async || vec![0; 1 << 20]));
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let connection = tokio::time::timeout(
            WRITE_TIMEOUT + Duration::from_secs(2),
            serve_http(server, router, CancellationToken::new()),
        );
        assert!(connection.await.is_ok(), "the write must time out if the client reads nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn ending_connection_responds_to_the_request_that_arrives() {
        let router = Router::new().route("/", get(async || "served"));
        let (mut client, server) = tokio::io::duplex(1024);
        let ending = CancellationToken::new();
        let connection = tokio::spawn(serve_http(server, router, ending.clone()));
        tokio::task::yield_now().await;
        ending.cancel();
        tokio::task::yield_now().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("served"), "{response}");
        connection.await.unwrap();
        // Without a request, the idle timeout ends it.
        let (client, server) = tokio::io::duplex(1024);
        serve_http(server, Router::new(), ending).await;
        drop(client);
    }

    #[test]
    fn reserve_frees_all_its_descriptors() {
        let mut reserve = Reserve::new();
        assert_eq!((0..10).filter(|_| reserve.free_one()).count(), RESERVED_DESCRIPTORS);
        reserve.refill();
        assert!(reserve.free_one());
    }
}
