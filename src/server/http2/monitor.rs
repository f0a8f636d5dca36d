//! The deadlines of an HTTP/2 connection.
//!
//! `serve` polls the [`Http2Monitor`] after each change on the connection. It describes the
//! connection to [`Deadlines`] and reports when a limit is reached.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::super::Worker;
use super::super::deadlines::{Deadlines, DrainNotice, Observed, Step};
use super::super::limits::Limit;
use super::super::pending_responses::PendingResponses;
use super::super::tls_stream::TlsStream;
use crate::connection_handle::Connection;

/// How many bytes the kernel must accept to count as progress on responses. A few acknowledgements
/// of PINGs must not count.
const PROGRESS_STEP: u64 = 4096;

/// What to do with a connection that reached a limit.
pub(super) enum LimitAction {
    /// Accept no further stream, and close after the last one.
    Finish,
    /// Close now.
    Close(Option<Limit>),
}

/// Checks the deadlines of a connection.
pub(super) struct Http2Monitor<'a> {
    tls: &'a TlsStream,
    worker: &'a Worker,
    connection: &'a Connection,
    responses: PendingResponses,
    deadlines: Deadlines,
    next: Pin<Box<Sleep>>,
}

impl<'a> Http2Monitor<'a> {
    pub(super) fn new(
        tls: &'a TlsStream,
        worker: &'a Worker,
        connection: &'a Connection,
        responses: PendingResponses,
    ) -> Http2Monitor<'a> {
        let deadlines = Deadlines::new(worker.config.get().limits.clone(), Instant::now());
        let next = Box::pin(tokio::time::sleep(Duration::ZERO));
        Http2Monitor { tls, worker, connection, responses, deadlines, next }
    }

    /// Ends the connection once no request is in flight, because the gate drains.
    pub(super) fn drain(&mut self, now: Instant) {
        self.deadlines.drain(now, self.connection.is_evicted(), DrainNotice::Goaway);
    }

    /// Ready when a limit is reached.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<LimitAction> {
        loop {
            let observed = self.observe();
            let until = match self.deadlines.check(Instant::now(), &observed) {
                Step::Wait(until) => until,
                Step::Finish(limit) => {
                    self.worker.services.metrics.limit_reached(limit);
                    return Poll::Ready(LimitAction::Finish);
                }
                Step::Close(limit) => {
                    limit
                        .into_iter()
                        .for_each(|limit| self.worker.services.metrics.limit_reached(limit));
                    return Poll::Ready(LimitAction::Close(limit));
                }
            };
            // An earlier timer is not reset: it only causes one more check.
            if until < self.next.deadline() || self.next.is_elapsed() {
                self.next.as_mut().reset(until);
            }
            ready!(self.next.as_mut().poll(context));
        }
    }

    fn observe(&self) -> Observed {
        let traffic = self.tls.traffic();
        Observed {
            awaits_preface: traffic.awaits_preface,
            partial_head: traffic.is_within_head,
            requests: traffic.heads,
            running: !self.connection.is_idle(),
            unsent: self.responses.waiting() > 0 || !traffic.is_sent,
            progress: self.responses.finished() + traffic.sent / PROGRESS_STEP,
            resets: traffic.resets,
            overspent: traffic.is_overspent,
        }
    }
}
