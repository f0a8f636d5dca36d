//! Listening sockets and the worker threads that accept on them.
//!
//! [`start`](super::start) calls it. A worker ends when the gate drains and the last connection has
//! closed, or when the drain times out.

use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::placement::HandedOver;
use super::{Worker, connection, tls_stream};
use crate::accept::{self, AcceptRetry};
use crate::telemetry::LogLimit;

/// Limits the log of refused connections to one line a minute, for all workers together.
static ACCEPT_LOG: LogLimit = LogLimit::per_minute();

/// Sets the options that accepted sockets inherit, and deals the listening sockets out to the
/// workers. A worker without a socket serves what others accept, and one may have several.
///
/// The sockets of one address follow each other, so each worker has one of each address if there
/// are as many as workers.
pub(super) fn deal(
    sockets: Vec<TcpListener>,
    workers: usize,
) -> std::io::Result<Vec<Vec<TcpListener>>> {
    let mut dealt: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, socket) in sockets.into_iter().enumerate() {
        SockRef::from(&socket).set_tcp_notsent_lowat(tls_stream::NOTSENT_LOWAT)?;
        if let Some(worker) = number.checked_rem(workers).and_then(|of| dealt.get_mut(of)) {
            worker.push(socket);
        }
    }
    Ok(dealt)
}

#[cfg(test)]
#[test]
fn every_socket_has_a_worker() {
    let sockets = |count| (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for (count, workers, dealt) in
        [(1, 3, vec![1, 0, 0]), (5, 2, vec![3, 2]), (2, 2, vec![1, 1]), (0, 1, vec![0])]
    {
        let of_workers = deal(sockets(count), workers).unwrap();
        assert_eq!(of_workers.iter().map(Vec::len).collect::<Vec<_>>(), dealt);
    }
}

/// Creates the runtime of one worker.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Starts the thread of one worker. Other workers hand connections to it through `inbox`. It drops
/// `accepting` once it accepts no more connections.
pub(super) fn spawn(
    runtime: Runtime,
    sockets: Vec<TcpListener>,
    worker: Worker,
    inbox: UnboundedReceiver<HandedOver>,
    accepting: TaskTrackerToken,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{}", worker.number)).spawn(move || {
        runtime.block_on(async move {
            let sockets = sockets.into_iter().map(tokio::net::TcpListener::from_std);
            match sockets.collect() {
                Ok(listeners) => run_worker(listeners, inbox, Arc::new(worker), accepting).await,
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
    listeners: Vec<tokio::net::TcpListener>,
    mut inbox: UnboundedReceiver<HandedOver>,
    worker: Arc<Worker>,
    accepting: TaskTrackerToken,
) {
    let stopping = worker.stopping.clone();
    let make_room = |error: &std::io::Error| make_room(error, &worker);
    loop {
        let accepted = tokio::select! {
            accepted = accept::next(&listeners, &stopping.drain, make_room) => accepted,
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
    for (socket, peer) in listeners.into_iter().flat_map(accept::queued) {
        place(socket, peer.ip(), &worker);
    }
    inbox.close();
    while let Some(handed_over) = inbox.recv().await {
        serve_handed_over(handed_over, &worker);
    }
    worker.open.drain();
    drop(accepting);
    // The tracker counts the connections of all workers, so each worker waits for all of them.
    tokio::select! {
        () = stopping.connections.wait() => {}
        () = stopping.abort.cancelled() => {}
    }
}

/// Serves a connection at this worker or hands it to a less busy one. Closes it if the server is
/// full. Returns true if another connection was closed to make room.
fn place(socket: TcpStream, address: IpAddr, worker: &Arc<Worker>) -> bool {
    let Some(entry) = worker.open.admit(address, || socket.local_addr().ok()) else {
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
