//! Listening sockets and the worker threads that accept on them.
//!
//! Called by `server::start`. A worker ends when the gate drains and the last connection has
//! closed, or when the time for draining is over.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

use super::placement::Arrival;
use super::{Worker, connection, tls_stream};
use crate::telemetry::LogLimit;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How long to wait after an accept that failed for want of something, such as file descriptors: a
/// retry at once would only spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What keeps connections out is logged once a minute, for all workers together.
static ACCEPT_LOG: LogLimit = LogLimit::per_minute();

/// A socket that shares its address with the other workers'.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_notsent_lowat(tls_stream::UNSENT)?; // accepted sockets inherit it
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The runtime of one worker.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The thread of one worker, and where others hand connections to it.
pub(super) fn spawn(
    runtime: Runtime,
    socket: TcpListener,
    worker: Worker,
    inbox: UnboundedReceiver<Arrival>,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{}", worker.number)).spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => work(listener, inbox, Arc::new(worker)).await,
                Err(error) => tracing::error!(%error, "a worker could not take up its socket"),
            }
        });
    })
}

/// Serves what is accepted here and what others hand over, until the gate drains and the last
/// connection has gone.
async fn work(
    listener: tokio::net::TcpListener,
    mut inbox: UnboundedReceiver<Arrival>,
    worker: Arc<Worker>,
) {
    let stopping = worker.stopping.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    if place(socket, peer.ip(), &worker) {
                        // A connection was closed for this one. Its task frees the descriptor
                        // before the next accept.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    make_room(&error, &worker);
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(arrival) = inbox.recv() => take(arrival, &worker),
            () = stopping.drain.cancelled() => break,
        }
    }
    drop(listener);
    inbox.close();
    while let Some(arrival) = inbox.recv().await {
        take(arrival, &worker);
    }
    worker.open.drain();
    // The tracker counts the connections of all workers; this one's run on as long as any does.
    tokio::select! {
        () = stopping.connections.wait() => {}
        () = stopping.cut.cancelled() => {}
    }
}

/// Serves a connection here, or hands it to a worker that is less busy; or closes it where the
/// server is full. True where another connection was closed for it.
fn place(socket: TcpStream, address: IpAddr, worker: &Arc<Worker>) -> bool {
    let Some(entry) = worker.open.admit(address) else {
        if let Some(left_out) = ACCEPT_LOG.permit("full") {
            let limit = worker.limits.connections;
            tracing::warn!(
                limit,
                left_out,
                "refused a connection: the server is full; raise limits.connections"
            );
        }
        return false;
    };
    let evicted_another = entry.evicted_another;
    let seat = worker.workers.seat(worker.number);
    if seat.is_at(worker.number) {
        worker.stopping.connections.spawn(connection::serve(socket, worker.clone(), seat, entry));
        return evicted_another;
    }
    match socket.into_std() {
        Ok(socket) => {
            let counted = worker.stopping.connections.token();
            if let Err(unsent) = worker.workers.hand_over(Arrival { socket, seat, entry, counted })
            {
                take(unsent, worker);
            }
        }
        Err(error) => tracing::warn!(%error, "a connection could not be handed to another worker"),
    }
    evicted_another
}

/// Serves a connection that another worker accepted.
fn take(arrival: Arrival, worker: &Arc<Worker>) {
    let Arrival { socket, seat, entry, counted } = arrival;
    match TcpStream::from_std(socket) {
        Ok(socket) => {
            worker.stopping.connections.spawn(connection::serve(
                socket,
                worker.clone(),
                seat,
                entry,
            ));
        }
        Err(error) => {
            tracing::warn!(%error, "a connection of another worker could not be registered")
        }
    }
    drop(counted); // its task counts from here on
}

/// Closes a silent connection where file descriptors are exhausted, and logs why nothing is
/// accepted.
fn make_room(error: &std::io::Error, worker: &Worker) {
    let is_exhausted = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    let closed_another = is_exhausted && worker.open.make_room();
    let Some(left_out) = ACCEPT_LOG.permit("accept") else { return };
    if is_exhausted {
        let limit = super::limits::descriptor_limit();
        tracing::warn!(
            %error, limit, closed_another, left_out,
            "no file descriptor for a new connection; raise LimitNOFILE (ulimit -n), or lower limits.connections"
        );
    } else {
        tracing::warn!(%error, left_out, "cannot accept connections");
    }
}

/// Whether the error tells of one connection that went away before it was accepted.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
}
