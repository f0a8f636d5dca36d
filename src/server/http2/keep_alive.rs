//! The keep-alive of an HTTP/2 connection: PINGs, and the release of unused buffers.
//!
//! `serve` polls it with the connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::super::tls_stream::TlsStream;

/// How long the peer may be silent before it is pinged.
const PING_AFTER: Duration = Duration::from_secs(60);
/// How long the peer has to acknowledge the ping.
const PONG_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to check whether a connection still needs its allowance of the buffer budget.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// The keep-alive of a connection: pings a silent peer, and releases buffers that it does not need.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer is short because the connection holds an allowance of the buffer budget.
    is_short: bool,
    /// Bytes read from the peer until the last check.
    read: u64,
    /// When bytes were last read.
    last_read: Instant,
    /// When a ping was sent, if no byte has arrived since.
    pinged: Option<Instant>,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>) -> KeepAlive {
        let timer = Box::pin(tokio::time::sleep(PING_AFTER));
        KeepAlive {
            pings,
            timer,
            is_short: false,
            read: 0,
            last_read: Instant::now(),
            pinged: None,
        }
    }

    /// Ready when the connection is to be closed.
    pub(super) fn poll(&mut self, tls: &TlsStream, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_short && tls.holds_buffers() {
            self.is_short = true;
            self.timer.as_mut().reset(Instant::now() + RELEASE_AFTER);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            tls.release_if_stalled(now.into_std());
            self.is_short = tls.holds_buffers();
            if self.has_timed_out(tls.bytes_read(), now) {
                return Poll::Ready(());
            }
            let wait = match self.pinged {
                _ if self.is_short => RELEASE_AFTER,
                Some(_) => PONG_TIMEOUT,
                None => PING_AFTER,
            };
            self.timer.as_mut().reset(now + wait);
        }
        if let (Some(pings), Some(_)) = (&mut self.pings, self.pinged) {
            let _ = pings.poll_pong(context);
        }
        Poll::Pending
    }

    /// Whether the peer has not acknowledged a ping in time. Pings a silent peer.
    fn has_timed_out(&mut self, read: u64, now: Instant) -> bool {
        if std::mem::replace(&mut self.read, read) != read {
            (self.last_read, self.pinged) = (now, None);
        }
        if self.pinged.is_none() && now.duration_since(self.last_read) >= PING_AFTER {
            // If the ping cannot be sent, the connection is broken and times out below.
            let _ = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
            self.pinged = Some(now);
        }
        self.pinged.is_some_and(|at| now.duration_since(at) >= PONG_TIMEOUT)
    }
}
