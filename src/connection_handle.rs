//! A reader's connection as everybody sees it who has something under way on it: whether it is to
//! be closed, whether its reader takes nothing now, and what was handed to the kernel.
//!
//! The server makes one for each connection; each body on it holds a clone. A loan's end and a
//! reader who is too slow abort bodies by [`OutgoingBody`]. A body whose bytes have been written
//! reports it by [`Connection::record`], and hears of them again once they are with the kernel.
//! Where nothing happens, it costs an atomic load.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

/// Why a body is ended before its last byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Abort {
    /// Its loan has ended.
    LoanEnded,
    /// Its reader takes nothing, or too little.
    TooSlow,
}

/// A body under way, until its last byte is with the kernel.
pub trait OutgoingBody: Debug + Send + Sync {
    /// The connection it is sent on.
    fn connection(&self) -> &Connection;

    /// Ends it. Over HTTP/2 its stream is reset; over HTTP/1.1 its connection is closed.
    fn abort(&self, why: Abort);

    /// Notes that `count` of its bytes were handed to the kernel, from byte `at` of the file on,
    /// where that is known.
    fn left(&self, at: Option<u64>, count: usize);
}

/// Bytes of a body that were written to the connection.
#[derive(Debug)]
pub struct Written {
    /// The body, which is held until they are with the kernel.
    pub body: Arc<dyn OutgoingBody>,
    /// Where in the file the first of them is; none where they are not the file's.
    pub at: Option<u64>,
    /// How many they are.
    pub count: usize,
}

/// A reader's connection. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cut: AtomicBool,
    draining: AtomicBool,
    /// Whether bodies share it (HTTP/2), so that one of them can be reset alone.
    is_multiplexed: AtomicBool,
    /// The task that serves it.
    served_by: AtomicWaker,
    held_up: AtomicBool,
    credentials: AtomicBool,
    /// How many hold it while no request is under way on it; zero until that is known.
    idle_holders: AtomicUsize,
    /// Bodies that wait for the reader.
    waiting: Mutex<Vec<Waker>>,
    /// Bytes handed to the kernel, TLS included.
    sent: AtomicU64,
    /// Whether `written` has any.
    has_written: AtomicBool,
    /// What was written since the last [`Connection::take_written`].
    written: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Whether the socket is closed: what was written and not sent never will be.
    is_closed: bool,
    entries: Vec<Written>,
}

impl Connection {
    /// An open connection.
    pub fn new() -> Connection {
        Connection::default()
    }

    /// Closes it at once, whatever is under way on it, and has the kernel discard what is unsent.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.served_by.wake();
    }

    /// Whether it is to be closed at once.
    pub fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }

    /// Notes that bodies share it.
    pub fn set_multiplexed(&self) {
        self.0.is_multiplexed.store(true, Ordering::Relaxed);
    }

    /// Whether bodies share it, so that one of them can be reset alone.
    pub fn is_multiplexed(&self) -> bool {
        self.0.is_multiplexed.load(Ordering::Relaxed)
    }

    /// Notes what was written of a body. It is returned by [`OutgoingBody::left`] once it is with
    /// the kernel, and dropped where the connection ends before.
    pub fn record(&self, written: Written) {
        let mut log = self.written();
        if log.is_closed {
            // Dropped after the lock: a body's end calls others.
            drop(log);
            return drop(written);
        }
        log.entries.push(written);
        self.0.has_written.store(true, Ordering::Release);
    }

    /// Takes what was written since the last call.
    pub fn take_written(&self, take: impl FnMut(Written)) {
        if self.0.has_written.load(Ordering::Acquire) {
            let mut log = self.written();
            self.0.has_written.store(false, Ordering::Release);
            log.entries.drain(..).for_each(take);
        }
    }

    /// Notes that the socket is closed.
    pub fn closed(&self) {
        let mut log = self.written();
        log.is_closed = true;
        let entries = std::mem::take(&mut log.entries);
        drop(log);
        drop(entries);
    }

    /// Notes that so many bytes were handed to the kernel.
    pub fn note_sent(&self, bytes: usize) {
        // One task writes; a plain store is enough.
        let sent = self.0.sent.load(Ordering::Relaxed) + bytes as u64;
        self.0.sent.store(sent, Ordering::Relaxed);
    }

    /// How many bytes were handed to the kernel, TLS included.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Lets it end once nothing is under way on it.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.served_by.wake();
    }

    /// Whether it is to end once nothing is under way.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Notes that a request on it carried accepted credentials. It is no longer closed for another
    /// connection.
    pub fn note_credentials(&self) {
        if !self.has_credentials() {
            self.0.credentials.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request on it has carried accepted credentials.
    pub fn has_credentials(&self) -> bool {
        self.0.credentials.load(Ordering::Relaxed)
    }

    /// Notes that no request is being handled on it and no file is sent: more holders later mean
    /// one.
    pub fn note_idle(&self) {
        self.0.idle_holders.store(self.holders(), Ordering::Relaxed);
    }

    /// Whether no request is being handled on it and no file is sent. From another task it is an
    /// estimate.
    pub fn is_idle(&self) -> bool {
        self.holders() <= self.0.idle_holders.load(Ordering::Relaxed)
    }

    /// Has the task woken that serves it where it is cut or drained from now on.
    pub fn listen(&self, context: &Context<'_>) {
        self.0.served_by.register(context.waker());
    }

    /// How many hold it, itself included.
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Its reader takes nothing now, or takes again.
    pub fn held_up(&self, held_up: bool) {
        if self.0.held_up.swap(held_up, Ordering::AcqRel) && !held_up {
            let waiting = std::mem::take(&mut *self.waiting());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Whether its reader takes nothing now.
    pub fn is_held_up(&self) -> bool {
        self.0.held_up.load(Ordering::Acquire)
    }

    /// Ready when its reader can be brought more.
    pub fn poll_takes(&self, context: &Context<'_>) -> Poll<()> {
        if !self.is_held_up() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        drop(waiting);
        // Looked at again after the waker is on the list: it is either found there, or seen here.
        if self.is_held_up() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Log> {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn who_serves_it_is_woken_when_it_is_cut_or_drained() {
        let (connection, woken) = (Connection::new(), Arc::new(Woken::default()));
        let waker = woken.clone().into();
        connection.listen(&Context::from_waker(&waker));
        let clone = connection.clone();
        assert_eq!(connection.holders(), 2);
        clone.drain();
        assert!(connection.is_draining() && !connection.is_cut());
        connection.listen(&Context::from_waker(&waker));
        clone.cut();
        assert!(connection.is_cut());
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
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
        connection.closed();
        connection.record(written(6));
        connection.take_written(|_| panic!("nothing more is sent"));
        assert_eq!((Arc::strong_count(&body), body.left.load(Ordering::Relaxed)), (1, 7));
    }

    #[test]
    fn every_body_that_waits_for_the_reader_is_woken_once() {
        let (connection, woken) = (Connection::new(), Arc::new(Woken::default()));
        let other = Arc::new(Woken::default());
        let (waker, another) = (woken.clone().into(), other.clone().into());
        let (one, two) = (Context::from_waker(&waker), Context::from_waker(&another));
        assert!(connection.poll_takes(&one).is_ready());
        connection.held_up(true);
        assert!(
            connection.poll_takes(&one).is_pending() && connection.poll_takes(&one).is_pending()
        );
        assert!(connection.poll_takes(&two).is_pending());
        connection.held_up(false);
        connection.held_up(false);
        assert_eq!((woken.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (1, 1));
        assert!(connection.poll_takes(&one).is_ready());
    }
}
