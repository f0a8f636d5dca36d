//! Listening sockets and the worker threads that accept on them.
//!
//! Called by `server::start`. A worker ends when it is told to drain and its last connection has gone, or
//! when it is told to cut.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Worker, connection};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How much may wait in the kernel that has not been sent, in bytes; what is on its way and not yet acknowledged comes
/// on top. Without a bound it is megabytes: a player that jumps leaves them behind, read from the origin for nobody.
const UNSENT: u32 = 128 * 1024;
/// How long to wait after an accept that failed for want of something, such as file descriptors: a retry at
/// once would only spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// A socket that shares its address with the other workers'.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?; // accepted sockets inherit it
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The thread of one worker.
pub(super) fn spawn(number: usize, socket: TcpListener, worker: Worker) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => accept(listener, Arc::new(worker)).await,
                Err(error) => tracing::error!(%error, "a worker could not take up its socket"),
            }
        });
    })
}

async fn accept(listener: tokio::net::TcpListener, worker: Arc<Worker>) {
    let stopping = worker.stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.drain.cancelled() => break,
        };
        match accepted {
            Ok((socket, _)) => {
                stopping.connections.spawn(connection::serve(socket, worker.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    worker.open.drain();
    // The tracker counts the connections of all workers; this one's run on as long as any does.
    tokio::select! {
        () = stopping.connections.wait() => {}
        () = stopping.cut.cancelled() => {}
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
