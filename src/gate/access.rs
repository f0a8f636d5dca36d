//! What one loan opens in this process: whether a permit was ever given, whether it is over, and which streams run.
//!
//! A decision and every permit made of it share one [`Access`], so that the end of a loan reaches them all at once. It
//! is one atomic number on the hot path; the list of streams is touched at a body's start and end only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::connection::Connection;
use crate::loan::LoanId;

const UNTAKEN: u8 = 0;
const TAKEN: u8 = 1;
const CLOSED: u8 = 2;

/// The access under one loan.
#[derive(Debug)]
pub(super) struct Access {
    state: AtomicU8,
    streams: Mutex<Streams>,
}

/// The connections that bodies of the loan run on, each body by a number of its own.
#[derive(Debug, Default)]
struct Streams {
    last: u64,
    connections: Vec<(u64, Connection)>,
}

impl Access {
    fn new(state: u8) -> Access {
        Access { state: AtomicU8::new(state), streams: Mutex::default() }
    }

    /// Takes a permit: false where the access is over.
    pub(super) fn take(&self) -> bool {
        let exchanged = |from| self.state.compare_exchange(from, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        match self.state.load(Ordering::Acquire) {
            TAKEN => true,
            _ => matches!(exchanged(UNTAKEN), Ok(_) | Err(TAKEN)),
        }
    }

    /// Ends the access if no permit was ever taken: then none ever will be, and no byte can have left.
    pub(super) fn close_untaken(&self) -> bool {
        self.state.compare_exchange(UNTAKEN, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn close(&self) {
        self.state.store(CLOSED, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Notes that a body runs on this connection, and gives its number.
    pub(super) fn enter(&self, connection: Connection) -> u64 {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.last += 1;
        let number = streams.last;
        streams.connections.push((number, connection));
        number
    }

    pub(super) fn leave(&self, number: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.connections.retain(|(other, _)| *other != number);
    }

    /// Cuts every connection on which a body of the loan still runs, and says how many.
    pub(super) fn cut(&self) -> usize {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.connections.iter().for_each(|(_, connection)| connection.cut());
        streams.connections.len()
    }
}

/// The accesses of this process, by loan; held by the decisions, permits and bodies themselves.
#[derive(Debug, Default)]
pub(super) struct Accesses(Mutex<HashMap<LoanId, Weak<Access>>>);

/// How many entries may be added before those are looked for that nobody holds any more.
const TIDIED_AT: usize = 1024;

impl Accesses {
    /// The access of a loan. `fresh` says that this process has just begun the loan, so that no permit can have been
    /// given for it; of every other loan that nobody here holds, one may have been.
    pub(super) fn of(&self, loan: LoanId, fresh: bool) -> Arc<Access> {
        let mut accesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(access) = accesses.get(&loan).and_then(Weak::upgrade) {
            return access;
        }
        if accesses.len() % TIDIED_AT == TIDIED_AT - 1 {
            accesses.retain(|_, access| access.strong_count() > 0);
        }
        let access = Arc::new(Access::new(if fresh { UNTAKEN } else { TAKEN }));
        accesses.insert(loan, Arc::downgrade(&access));
        access
    }

    /// The access of a loan, where somebody holds it.
    pub(super) fn find(&self, loan: LoanId) -> Option<Arc<Access>> {
        let accesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accesses.get(&loan).and_then(Weak::upgrade)
    }

    /// Lets a loan be opened anew whose end came to nothing.
    pub(super) fn forget(&self, loan: LoanId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&loan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_permit_nothing_counts_as_untaken_and_after_the_end_there_is_no_permit() {
        let accesses = Accesses::default();
        let loan = LoanId::fresh();
        let access = accesses.of(loan, true);
        assert!(accesses.of(loan, false).take(), "the same one");
        assert!(!access.close_untaken() && access.take());
        access.close();
        assert!(!access.take() && access.is_closed());

        let untaken = accesses.of(LoanId::fresh(), true);
        assert!(untaken.close_untaken() && !untaken.take());
        assert!(!accesses.of(LoanId::fresh(), false).close_untaken(), "a permit may have been given");
    }

    #[test]
    fn an_end_reaches_the_connections_on_which_bodies_run() {
        let access = Access::new(TAKEN);
        let (one, other) = (Connection::new(), Connection::new());
        let number = access.enter(one.clone());
        access.enter(other.clone());
        access.leave(number);
        assert_eq!(access.cut(), 1);
        assert!(!one.is_cut() && other.is_cut());
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let accesses = Accesses::default();
        for _ in 0..10 * TIDIED_AT {
            accesses.of(LoanId::fresh(), true);
        }
        assert!(accesses.0.lock().unwrap().len() <= TIDIED_AT);
    }
}
