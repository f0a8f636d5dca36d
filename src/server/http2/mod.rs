//! HTTP/2 on one connection, over the `h2` crate: one task for the connection and one for each
//! stream.
//!
//! `connection` calls [`serve`] after the handshake. `stream` handles the request of a stream, and
//! `body_sender` sends its body. `monitor` checks the limits of the connection, `keep_alive`
//! pings a silent peer, and `linger` closes the connection.
//!
//! A stream reads from the origin only while its flow-control window is open, and queues no more in
//! `h2` than the window allows. Bytes in `h2` therefore wait for TCP only.
//!
//! A stream ends alone, without harm to the others, when its reader is too slow or its loan has
//! ended: RST_STREAM, and `h2` discards the frames that it has queued for the stream. Frames that
//! `h2` has already written to the TLS stream cannot be taken back. If the kernel does not accept
//! them within half a second, the whole connection is closed, since its reader could otherwise
//! receive bytes of an ended loan later. HTTP/1.1 has no streams, so there an end always closes the
//! connection.

mod body_sender;
mod keep_alive;
mod linger;
mod monitor;
mod stream;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use h2::Reason;
use h2::server::Connection as Http2;
use tokio::time::Instant;

use super::Worker;
use super::connection::ConnectionInfo;
use super::limits::is_abuse;
use super::pending_responses::PendingResponses;
use super::tls_stream::TlsStream;
use crate::delivery::Chunk;
use keep_alive::KeepAlive;
use linger::linger;
use monitor::{Http2Monitor, LimitAction};

/// The largest accepted header list, in bytes. A token is at most 8 KiB.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// The most that `h2` queues for one stream, in bytes. A reader at full speed needs it.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Streams that the gate may reset on one connection because of the peer's errors.
const MAX_LOCAL_RESETS: usize = 1024;

/// Serves a connection until the peer closes it, a limit closes it, it is aborted, or the gate
/// drains and the last stream has ended.
pub(super) async fn serve(tls: TlsStream, worker: Arc<Worker>, info: ConnectionInfo) {
    let connection = info.connection.clone();
    let responses = PendingResponses::default();
    let mut monitor = Http2Monitor::new(&tls, &worker, &connection, responses.clone());
    let Some(mut http2) = handshake(&tls, &worker, &info, &mut monitor).await else { return };
    let mut keep_alive = KeepAlive::new(http2.ping_pong());
    let mut is_ending = false;
    let may_linger = poll_fn(|context| {
        connection.register_waker(context);
        if connection.is_aborted() {
            return Poll::Ready(false);
        }
        if connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            monitor.drain(Instant::now());
            // Sends two GOAWAYs, so that requests in flight from the client still get a response.
            http2.graceful_shutdown();
        }
        if keep_alive.poll(&tls, context).is_ready() {
            connection.abort();
            return Poll::Ready(false);
        }
        let accepted = poll_streams(&mut http2, &worker, &info, &responses, context);
        // Sends the bytes that all streams have written since the last poll.
        match tls.poll_send(context) {
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Ready(Ok(())) if accepted.is_ready() => return accepted,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match monitor.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(LimitAction::Finish) => {
                http2.graceful_shutdown();
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(LimitAction::Close(limit)) => {
                if limit.is_some_and(is_abuse) {
                    http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    let _ = poll_streams(&mut http2, &worker, &info, &responses, context);
                    let _ = tls.poll_send(context);
                }
                Poll::Ready(limit.is_none())
            }
        }
    });
    let may_linger = may_linger.await;
    drop((http2, monitor, keep_alive)); // frees their memory while the client reads the rest
    if may_linger && !connection.is_evicted() {
        linger(&tls, &connection).await;
    }
}

/// Performs the HTTP/2 handshake. Returns none if it fails, a limit is reached, or the connection
/// is aborted before. If the gate drains, the client still has time for it.
async fn handshake(
    tls: &TlsStream,
    worker: &Worker,
    info: &ConnectionInfo,
    monitor: &mut Http2Monitor<'_>,
) -> Option<Http2<TlsStream, Chunk>> {
    let connection = &info.connection;
    let streams = worker.config.get().limits.h2_streams;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        // A client may cancel all its requests at once. `h2_resets_per_minute` limits how often.
        .max_pending_accept_reset_streams(streams as usize)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS));
    let mut handshake = pin!(builder.handshake::<TlsStream, Chunk>(tls.clone()));
    poll_fn(|context| {
        connection.register_waker(context);
        if connection.is_aborted() {
            return Poll::Ready(None);
        }
        if connection.is_draining() {
            monitor.drain(Instant::now());
        }
        let polled = handshake.as_mut().poll(context);
        // Sends the gate's SETTINGS before the peer's preface arrives.
        if let Poll::Ready(Err(_)) = tls.poll_send(context) {
            return Poll::Ready(None);
        }
        if polled.is_ready() {
            return polled.map(Result::ok);
        }
        // No stream exists yet, so any limit closes the connection.
        monitor.poll(context).map(|_| None)
    })
    .await
}

/// Drives the connection and spawns a task for each new stream. Ready when the connection has
/// ended; true if it ended without an error.
fn poll_streams(
    http2: &mut Http2<TlsStream, Chunk>,
    worker: &Arc<Worker>,
    info: &ConnectionInfo,
    responses: &PendingResponses,
    context: &mut Context<'_>,
) -> Poll<bool> {
    loop {
        match ready!(http2.poll_accept(context)) {
            Some(Ok((request, respond))) => {
                // Boxed, since tokio moves a new task's future several times.
                tokio::spawn(Box::pin(stream::handle(
                    worker.clone(),
                    info.clone(),
                    info.connection.begin(),
                    responses.clone(),
                    request,
                    respond,
                )));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection broke");
                return Poll::Ready(false);
            }
            None => return Poll::Ready(true),
        }
    }
}
