//! One public connection, from its TLS handshake to its end.
//!
//! `listen` spawns [`serve`] as a task of the worker. The HTTP version follows ALPN. The connection
//! ends when the client closes it, when a limit is reached, when the gate drains and the last
//! response is sent, or when another part of the gate aborts it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::deadlines::NEXT_REQUEST_GRACE;
use super::limits::Limit;
use super::open_connections::Entry;
use super::placement::WorkerSlot;
use super::proxy_protocol::{self, ProxiedClient, ProxyError};
use super::tls_stream::{self, TlsStream};
use super::{Worker, http1, http2};
use crate::buffer_budget::Size;
use crate::connection_handle::Connection;
use crate::telemetry::{Handshake, LogLimit};

/// Limits the log of load balancers without a header to one line a minute.
static PROXY_LOG: LogLimit = LogLimit::per_minute();

/// The largest accepted request head, in bytes. A token is at most 8 KiB.
pub(super) const HEAD_SIZE: usize = 16 * 1024;

/// The connection of a request.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    /// The server name that the client requested (SNI).
    pub(super) name: Option<Arc<str>>,
    /// The address of the client, which a load balancer may name.
    pub(super) client: Option<IpAddr>,
    /// The handle of the connection that the request arrived on.
    pub(super) connection: Connection,
    /// Whether the client decides which of its requests are sampled.
    pub(super) is_trusted: bool,
}

/// Serves one connection to its end. Both guards count it as open until then: the slot for this
/// worker, the entry for the server.
pub(super) async fn serve(socket: TcpStream, worker: Arc<Worker>, _slot: WorkerSlot, entry: Entry) {
    let connection = entry.connection();
    let handshake = Box::pin(handshake(socket, &worker, &entry));
    let accepted = unless_late(connection, handshake).await;
    let (tls, info) = match accepted.unwrap_or(Err(Handshake::Failed)) {
        Ok(accepted) => accepted,
        Err(outcome) => return worker.services.metrics.handshake(outcome),
    };
    connection.note_established();
    worker.services.metrics.handshake(Handshake::Ok);
    worker.services.metrics.connection_opened(worker.number);
    let _closed = ClosedOnDrop(worker.clone());
    if tls.coalesces() {
        Box::pin(http2::serve(tls, worker.clone(), info)).await;
    } else {
        http1::serve(tls, &worker, info).await;
    }
}

/// Reads the header of a load balancer and performs the TLS handshake. Returns the outcome if one
/// of them fails or times out, or if the connection is one of a certificate authority.
async fn handshake(
    mut socket: TcpStream,
    worker: &Worker,
    entry: &Entry,
) -> Result<(TlsStream, ConnectionInfo), Handshake> {
    let _ = socket.set_nodelay(true);
    let connection = entry.connection();
    let tls = worker.certificates.tls();
    let accepted = async {
        let client = match entry.is_proxied {
            true => count_for_client(&mut socket, entry).await.ok_or(Handshake::Failed)?,
            false => socket.peer_addr().ok().map(|address| address.ip()),
        };
        let accepted = match &tls.challenges {
            None => {
                let acceptor = TlsAcceptor::from(tls.config.clone());
                let accepted =
                    acceptor.accept_with(socket, |session| session.set_buffer_limit(None));
                accepted.await.map_err(|_| Handshake::Failed)
            }
            Some(challenges) => Box::pin(challenges.accept(socket, tls.config.clone())).await,
        };
        Ok((accepted?, client))
    };
    let limit = worker.config.get().limits.handshake;
    let Ok(accepted) = tokio::time::timeout(limit, accepted).await else {
        worker.services.metrics.limit_reached(Limit::Handshake);
        return Err(Handshake::Failed);
    };
    let (stream, client) = accepted?;
    let (socket, session) = stream.into_inner();
    let name = session.server_name().map(Arc::from);
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    if is_http2 {
        connection.set_multiplexed();
    }
    let size = Size::new(&worker.services.buffers, tls_stream::MAX_SEALED);
    let tls = TlsStream::new(socket, session, connection.clone(), size, is_http2);
    let is_trusted = client.is_some_and(|client| worker.services.tracer.trusts(client));
    Ok((tls, ConnectionInfo { name, client, connection: connection.clone(), is_trusted }))
}

/// Reads the header of a load balancer, and counts the connection for the client that it names.
/// Returns the client's address if it has one, and none at all if there is no usable header.
async fn count_for_client(socket: &mut TcpStream, entry: &Entry) -> Option<Option<IpAddr>> {
    match proxy_protocol::read_client(socket).await {
        Ok(ProxiedClient::At(address)) => {
            entry.count_for(address);
            Some(Some(address))
        }
        Ok(ProxiedClient::Unknown) => {
            // All that are not named count together.
            let balancer = socket.peer_addr().ok().map(|address| address.ip());
            balancer.into_iter().for_each(|address| entry.count_for(address));
            Some(None)
        }
        Ok(ProxiedClient::Balancer) => Some(None),
        // A check of the balancer which only connects.
        Err(ProxyError::Ended(_)) => None,
        Err(error) => {
            if let Some(left_out) = PROXY_LOG.permit("proxy") {
                let balancer = socket.peer_addr().map(|address| address.ip().to_string());
                tracing::warn!(
                    balancer = balancer.unwrap_or_default(),
                    %error,
                    left_out,
                    "closed a connection from a network in listen.proxy_protocol; let the load \
                     balancer send the PROXY protocol, or take its network from the list"
                );
            }
            None
        }
    }
}

/// Waits for the future. Returns none if the connection is aborted before.
pub(super) async fn unless_aborted<F: Future + Unpin>(
    connection: &Connection,
    future: F,
) -> Option<F::Output> {
    poll_unless_aborted(connection, future, |_| Poll::Pending).await
}

/// Waits for the future. Returns none if the connection is aborted before, or has drained for
/// [`NEXT_REQUEST_GRACE`]: a client that has just connected gets its response.
async fn unless_late<F: Future + Unpin>(connection: &Connection, future: F) -> Option<F::Output> {
    let mut grace: Option<Pin<Box<Sleep>>> = None;
    let is_late = |context: &mut Context<'_>| {
        if !connection.is_draining() {
            return Poll::Pending;
        }
        let sleep = || Box::pin(tokio::time::sleep(NEXT_REQUEST_GRACE));
        grace.get_or_insert_with(sleep).as_mut().poll(context)
    };
    poll_unless_aborted(connection, future, is_late).await
}

async fn poll_unless_aborted<F: Future + Unpin>(
    connection: &Connection,
    mut future: F,
    mut is_late: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Option<F::Output> {
    poll_fn(|context| {
        connection.register_waker(context);
        if connection.is_aborted() || is_late(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut future).poll(context).map(Some)
    })
    .await
}

/// Counts the connection as closed when it is dropped.
struct ClosedOnDrop(Arc<Worker>);

impl Drop for ClosedOnDrop {
    fn drop(&mut self) {
        self.0.services.metrics.connection_closed(self.0.number);
    }
}
