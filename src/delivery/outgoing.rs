//! What a body is bound by until its last byte is with the kernel: permit, limits, metering, and
//! who is notified of its end.
//!
//! [`FileBody`](super::body) and each of its chunks hold one, also the chunks that HTTP/2 queues or
//! TLS has sealed. The last one that is dropped ends the body. The monitor reads its progress; the
//! loan's access and the monitor abort it. Progress is atomic numbers that one task writes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use http::StatusCode;

use super::body::{Delivered, End, OnEnd};
use super::borrower_limits::StreamAllowance;
use super::stall_monitor::StallMonitor;
use crate::connection_handle::{Abort, Connection, OutgoingBody, Written};
use crate::gate::Permit;
use crate::metering::Metered;
use crate::telemetry::Metrics;

/// States of the origin's side of a body.
const RUNNING: u8 = 0;
const WHOLE: u8 = 1;
const FAILED: u8 = 2;

/// Values of `aborted`.
const NOT_ABORTED: u8 = 0;
const LOAN_ENDED: u8 = 1;
const TOO_SLOW: u8 = 2;

/// No place in the monitor's list.
const UNLISTED: usize = usize::MAX;

/// A body's obligations.
pub(super) struct Outgoing {
    connection: Connection,
    /// What it runs under; none for an open file.
    permit: Option<Permit>,
    accounting: Mutex<Accounting>,
    /// Whether the borrower has limits. Without them a chunk does not lock the books.
    has_allowance: bool,
    metrics: Metrics,
    status: StatusCode,
    opened: Instant,
    monitor: StallMonitor,
    /// Its place in the monitor's list.
    slot: AtomicUsize,
    /// Is notified of the end. Empty until the body is under way.
    on_end: OnceLock<OnEnd>,
    /// The task that sends it over HTTP/2, or waits for its reader.
    task: AtomicWaker,
    /// Bytes that became chunks, were written to the connection, and are with the kernel.
    handed: AtomicU64,
    written: AtomicU64,
    /// Bytes of whole chunks that were written.
    recorded: AtomicU64,
    left: AtomicU64,
    source: AtomicU8,
    aborted: AtomicU8,
    /// Whether the next bytes are not available yet, so that the reader cannot take them.
    waits: AtomicBool,
    suspends: AtomicU8,
    resumes: AtomicU32,
}

/// What counts a body's bytes.
#[derive(Debug)]
pub(super) struct Accounting {
    /// Counts under the loan; none for an open file.
    pub(super) metered: Option<Metered>,
    /// The borrower's limits; none where there are none.
    pub(super) allowance: Option<StreamAllowance>,
}

/// How far a body has come, as the monitor sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Progress {
    /// Bytes that were written to the connection.
    pub(super) written: u64,
    /// What the connection has sent, where bytes of the body wait in it.
    pub(super) sent: u64,
    /// Whether the reader cannot take more now.
    pub(super) waits: bool,
}

impl Outgoing {
    /// Obligations of a body that is about to begin.
    pub(super) fn new(
        connection: Connection,
        permit: Option<Permit>,
        accounting: Accounting,
        metrics: Metrics,
        monitor: StallMonitor,
        status: StatusCode,
    ) -> Outgoing {
        Outgoing {
            connection,
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
            handed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
            left: AtomicU64::new(0),
            source: AtomicU8::new(RUNNING),
            aborted: AtomicU8::new(NOT_ABORTED),
            waits: AtomicBool::new(false),
            suspends: AtomicU8::new(0),
            resumes: AtomicU32::new(0),
        }
    }

    /// Begins the body: lists it for the loan's end and for the monitor. False where the loan has
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

    /// A handle of its connection.
    pub(super) fn connection_handle(&self) -> Connection {
        self.connection.clone()
    }

    pub(super) fn connection_ref(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn accounting(&self) -> MutexGuard<'_, Accounting> {
        self.accounting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the borrower has limits.
    pub(super) fn has_allowance(&self) -> bool {
        self.has_allowance
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Why nothing more of it may leave: its loan has ended, or it was aborted. The due time is
    /// checked by [`Outgoing::is_loan_over`].
    pub(super) fn why_over(&self) -> Option<Abort> {
        match self.aborted.load(Ordering::Acquire) {
            LOAN_ENDED => Some(Abort::LoanEnded),
            TOO_SLOW => Some(Abort::TooSlow),
            _ => self.permit.as_ref().filter(|permit| permit.is_closed()).map(|_| Abort::LoanEnded),
        }
    }

    /// Whether its loan has ended or is due.
    pub(super) fn is_loan_over(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_over)
    }

    /// Ready with the reason when it is aborted; the task is woken then, and when it is to be
    /// suspended.
    pub(super) fn poll_aborted(&self, context: &Context<'_>) -> Poll<Abort> {
        self.listen(context);
        self.why_over().map_or(Poll::Pending, Poll::Ready)
    }

    /// Has the task woken that waits for the reader.
    pub(super) fn listen(&self, context: &Context<'_>) {
        self.task.register(context.waker());
    }

    /// `count` bytes became a chunk.
    pub(super) fn note_handed(&self, count: u64) {
        add(&self.handed, count);
    }

    /// `count` bytes of a chunk were discarded, to be fetched again.
    pub(super) fn take_back(&self, count: u64) {
        let handed = self.handed.load(Ordering::Relaxed).saturating_sub(count);
        self.handed.store(handed, Ordering::Relaxed);
        self.source.store(RUNNING, Ordering::Relaxed);
    }

    /// `count` bytes were written to the connection.
    pub(super) fn note_written(&self, count: usize) {
        add(&self.written, count as u64);
    }

    /// The connection will report `count` bytes once they are with the kernel.
    pub(super) fn note_recorded(&self, count: usize) {
        add(&self.recorded, count as u64);
    }

    /// Whether the reader is kept waiting by the origin or by a limit of the gate's.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// The origin has sent all of it.
    pub(super) fn set_whole(&self) {
        self.source.store(WHOLE, Ordering::Relaxed);
    }

    /// The origin has failed.
    pub(super) fn set_failed(&self) {
        self.source.store(FAILED, Ordering::Relaxed);
    }

    /// Times resumed after the origin broke off, or a pause of the reader.
    pub(super) fn set_resumes(&self, resumes: u32) {
        self.resumes.store(resumes, Ordering::Relaxed);
    }

    /// Has it release what it holds for a reader who has taken nothing for a while.
    pub(super) fn suspend(&self, suspension: Suspension) {
        self.suspends.store(suspension as u8, Ordering::Release);
        self.task.wake();
    }

    /// Whether it was to release what it holds, and has not yet.
    pub(super) fn is_suspend_pending(&self) -> bool {
        self.suspends.load(Ordering::Relaxed) != 0
    }

    /// Whether it is to release what it holds; once.
    pub(super) fn takes_suspend(&self) -> Option<Suspension> {
        if self.suspends.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.suspends.swap(0, Ordering::AcqRel) {
            0 => None,
            early if early == Suspension::Early as u8 => Some(Suspension::Early),
            _ => Some(Suspension::Last),
        }
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        let written = self.written.load(Ordering::Relaxed);
        // What waits in the connection leaves in order: whatever the connection sends brings it
        // nearer.
        let is_in_connection =
            self.left.load(Ordering::Relaxed) < self.recorded.load(Ordering::Relaxed);
        let sent = if is_in_connection { self.connection.sent() } else { 0 };
        Progress { written, sent, waits: self.waits.load(Ordering::Relaxed) }
    }

    fn end(&self) -> End {
        let left = self.left.load(Ordering::Relaxed);
        let is_whole = self.source.load(Ordering::Relaxed) == WHOLE;
        match self.aborted.load(Ordering::Acquire) {
            _ if is_whole && left == self.handed.load(Ordering::Relaxed) => End::Complete,
            LOAN_ENDED => End::Cut,
            TOO_SLOW => End::TooSlow,
            _ if self.source.load(Ordering::Relaxed) == FAILED => End::OriginFailed,
            _ if self.is_loan_over() => End::Cut,
            _ => End::HungUp,
        }
    }
}

impl OutgoingBody for Outgoing {
    fn connection(&self) -> &Connection {
        &self.connection
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
        if self.connection.is_multiplexed() {
            self.task.wake();
        } else {
            self.connection.cut();
        }
    }

    fn left(&self, at: Option<u64>, count: usize) {
        let count = count as u64;
        add(&self.left, count);
        self.metrics.delivered(count);
        if let (Some(metered), Some(at)) = (&mut self.accounting().metered, at) {
            metered.sent(at, count);
        }
    }
}

/// What a body of a stalled reader is to release.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Suspension {
    /// What can be requested again: the origin's connections are few.
    Early = 1,
    /// All of it. A body that cannot be resumed ends over HTTP/2.
    Last = 2,
}

/// Has the connection hold a body until what was written before is with the kernel.
pub(super) fn hold_until_flushed(body: &Arc<Outgoing>) {
    body.connection.record(Written { body: body.clone(), at: None, count: 0 });
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let Some(on_end) = self.on_end.take() else { return };
        self.monitor.remove(self.slot.load(Ordering::Relaxed));
        let end = self.end();
        // Counted before the access line is written, so that whoever reads the line finds the
        // count.
        self.accounting().metered = None;
        self.metrics.stream_closed(end.name());
        on_end(Delivered {
            bytes: self.left.load(Ordering::Relaxed),
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

/// A body as the monitor lists it.
pub(super) type Listed = Weak<Outgoing>;

/// Adds to a number that one task writes at a time: cheaper than an atomic addition.
fn add(number: &AtomicU64, count: u64) {
    number.store(number.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}
