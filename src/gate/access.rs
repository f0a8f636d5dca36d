//! What one loan opens in this process: whether it may give permits, whether it is over, and which streams run.
//!
//! A decision and every permit made of it share one [`Access`], so that the end of a loan reaches them all at once. It
//! is one atomic number on the hot path; the list of streams is touched at a body's start and end only. Permits are
//! given once the ledger durably has that the loan was opened, which is written before the first of them: no process
//! cancels such a loan.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

use crate::connection::Connection;
use crate::loan::LoanId;

/// This process does not know of a durable mark that the loan was opened.
const UNMARKED: u8 = 0;
/// The mark is durable: permits may be given.
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// The access under one loan.
#[derive(Debug)]
pub(super) struct Access {
    state: AtomicU8,
    /// Set once the mark is durable; whoever writes it has the others wait.
    mark: OnceCell<()>,
    streams: Mutex<Streams>,
}

/// Why an access gives no permit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Denied {
    /// The loan is over.
    Closed,
    /// The ledger did not take the mark, so that nothing may leave under the loan.
    Unmarked,
}

/// The connections that bodies of the loan run on, each body by a number of its own.
#[derive(Debug, Default)]
struct Streams {
    last: u64,
    connections: Vec<(u64, Connection)>,
}

impl Access {
    fn new() -> Access {
        Access { state: AtomicU8::new(UNMARKED), mark: OnceCell::new(), streams: Mutex::default() }
    }

    /// Whether a permit may be given now.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Opens the access once `mark` has written that the loan is opened; of several callers one writes. `mark` returns
    /// false where the loan is over.
    ///
    /// # Errors
    /// [`Denied`]; a later caller tries again.
    pub(super) async fn open(&self, mark: impl AsyncFnOnce() -> Result<bool, Denied>) -> Result<(), Denied> {
        if self.is_open() {
            return Ok(());
        }
        let write = async || match mark().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denied::Closed),
            Err(denied) => Err(denied),
        };
        self.mark.get_or_try_init(write).await?;
        match self.state.compare_exchange(UNMARKED, OPEN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(OPEN) => Ok(()),
            Err(_) => Err(Denied::Closed),
        }
    }

    /// Ends the access if no permit was given in this process: then none ever will be.
    pub(super) fn close_unopened(&self) -> bool {
        self.state.compare_exchange(UNMARKED, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
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

    /// Whether a body of the loan runs.
    fn runs(&self) -> bool {
        !self.streams.lock().unwrap_or_else(PoisonError::into_inner).connections.is_empty()
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
    /// The access of a loan, found or made.
    pub(super) fn of(&self, loan: LoanId) -> Arc<Access> {
        let mut accesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(access) = accesses.get(&loan).and_then(Weak::upgrade) {
            return access;
        }
        if accesses.len() % TIDIED_AT == TIDIED_AT - 1 {
            accesses.retain(|_, access| access.strong_count() > 0);
        }
        let access = Arc::new(Access::new());
        accesses.insert(loan, Arc::downgrade(&access));
        access
    }

    /// The loans under which bodies run.
    pub(super) fn running(&self) -> Vec<LoanId> {
        let accesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = |access: &Weak<Access>| access.upgrade().is_some_and(|access| access.runs());
        accesses.iter().filter(|(_, access)| runs(access)).map(|(loan, _)| *loan).collect()
    }

    /// The access of a loan, where somebody holds it.
    pub(super) fn find(&self, loan: LoanId) -> Option<Arc<Access>> {
        let accesses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accesses.get(&loan).and_then(Weak::upgrade)
    }

    /// Forgets the access of a loan, so that the loan can be opened again: its end failed, or only its streams ended.
    pub(super) fn forget(&self, loan: LoanId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&loan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn access_opens_with_the_mark_and_never_after_the_end() {
        let accesses = Accesses::default();
        let loan = LoanId::fresh();
        let access = accesses.of(loan);
        assert!(!access.is_open());
        assert_eq!(access.open(async || Err(Denied::Unmarked)).await, Err(Denied::Unmarked));
        assert!(!access.is_open(), "a mark that was not written opens nothing");
        access.open(async || Ok(true)).await.unwrap();
        access.open(async || panic!("it is marked")).await.unwrap();
        assert!(accesses.of(loan).is_open(), "the same one");
        assert!(!access.close_unopened() && access.is_open());
        access.close();
        assert!(!access.is_open() && access.is_closed());
        assert_eq!(access.open(async || panic!("it is marked")).await, Err(Denied::Closed));

        let unopened = accesses.of(LoanId::fresh());
        assert!(unopened.close_unopened());
        assert_eq!(unopened.open(async || Ok(true)).await, Err(Denied::Closed), "the end was first");
        let over = accesses.of(LoanId::fresh());
        assert_eq!(over.open(async || Ok(false)).await, Err(Denied::Closed));
    }

    #[test]
    fn an_end_reaches_the_connections_on_which_bodies_run() {
        let access = Access::new();
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
            accesses.of(LoanId::fresh());
        }
        assert!(accesses.0.lock().unwrap().len() <= TIDIED_AT);
    }
}
