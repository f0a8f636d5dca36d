//! The shared handle of a reader's connection: whether it is to be closed, whether its writes are
//! blocked, and how many bytes the kernel has accepted.
//!
//! The server creates one handle for each connection. Each request and each body of a file holds an
//! [`InFlight`] guard of it, so that the server knows when the connection is idle. The gate aborts
//! a body through [`OutgoingBody`] when its loan ends, and delivery when its reader is too slow. A
//! body reports written bytes with [`Connection::record`], and the server calls
//! [`OutgoingBody::left`] once the kernel has accepted them. A check without news costs one atomic
//! load.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

use crate::lock::lock;

/// Why a body is aborted before its last byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Abort {
    /// The loan of the body has ended.
    LoanEnded,
    /// The reader has stalled, or reads below the minimum rate.
    TooSlow,
}

/// A response body in flight, until the kernel has accepted its last byte.
pub trait OutgoingBody: Debug + Send + Sync {
    /// The connection that the body is sent on.
    fn connection(&self) -> &Connection;

    /// Aborts the body. HTTP/2 resets its stream; HTTP/1.1 closes its connection.
    fn abort(&self, why: Abort);

    /// Records that the kernel has accepted `count` bytes of the body. `at` is their position in
    /// the file, if it is known.
    fn left(&self, at: Option<u64>, count: usize);
}

/// Bytes of a body that were written to the connection.
#[derive(Debug)]
pub struct Written {
    /// The body, which is held until the kernel has accepted the bytes.
    pub body: Arc<dyn OutgoingBody>,
    /// The position of the first byte in the file; none if the bytes are not from the file.
    pub at: Option<u64>,
    /// The number of bytes.
    pub count: usize,
}

/// The handle of a reader's connection. Clones share its state.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cut: AtomicBool,
    draining: AtomicBool,
    is_evicted: AtomicBool,
    /// Whether bodies share the connection (HTTP/2), so that each can be reset separately.
    is_multiplexed: AtomicBool,
    /// Wakes the task that serves the connection.
    serving_task: AtomicWaker,
    write_blocked: AtomicBool,
    credentials: AtomicBool,
    is_established: AtomicBool,
    /// The number of [`InFlight`] guards.
    in_flight: AtomicUsize,
    /// The wakers of bodies that wait until writes are no longer blocked.
    blocked_bodies: Mutex<Vec<Waker>>,
    /// Bytes that the kernel has accepted, TLS overhead included.
    sent: AtomicU64,
    /// Whether `written` has entries.
    has_written: AtomicBool,
    /// The bytes written since the last [`Connection::take_written`].
    written: Mutex<WrittenLog>,
}

/// A request or a file's body in flight on a connection, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Connection);

#[derive(Debug, Default)]
struct WrittenLog {
    /// Whether the socket is closed. Unsent bytes are then never sent.
    is_closed: bool,
    entries: Vec<Written>,
}

impl Connection {
    /// Returns the handle of an open connection.
    pub fn new() -> Connection {
        Connection::default()
    }

    /// Aborts the connection and all its requests at once. The kernel discards unsent bytes.
    pub fn abort(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.serving_task.wake();
    }

    /// Whether the connection is aborted.
    pub fn is_aborted(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }

    /// Records that bodies share the connection (HTTP/2).
    pub fn set_multiplexed(&self) {
        self.0.is_multiplexed.store(true, Ordering::Relaxed);
    }

    /// Whether bodies share the connection, so that each can be reset separately.
    pub fn is_multiplexed(&self) -> bool {
        self.0.is_multiplexed.load(Ordering::Relaxed)
    }

    /// Records written bytes of a body. [`OutgoingBody::left`] is called once the kernel has
    /// accepted them. They are dropped if the connection closes before.
    pub fn record(&self, written: Written) {
        let mut log = self.written();
        if log.is_closed {
            // After the lock is released: dropping a body calls other modules.
            drop(log);
            return drop(written);
        }
        log.entries.push(written);
        self.0.has_written.store(true, Ordering::Release);
    }

    /// Passes the bytes written since the last call to `take`.
    pub fn take_written(&self, take: impl FnMut(Written)) {
        if self.0.has_written.load(Ordering::Acquire) {
            let mut log = self.written();
            self.0.has_written.store(false, Ordering::Release);
            log.entries.drain(..).for_each(take);
        }
    }

    /// Records that the socket is closed, and drops all unsent entries.
    pub fn note_closed(&self) {
        let mut log = self.written();
        log.is_closed = true;
        let entries = std::mem::take(&mut log.entries);
        drop(log);
        drop(entries);
    }

    /// Records that the kernel has accepted `bytes` more bytes.
    pub fn note_sent(&self, bytes: usize) {
        // Only one task writes, so a plain store is enough.
        let sent = self.0.sent.load(Ordering::Relaxed) + bytes as u64;
        self.0.sent.store(sent, Ordering::Relaxed);
    }

    /// Bytes that the kernel has accepted since the start, TLS overhead included.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Closes the connection once no request is in flight.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.serving_task.wake();
    }

    /// Drains an idle connection to make room for another one. It is then not kept open for the
    /// client to read what was sent before.
    pub(crate) fn evict(&self) {
        self.0.is_evicted.store(true, Ordering::Release);
        self.drain();
    }

    /// Returns whether the connection is drained to make room for another one.
    pub(crate) fn is_evicted(&self) -> bool {
        self.0.is_evicted.load(Ordering::Acquire)
    }

    /// Whether the connection closes once no request is in flight.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Records that a request had accepted credentials. The connection is then no longer closed to
    /// make room for another one, unless it is idle.
    pub fn note_credentials(&self) {
        if !self.has_credentials() {
            self.0.credentials.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request on the connection had accepted credentials.
    pub fn has_credentials(&self) -> bool {
        self.0.credentials.load(Ordering::Relaxed)
    }

    /// Records that the TLS handshake is complete. Before, the connection is not idle.
    pub fn note_established(&self) {
        self.0.is_established.store(true, Ordering::Relaxed);
    }

    /// Counts a request or a file's body as in flight until the returned guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Returns whether the connection is established and nothing is in flight. From another thread,
    /// the result may be outdated.
    pub fn is_idle(&self) -> bool {
        self.0.is_established.load(Ordering::Relaxed)
            && self.0.in_flight.load(Ordering::Relaxed) == 0
    }

    /// Registers the task that serves the connection, to be woken on an abort or a drain.
    pub fn register_waker(&self, context: &Context<'_>) {
        self.0.serving_task.register(context.waker());
    }

    /// Sets whether the socket accepts no more bytes. Wakes waiting bodies when it does again.
    pub fn set_write_blocked(&self, write_blocked: bool) {
        if self.0.write_blocked.swap(write_blocked, Ordering::AcqRel) && !write_blocked {
            let waiting = std::mem::take(&mut *self.blocked_bodies());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Whether the socket accepts no more bytes now.
    pub fn is_write_blocked(&self) -> bool {
        self.0.write_blocked.load(Ordering::Acquire)
    }

    /// Ready when the socket accepts bytes.
    pub fn poll_writable(&self, context: &Context<'_>) -> Poll<()> {
        if !self.is_write_blocked() {
            return Poll::Ready(());
        }
        let mut waiting = self.blocked_bodies();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        drop(waiting);
        // Checked again: either the other task finds the waker, or this one sees the change.
        if self.is_write_blocked() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn blocked_bodies(&self) -> MutexGuard<'_, Vec<Waker>> {
        lock(&self.0.blocked_bodies)
    }

    fn written(&self) -> MutexGuard<'_, WrittenLog> {
        lock(&self.0.written)
    }
}

impl InFlight {
    /// The connection that it is in flight on.
    pub fn connection(&self) -> &Connection {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn serving_task_is_woken_on_abort_and_drain() {
        let (connection, woken) = (Connection::new(), Arc::new(Woken::default()));
        let waker = woken.clone().into();
        connection.register_waker(&Context::from_waker(&waker));
        let clone = connection.clone();
        clone.drain();
        assert!(connection.is_draining() && !connection.is_aborted());
        connection.register_waker(&Context::from_waker(&waker));
        clone.abort();
        assert!(connection.is_aborted());
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn connection_is_idle_while_it_has_no_guard() {
        let connection = Connection::new();
        assert!(!connection.is_idle(), "before the handshake");
        connection.note_established();
        let _clone = connection.clone();
        assert!(connection.is_idle(), "a clone alone is not in flight");
        let (request, body) = (connection.begin(), connection.begin());
        drop(request);
        assert!(!connection.is_idle(), "the body is still being sent");
        drop(body);
        assert!(connection.is_idle());
    }

    #[derive(Debug, Default)]
    struct CountingBody {
        connection: Connection,
        left: AtomicUsize,
    }

    impl OutgoingBody for CountingBody {
        fn connection(&self) -> &Connection {
            &self.connection
        }

        fn abort(&self, _why: Abort) {}

        fn left(&self, _at: Option<u64>, count: usize) {
            self.left.fetch_add(count, Ordering::Relaxed);
        }
    }

    #[test]
    fn written_bytes_hold_their_body_until_the_socket_closes() {
        let body = Arc::new(CountingBody::default());
        let connection = body.connection.clone();
        let written = |count| Written { body: body.clone(), at: None, count };
        connection.record(written(3));
        connection.record(written(4));
        assert_eq!(Arc::strong_count(&body), 3);
        connection.take_written(|Written { body, at, count }| body.left(at, count));
        assert_eq!((Arc::strong_count(&body), body.left.load(Ordering::Relaxed)), (1, 7));
        connection.record(written(5));
        connection.note_closed();
        connection.record(written(6));
        connection.take_written(|_| panic!("no entries after the close"));
        assert_eq!((Arc::strong_count(&body), body.left.load(Ordering::Relaxed)), (1, 7));
    }

    #[test]
    fn each_waiting_body_is_woken_once() {
        let (connection, woken) = (Connection::new(), Arc::new(Woken::default()));
        let other = Arc::new(Woken::default());
        let (waker, another) = (woken.clone().into(), other.clone().into());
        let (one, two) = (Context::from_waker(&waker), Context::from_waker(&another));
        assert!(connection.poll_writable(&one).is_ready());
        connection.set_write_blocked(true);
        assert!(
            connection.poll_writable(&one).is_pending()
                && connection.poll_writable(&one).is_pending()
        );
        assert!(connection.poll_writable(&two).is_pending());
        connection.set_write_blocked(false);
        connection.set_write_blocked(false);
        assert_eq!((woken.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (1, 1));
        assert!(connection.poll_writable(&one).is_ready());
    }
}
