//! The state of a running body: permit, limits, metering, progress and the end callback. It lives
//! until the kernel has the last byte.
//!
//! [`FileBody`](super::file_body) and each of its chunks hold a reference, including chunks that
//! HTTP/2 queues or TLS has encrypted. Dropping the last reference ends the body. The monitor reads
//! the progress. The loan's access and the monitor abort the body.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use http::StatusCode;

use super::Settings;
use super::body_end::{Delivered, OnEnd};
use super::borrower_limits::StreamAllowance;
use super::byte_counters::ByteCounters;
use super::stall_monitor::StallMonitor;
use crate::connection_handle::{Abort, Connection, InFlight, OutgoingBody, Written};
use crate::gate::Permit;
use crate::lock::lock;
use crate::metering::Metered;
use crate::telemetry::{Metrics, StreamEnd};

/// States of the origin's side of a body.
const RUNNING: u8 = 0;
const COMPLETE: u8 = 1;
const FAILED: u8 = 2;

/// Values of `aborted`.
const NOT_ABORTED: u8 = 0;
const LOAN_ENDED: u8 = 1;
const TOO_SLOW: u8 = 2;

/// Value of `slot` before the body is registered with the monitor.
const UNLISTED: usize = usize::MAX;

/// The state of a running body.
pub(super) struct Outgoing {
    /// Keeps the connection from being idle.
    in_flight: InFlight,
    /// Permit of the loan; `None` for an open file.
    permit: Option<Permit>,
    accounting: Mutex<Accounting>,
    /// Whether the borrower has limits. Without limits, a chunk takes no lock.
    has_allowance: bool,
    metrics: Metrics,
    status: StatusCode,
    opened: Instant,
    monitor: StallMonitor,
    /// Key in the monitor's registry.
    slot: AtomicUsize,
    /// End callback. Empty until the body begins.
    on_end: OnceLock<OnEnd>,
    /// Task that sends the body over HTTP/2, or waits for its reader.
    task: AtomicWaker,
    counters: ByteCounters,
    source: AtomicU8,
    aborted: AtomicU8,
    /// Whether the body waits for the origin or for a limit, and not for the reader.
    waits: AtomicBool,
    suspends: AtomicU8,
    resumes: AtomicU32,
}

/// Counters of a body's bytes.
#[derive(Debug)]
pub(super) struct Accounting {
    /// Meter of the loan; `None` for an open file.
    pub(super) metered: Option<Metered>,
    /// The borrower's limits; `None` if none are configured.
    pub(super) allowance: Option<StreamAllowance>,
}

/// The progress of a body, for the monitor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Progress {
    /// Bytes of the body written to the connection.
    pub(super) written: u64,
    /// Bytes sent by the connection while bytes of the body wait in it; otherwise 0.
    pub(super) sent: u64,
    /// Whether the body waits for the origin or for a limit.
    pub(super) waits: bool,
}

impl Outgoing {
    /// Creates the state of a body that has not begun.
    pub(super) fn new(
        connection: &Connection,
        permit: Option<Permit>,
        accounting: Accounting,
        metrics: Metrics,
        monitor: StallMonitor,
        status: StatusCode,
    ) -> Outgoing {
        Outgoing {
            in_flight: connection.begin(),
            permit,
            has_allowance: accounting.allowance.is_some(),
            accounting: Mutex::new(accounting),
            metrics,
            status,
            opened: Instant::now(),
            monitor,
            slot: AtomicUsize::new(UNLISTED),
            on_end: OnceLock::new(),
            task: AtomicWaker::new(),
            counters: ByteCounters::default(),
            source: AtomicU8::new(RUNNING),
            aborted: AtomicU8::new(NOT_ABORTED),
            waits: AtomicBool::new(false),
            suspends: AtomicU8::new(0),
            resumes: AtomicU32::new(0),
        }
    }

    /// Returns the settings that the body began with.
    pub(super) fn settings(&self) -> &Settings {
        self.monitor.settings()
    }

    /// Begins the body: registers it with the permit and the monitor. Returns false if the loan has
    /// ended.
    pub(super) fn begin(self: &Arc<Outgoing>, on_end: OnEnd) -> bool {
        let body: Arc<dyn OutgoingBody> = self.clone();
        if self.permit.as_ref().is_some_and(|permit| !permit.begin_stream(Arc::downgrade(&body))) {
            return false;
        }
        self.metrics.stream_opened();
        let _ = self.on_end.set(on_end);
        self.slot.store(self.monitor.add(Arc::downgrade(self)), Ordering::Relaxed);
        true
    }

    pub(super) fn accounting(&self) -> MutexGuard<'_, Accounting> {
        lock(&self.accounting)
    }

    /// Returns whether the borrower has limits.
    pub(super) fn has_allowance(&self) -> bool {
        self.has_allowance
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns why no more of the body may be sent: its loan has ended, or it was aborted. The due
    /// time is checked by [`Outgoing::is_loan_over`].
    pub(super) fn abort_reason(&self) -> Option<Abort> {
        match self.aborted.load(Ordering::Acquire) {
            LOAN_ENDED => Some(Abort::LoanEnded),
            TOO_SLOW => Some(Abort::TooSlow),
            _ => self.permit.as_ref().filter(|permit| permit.is_closed()).map(|_| Abort::LoanEnded),
        }
    }

    /// Returns whether the loan has ended or is due.
    pub(super) fn is_loan_over(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_over)
    }

    /// Waits for the body to be aborted, and returns the reason. The task is also woken when the
    /// body is to be suspended.
    pub(super) fn poll_aborted(&self, context: &Context<'_>) -> Poll<Abort> {
        self.listen(context);
        self.abort_reason().map_or(Poll::Pending, Poll::Ready)
    }

    /// Registers the task to wake on an abort or a suspension.
    pub(super) fn listen(&self, context: &Context<'_>) {
        self.task.register(context.waker());
    }

    /// Returns the counters of the body's bytes.
    pub(super) fn counters(&self) -> &ByteCounters {
        &self.counters
    }

    /// Records that `count` bytes of a chunk were discarded and will be fetched again.
    pub(super) fn record_discarded(&self, count: u64) {
        self.counters.record_discarded(count);
        self.source.store(RUNNING, Ordering::Relaxed);
    }

    /// Sets whether the body waits for the origin or for a limit.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Records that the origin has sent the whole body.
    pub(super) fn set_complete(&self) {
        self.source.store(COMPLETE, Ordering::Relaxed);
    }

    /// Records that the origin has failed.
    pub(super) fn set_failed(&self) {
        self.source.store(FAILED, Ordering::Relaxed);
    }

    /// Sets how often the body was resumed, after a failure of the origin or a suspension.
    pub(super) fn set_resumes(&self, resumes: u32) {
        self.resumes.store(resumes, Ordering::Relaxed);
    }

    /// Requests that the body release its resources, because its reader stalls.
    pub(super) fn suspend(&self, suspension: Suspension) {
        self.suspends.store(suspension as u8, Ordering::Release);
        self.task.wake();
    }

    /// Returns whether a request to suspend has not been handled yet.
    pub(super) fn is_suspend_pending(&self) -> bool {
        self.suspends.load(Ordering::Relaxed) != 0
    }

    /// Takes the request to suspend; each request is returned once.
    pub(super) fn take_suspension(&self) -> Option<Suspension> {
        if self.suspends.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.suspends.swap(0, Ordering::AcqRel) {
            0 => None,
            early if early == Suspension::Early as u8 => Some(Suspension::Early),
            _ => Some(Suspension::Last),
        }
    }

    /// Returns the progress of the body.
    pub(super) fn progress(&self) -> Progress {
        // The connection sends in order, so any bytes that it sends are progress for this body.
        let sent =
            if self.counters.has_bytes_in_connection() { self.connection().sent() } else { 0 };
        let written = self.counters.written();
        Progress { written, sent, waits: self.waits.load(Ordering::Relaxed) }
    }

    fn end(&self) -> StreamEnd {
        let is_complete = self.source.load(Ordering::Relaxed) == COMPLETE;
        match self.aborted.load(Ordering::Acquire) {
            _ if is_complete && self.counters.is_all_accepted() => StreamEnd::Complete,
            LOAN_ENDED => StreamEnd::Cut,
            TOO_SLOW => StreamEnd::TooSlow,
            _ if self.source.load(Ordering::Relaxed) == FAILED => StreamEnd::OriginFailed,
            _ if self.is_loan_over() => StreamEnd::Cut,
            _ => StreamEnd::HungUp,
        }
    }
}

impl OutgoingBody for Outgoing {
    fn connection(&self) -> &Connection {
        self.in_flight.connection()
    }

    fn abort(&self, why: Abort) {
        let why = match why {
            Abort::LoanEnded => LOAN_ENDED,
            Abort::TooSlow => TOO_SLOW,
        };
        let first =
            self.aborted.compare_exchange(NOT_ABORTED, why, Ordering::AcqRel, Ordering::Acquire);
        if first.is_err() {
            return;
        }
        if self.connection().is_multiplexed() {
            self.task.wake();
        } else {
            self.connection().abort();
        }
    }

    fn left(&self, at: Option<u64>, count: usize) {
        let count = count as u64;
        self.counters.record_accepted(count);
        self.metrics.delivered(count);
        if let (Some(metered), Some(at)) = (&mut self.accounting().metered, at) {
            metered.sent(at, count);
        }
    }
}

/// The resources that a body with a stalled reader must release.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Suspension {
    /// Only what can be requested again, because other requests wait for an origin connection.
    Early = 1,
    /// Everything. Over HTTP/2, a body that cannot be resumed ends.
    Last = 2,
}

/// Keeps a body alive until the kernel has everything that was written before.
pub(super) fn hold_until_flushed(body: &Arc<Outgoing>) {
    body.connection().record(Written { body: body.clone(), at: None, count: 0 });
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let Some(on_end) = self.on_end.take() else { return };
        self.monitor.remove(self.slot.load(Ordering::Relaxed));
        let end = self.end();
        // Counted before the access log line, so that a reader of the line finds the count.
        self.accounting().metered = None;
        self.metrics.stream_closed(end);
        on_end(Delivered {
            bytes: self.counters.accepted(),
            end,
            status: self.status,
            opened: self.opened,
            resumes: self.resumes.load(Ordering::Relaxed),
        });
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// A body in the monitor's registry.
pub(super) type BodyHandle = Weak<Outgoing>;
