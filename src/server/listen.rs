//! Listening sockets and the worker threads that accept on them.
//!
//! [`start`](super::start) calls it. A worker ends when the gate drains and the last connection has
//! closed, or when the drain times out.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

use super::placement::HandedOver;
use super::{Worker, connection, tls_stream};
use crate::accept::{self, AcceptRetry};
use crate::telemetry::LogLimit;

/// The length of the accept queue of a listening socket.
const BACKLOG: i32 = 4096;

/// Limits the log of refused connections to one line a minute, for all workers together.
static ACCEPT_LOG: LogLimit = LogLimit::per_minute();

/// Opens a listening socket that shares its address with those of the other workers.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_notsent_lowat(tls_stream::NOTSENT_LOWAT)?; // accepted sockets inherit it
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Creates the runtime of one worker.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Starts the thread of one worker. Other workers hand connections to it through `inbox`.
pub(super) fn spawn(
    runtime: Runtime,
    socket: TcpListener,
    worker: Worker,
    inbox: UnboundedReceiver<HandedOver>,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{}", worker.number)).spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => run_worker(listener, inbox, Arc::new(worker)).await,
                Err(error) => {
                    tracing::error!(%error, "worker cannot register its listening socket")
                }
            }
        });
    })
}

/// Serves accepted and handed-over connections until the gate drains and the last connection has
/// closed.
async fn run_worker(
    listener: tokio::net::TcpListener,
    mut inbox: UnboundedReceiver<HandedOver>,
    worker: Arc<Worker>,
) {
    let stopping = worker.stopping.clone();
    let make_room = |error: &std::io::Error| make_room(error, &worker);
    loop {
        let accepted = tokio::select! {
            accepted = accept::next(&listener, &stopping.drain, make_room) => accepted,
            Some(handed_over) = inbox.recv() => {
                serve_handed_over(handed_over, &worker);
                continue;
            }
        };
        let Some((socket, peer)) = accepted else { break };
        if place(socket, peer.ip(), &worker) {
            // A connection was closed for this one. Its task frees the descriptor before the next
            // accept.
            tokio::task::yield_now().await;
        }
    }
    drop(listener);
    inbox.close();
    while let Some(handed_over) = inbox.recv().await {
        serve_handed_over(handed_over, &worker);
    }
    worker.open.drain();
    // The tracker counts the connections of all workers, so each worker waits for all of them.
    tokio::select! {
        () = stopping.connections.wait() => {}
        () = stopping.abort.cancelled() => {}
    }
}

/// Serves a connection at this worker or hands it to a less busy one. Closes it if the server is
/// full. Returns true if another connection was closed to make room.
fn place(socket: TcpStream, address: IpAddr, worker: &Arc<Worker>) -> bool {
    let Some(entry) = worker.open.admit(address) else {
        if let Some(left_out) = ACCEPT_LOG.permit("full") {
            let limit = worker.config.get().limits.connections;
            tracing::warn!(
                limit,
                left_out,
                "refused a connection: the server is full; raise limits.connections"
            );
        }
        return false;
    };
    let evicted_another = entry.evicted_another;
    let slot = worker.workers.reserve_slot(worker.number);
    if slot.is_at(worker.number) {
        worker.stopping.connections.spawn(connection::serve(socket, worker.clone(), slot, entry));
        return evicted_another;
    }
    match socket.into_std() {
        Ok(socket) => {
            let counted = worker.stopping.connections.token();
            if let Err(unsent) =
                worker.workers.hand_over(HandedOver { socket, slot, entry, counted })
            {
                serve_handed_over(unsent, worker);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot hand a connection to another worker"),
    }
    evicted_another
}

/// Serves a connection that another worker accepted.
fn serve_handed_over(handed_over: HandedOver, worker: &Arc<Worker>) {
    let HandedOver { socket, slot, entry, counted } = handed_over;
    match TcpStream::from_std(socket) {
        Ok(socket) => {
            worker.stopping.connections.spawn(connection::serve(
                socket,
                worker.clone(),
                slot,
                entry,
            ));
        }
        Err(error) => {
            tracing::warn!(%error, "cannot register a connection from another worker")
        }
    }
    drop(counted); // its task counts from here on
}

/// Closes a connection if file descriptors are exhausted, and logs why accept failed. The task of
/// the closed connection frees its descriptor during the delay.
fn make_room(error: &std::io::Error, worker: &Worker) -> AcceptRetry {
    let is_exhausted = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    let closed_another = is_exhausted && worker.open.make_room();
    let Some(left_out) = ACCEPT_LOG.permit("accept") else { return AcceptRetry::AfterDelay };
    if is_exhausted {
        let limit = super::limits::descriptor_limit();
        tracing::warn!(
            %error, limit, closed_another, left_out,
            "no file descriptor for a new connection; raise LimitNOFILE (ulimit -n), \
             or lower limits.connections"
        );
    } else {
        tracing::warn!(%error, left_out, "cannot accept connections");
    }
    AcceptRetry::AfterDelay
}
