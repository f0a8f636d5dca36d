//! The admin listener's connections: plain or under the server's own certificate, few, and each
//! with deadlines.
//!
//! `admin` starts [`accept`]. The limits are the listener's own, and it keeps file descriptors in
//! reserve, so that it can be reached while the public listener is full.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client_addresses::{Peer, Peers};
use crate::telemetry::LogLimit;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be idle, and how long a request's head may take.
const IDLE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer.
const SEND: Duration = Duration::from_secs(30);
/// How long to wait after an accept that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// File descriptors that are kept for connections where the process has no other left.
pub(super) const RESERVE: usize = 4;

/// The server's TLS settings, for HTTP/1.1 alone.
pub(super) fn acceptor(public: &ServerConfig) -> TlsAcceptor {
    let mut config = public.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Accepts until the listener stops.
pub(super) async fn accept(
    listener: Arc<TcpListener>,
    tls: Option<TlsAcceptor>,
    router: Router,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let (peers, failures) = (Peers::default(), LogLimit::per_minute());
    let mut reserve = Reserve::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                reserve.refill();
                let Some(peer) = peers.admit(address.ip()) else { continue };
                let connection = serve(socket, tls.clone(), router.clone(), peer.clone());
                let stop = stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = peer.closed() => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                let has_freed = reserve.free_one();
                if let Some(left_out) = failures.permit("accept") {
                    tracing::warn!(%error, has_freed, left_out, "the admin listener cannot accept a connection");
                }
                if !has_freed {
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// Descriptors that are held open only to be closed when an accept finds none.
struct Reserve(Vec<File>);

impl Reserve {
    fn new() -> Reserve {
        let mut reserve = Reserve(Vec::with_capacity(RESERVE));
        reserve.refill();
        reserve
    }

    fn refill(&mut self) {
        while self.0.len() < RESERVE {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    /// Frees a descriptor for the next accept; false where none is left.
    fn free_one(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

async fn serve(socket: TcpStream, tls: Option<TlsAcceptor>, router: Router, peer: Arc<Peer>) {
    let _ = socket.set_nodelay(true);
    let router = router.layer(Extension(peer));
    match tls {
        None => converse(socket, router).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
                converse(stream, router).await;
            }
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite, router: Router) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(SEND));
    let ended = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // It runs between requests as well.
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin listener broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unread_answer_ends_the_connection() {
        let router = Router::new().route("/", get(async || vec![0; 1 << 20]));
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let conversation =
            tokio::time::timeout(SEND + Duration::from_secs(2), converse(server, router));
        assert!(conversation.await.is_ok(), "it waits for a client that reads nothing");
    }

    #[test]
    fn the_reserve_frees_what_it_holds() {
        let mut reserve = Reserve::new();
        assert_eq!((0..10).filter(|_| reserve.free_one()).count(), RESERVE);
        reserve.refill();
        assert!(reserve.free_one());
    }
}
