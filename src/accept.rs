//! Accepts connections, for every listener of the process.
//!
//! Any module with a listener may call [`next`] or [`next_local`]. It depends on no other module.

use std::future::poll_fn;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// The delay after an accept that failed for lack of resources. An immediate retry would only spin.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// When to accept again after a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AcceptRetry {
    /// The listener has freed a resource, so the next accept can succeed.
    AtOnce,
    /// Nothing was freed.
    AfterDelay,
}

/// The most connections that [`queued`] takes, more than fit into an accept queue.
const MAX_QUEUED: usize = 8192;

/// Waits for the next connection of any listener. Returns none once `stop` is cancelled. Cancel
/// safe.
///
/// Calls `on_failure` if an accept failed for lack of resources, such as file descriptors. Skips
/// connections that closed before they were accepted.
pub(crate) async fn next(
    listeners: &[TcpListener],
    stop: &CancellationToken,
    on_failure: impl FnMut(&Error) -> AcceptRetry,
) -> Option<(TcpStream, SocketAddr)> {
    accept_next(|| accept(listeners), stop, on_failure).await
}

/// Like [`next`], for a Unix socket.
pub(crate) async fn next_local(
    listener: &UnixListener,
    stop: &CancellationToken,
    on_failure: impl FnMut(&Error) -> AcceptRetry,
) -> Option<UnixStream> {
    let accepted = accept_next(|| listener.accept(), stop, on_failure).await;
    accepted.map(|(stream, _)| stream)
}

/// Calls `accept` until it has a connection, or `stop` is cancelled.
async fn accept_next<T, F: Future<Output = Result<T, Error>>>(
    accept: impl Fn() -> F,
    stop: &CancellationToken,
    mut on_failure: impl FnMut(&Error) -> AcceptRetry,
) -> Option<T> {
    let accepting = async {
        loop {
            match accept().await {
                Ok(accepted) => return accepted,
                Err(error) if affects_one_connection(&error) => {}
                Err(error) => {
                    if on_failure(&error) == AcceptRetry::AfterDelay {
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await
}

/// Accepts a connection of any of the listeners. Without listeners, it never returns.
async fn accept(listeners: &[TcpListener]) -> Result<(TcpStream, SocketAddr), Error> {
    if let [listener] = listeners {
        return listener.accept().await;
    }
    // Another order each time, so that no listener keeps the others waiting.
    let first = fastrand::usize(..listeners.len().max(1));
    let (before, after) = listeners.split_at(first.min(listeners.len()));
    poll_fn(|context| {
        let mut polled = after.iter().chain(before).map(|listener| listener.poll_accept(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// Closes a listener, and returns the connections that waited in its accept queue: closing would
/// reset them.
pub(crate) fn queued(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let mut queued = Vec::new();
    while queued.len() < MAX_QUEUED {
        match listener.accept() {
            Ok((socket, peer)) => {
                let socket =
                    socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket));
                queued.extend(socket.map(|socket| (socket, peer)));
            }
            Err(error) if affects_one_connection(&error) => {}
            Err(_) => break,
        }
    }
    queued
}

/// Returns the connections that wait in the accept queue of a Unix socket, `limit` at most, before
/// it is closed.
pub(crate) fn queued_local(listener: &UnixListener, limit: usize) -> Vec<UnixStream> {
    let socket = SockRef::from(listener);
    let waiting = std::iter::from_fn(|| socket.accept().ok()).take(limit);
    let opened = waiting.map(|(socket, _)| {
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket.into())
    });
    opened.filter_map(Result::ok).collect()
}

/// Whether the error concerns a single connection that closed before it was accepted.
fn affects_one_connection(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn stop_ends_a_listener_that_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let on_failure = |error: &Error| panic!("{error}");
        let listeners = [listener];
        assert!(next(&listeners, &stop, on_failure).await.is_some());
        stop.cancel();
        assert!(next(&listeners, &stop, on_failure).await.is_none());
    }

    #[tokio::test]
    async fn every_listener_is_accepted_from() {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let stop = CancellationToken::new();
        let on_failure = |error: &Error| panic!("{error}");
        for listener in &listeners {
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let accepted = next(&listeners, &stop, on_failure);
            let accepted = tokio::time::timeout(Duration::from_secs(30), accepted).await;
            let (_, peer) = accepted.expect("a connection").unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
        let timeout = Duration::from_millis(20);
        assert!(tokio::time::timeout(timeout, next(&[], &stop, on_failure)).await.is_err());
        stop.cancel();
        assert!(next(&[], &stop, on_failure).await.is_none());
    }

    #[tokio::test]
    async fn queued_connections_survive_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let queued = queued(listener);
        assert_eq!(queued.len(), 3);
        for ((mut accepted, peer), client) in queued.into_iter().zip(&mut clients) {
            assert_eq!(peer, client.local_addr().unwrap());
            accepted.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn unix_socket_is_accepted_from_until_its_queue_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let on_failure = |error: &Error| panic!("{error}");
        let _first = UnixStream::connect(&path).await.unwrap();
        assert!(next_local(&listener, &stop, on_failure).await.is_some());
        stop.cancel();
        assert!(next_local(&listener, &stop, on_failure).await.is_none());
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(UnixStream::connect(&path).await.unwrap());
        }
        let queued = queued_local(&listener, 2);
        assert_eq!(queued.len(), 2);
        assert_eq!(queued_local(&listener, 2).len(), 1);
        drop(listener);
        for (mut accepted, client) in queued.into_iter().zip(&mut clients) {
            accepted.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
    }

    #[test]
    fn exhausted_descriptors_concern_every_connection() {
        assert!(affects_one_connection(&ErrorKind::ConnectionAborted.into()));
        let exhausted = rustix::io::Errno::MFILE.into();
        assert!(!affects_one_connection(&exhausted));
    }
}
