//! The end of an HTTP/2 connection: gives the client time to receive everything.
//!
//! A client sends frames while it reads, such as WINDOW_UPDATE. If they arrive at a closed socket,
//! the kernel resets the connection and discards the response bytes that it still holds. So `serve`
//! closes its side first and reads on until the client closes too (RFC 9112 §9.6).

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::super::tls_stream::TlsStream;
use crate::connection_handle::Connection;

/// How long to wait without input from the client.
const IDLE: Duration = Duration::from_secs(4);
/// How long to wait in all.
const LONGEST: Duration = Duration::from_secs(30);
/// The most bytes to discard: ample for the WINDOW_UPDATEs of a client that reads the rest.
const MAX_DISCARDED: usize = 256 * 1024;

/// Closes the gate's side of the connection, and discards input until the client closes its side.
/// Returns early when the connection is aborted, a timeout expires or the client sends too much.
pub(super) async fn linger(tls: &TlsStream, connection: &Connection) {
    let last = Instant::now() + LONGEST;
    let mut timeout = pin!(tokio::time::sleep(IDLE));
    let mut discarded = 0;
    poll_fn(|context| {
        connection.register_waker(context);
        // The timeout is checked first: tokio lets a task do only so much in one poll, and a client
        // that floods the gate would use that up each time.
        if connection.is_aborted() || timeout.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if let Poll::Ready(Err(_)) = tls.poll_close(context) {
            return Poll::Ready(());
        }
        while let Poll::Ready(read) = tls.poll_discard(context) {
            discarded += match read {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(bytes) => bytes,
            };
            if discarded > MAX_DISCARDED {
                return Poll::Ready(());
            }
            timeout.as_mut().reset((Instant::now() + IDLE).min(last));
        }
        tls.release_if_stalled(Instant::now().into_std());
        timeout.as_mut().poll(context)
    })
    .await;
}
