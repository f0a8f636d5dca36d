//! What a reader's connection and the bodies on it tell each other: that it is to be cut or to end, and that its reader
//! holds it up.
//!
//! The server makes one for each connection and listens to it; whoever streams on it holds a clone. A loan's end and a
//! reader who takes too little cut by it; a body asks it before it brings more than the reader can take now. It costs an
//! atomic number where nothing has happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

/// A reader's connection. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cut: AtomicBool,
    draining: AtomicBool,
    /// Whoever serves it, to be told of either.
    served_by: AtomicWaker,
    held_up: AtomicBool,
    credentials: AtomicBool,
    /// Bodies that wait for the reader.
    waiting: Mutex<Vec<Waker>>,
}

impl Connection {
    /// A connection that goes on.
    pub fn new() -> Connection {
        Connection::default()
    }

    /// Cuts it, whatever is under way on it.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.served_by.wake();
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
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

    /// Notes that a request on it carried accepted credentials. It is no longer closed for another connection.
    pub fn note_credentials(&self) {
        if !self.has_credentials() {
            self.0.credentials.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request on it has carried accepted credentials.
    pub fn has_credentials(&self) -> bool {
        self.0.credentials.load(Ordering::Relaxed)
    }

    /// Has the task woken that serves it where it is cut or drained from now on.
    pub fn listen(&self, context: &Context<'_>) {
        self.0.served_by.register(context.waker());
    }

    /// How many hold it, itself included.
    pub fn holders(&self) -> usize {
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

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
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

    #[test]
    fn every_body_that_waits_for_the_reader_is_woken_once() {
        let (connection, woken) = (Connection::new(), Arc::new(Woken::default()));
        let other = Arc::new(Woken::default());
        let (waker, another) = (woken.clone().into(), other.clone().into());
        let (one, two) = (Context::from_waker(&waker), Context::from_waker(&another));
        assert!(connection.poll_takes(&one).is_ready());
        connection.held_up(true);
        assert!(connection.poll_takes(&one).is_pending() && connection.poll_takes(&one).is_pending());
        assert!(connection.poll_takes(&two).is_pending());
        connection.held_up(false);
        connection.held_up(false);
        assert_eq!((woken.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (1, 1));
        assert!(connection.poll_takes(&one).is_ready());
    }
}
