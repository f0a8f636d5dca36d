//! Access under one loan in this process: whether permits may be given, whether the loan is over,
//! and which streams run.
//!
//! A decision and all its permits share one [`Access`], so the end of a loan reaches all of them at
//! once. On the hot path it is one atomic number; the list of streams is used only when a body
//! starts or ends. The first permit is given after the ledger has durably marked the loan as
//! opened, and no process cancels a marked loan.
//!
//! The access also has a copy of its loan's decision for the near caches of the worker threads,
//! because a permit needs the access anyway: one place in memory holds all that a hit reads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::circulation::FeedStatus;
use crate::clock::{self, Clock};
use crate::connection_handle::{Abort, OutgoingBody};
use crate::crash;
use crate::loan::{LoanId, LoanKey};
use crate::lock::lock;

/// This process does not know whether the ledger has marked the loan as opened.
const UNMARKED: u8 = 0;
/// The mark is durable: permits may be given.
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// Access under one loan.
#[derive(Debug)]
pub(super) struct Access {
    state: AtomicU8,
    /// Set once the mark is durable. One caller writes the mark; others wait for it.
    mark: OnceCell<()>,
    streams: Mutex<ActiveBodies>,
    /// Set when the loan is first read from the ledger as accepted.
    accepted: OnceLock<Acceptance>,
    /// When the last read of the loan from the ledger began, by [`clock::millis_since_boot`], or
    /// [`NEVER`].
    confirmed: AtomicI64,
    feed_status: FeedStatus,
}

/// What opens the access: an accepted loan.
#[derive(Debug)]
pub(super) struct Acceptance {
    pub(super) key: LoanKey,
    pub(super) loan: LoanId,
    /// When the loan is due, by Bokbasen's clock.
    pub(super) until: Timestamp,
    /// When the last read of the loan from the ledger began, by `Clock::age_millis`, or [`NEVER`].
    read_at: AtomicI64,
}

/// Time of a read that did not happen, or of a decision that only the cache of record may serve.
const NEVER: i64 = i64::MIN;

/// When a read of the ledger began. What it returns may be that old, however long it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadTime {
    /// By [`Clock::age_millis`].
    pub(super) age: i64,
    /// By [`clock::millis_since_boot`].
    since_boot: i64,
}

impl ReadTime {
    /// Returns the time of a read that begins now.
    pub(super) fn now(clock: &Clock) -> ReadTime {
        ReadTime { age: clock.age_millis(), since_boot: clock::millis_since_boot() }
    }
}

impl Acceptance {
    /// Returns when the last read of the loan from the ledger began, by `Clock::age_millis`.
    pub(super) fn read_at(&self) -> i64 {
        self.read_at.load(Ordering::Relaxed)
    }

    /// Records a read that found the same loan, unless a read has found another due time: a slow
    /// read, which began before the change, must not bring the first due time back.
    fn confirm(&self, age: i64) {
        let later = |read_at| (read_at != NEVER).then(|| age.max(read_at));
        let _ = self.read_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }
}

/// Why a permit is denied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Denied {
    /// The loan is over.
    Closed,
    /// The ledger did not write the mark, so nothing may be sent under the loan.
    Unmarked,
}

/// Running bodies of the loan, each with a unique number.
#[derive(Debug, Default)]
struct ActiveBodies {
    last: u64,
    bodies: Vec<(u64, Weak<dyn OutgoingBody>)>,
}

impl Access {
    /// Creates the access of a loan that no read has confirmed.
    fn new(feed_status: FeedStatus) -> Access {
        Access {
            state: AtomicU8::new(UNMARKED),
            mark: OnceCell::new(),
            streams: Mutex::default(),
            accepted: OnceLock::new(),
            confirmed: AtomicI64::new(NEVER),
            feed_status,
        }
    }

    /// Records that a read of the ledger, which began at `read`, has found the loan accepted. If
    /// its due time has changed since the first read, only the cache of record serves it.
    pub(super) fn confirm(&self, key: LoanKey, loan: LoanId, until: Timestamp, read: ReadTime) {
        let first = self.accepted.get_or_init(|| {
            let read_at = AtomicI64::new(read.age);
            Acceptance { key, loan, until, read_at }
        });
        // A slow read may end after a later one.
        self.confirmed.fetch_max(read.since_boot, Ordering::Relaxed);
        match first.key == key && first.until == until {
            true => first.confirm(read.age),
            false => first.read_at.store(NEVER, Ordering::Relaxed),
        }
    }

    /// Returns what opens the access, if a permit may be given now.
    pub(super) fn opened_by(&self) -> Option<&Acceptance> {
        self.accepted.get().filter(|_| self.is_open())
    }

    /// Returns whether a permit may be given now.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Opens the access once `mark` has written that the loan is opened. Of concurrent callers only
    /// one writes. `mark` returns false if the loan is over.
    ///
    /// # Errors
    /// [`Denied`]; a later caller retries.
    pub(super) async fn open(
        &self,
        mark: impl AsyncFnOnce() -> Result<bool, Denied>,
    ) -> Result<(), Denied> {
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

    /// Closes the access if this process has given no permit; then it never will. Returns whether
    /// it was closed.
    pub(super) fn close_unopened(&self) -> bool {
        self.state.compare_exchange(UNMARKED, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn close(&self) {
        if crash::has_defect("aborts-no-stream") {
            return;
        }
        self.state.store(CLOSED, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Returns whether neither the change feed nor the ledger has confirmed the loan in time, so
    /// that no body may send.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.feed_status.must_stop_stream(self.confirmed.load(Ordering::Relaxed))
    }

    /// Registers a running body, and returns its number.
    pub(super) fn register(&self, body: Weak<dyn OutgoingBody>) -> u64 {
        let mut streams = self.streams();
        streams.last += 1;
        let number = streams.last;
        streams.bodies.push((number, body));
        number
    }

    pub(super) fn unregister(&self, number: u64) {
        self.streams().bodies.retain(|(other, _)| *other != number);
    }

    /// Returns whether a body of the loan is running.
    fn has_running_body(&self) -> bool {
        !self.streams().bodies.is_empty()
    }

    /// Aborts every running body of the loan.
    pub(super) fn abort(&self) {
        self.bodies().iter().for_each(|body| body.abort(Abort::LoanEnded));
    }

    /// Closes every connection with a running body of the loan, and returns the number of those
    /// bodies.
    pub(super) fn close_connections(&self) -> usize {
        let bodies = self.bodies();
        bodies.iter().for_each(|body| body.connection().abort());
        bodies.len()
    }

    /// Returns the running bodies. The caller uses them without the lock, because a body that ends
    /// takes it.
    fn bodies(&self) -> Vec<Arc<dyn OutgoingBody>> {
        if crash::has_defect("aborts-no-stream") {
            return Vec::new();
        }
        self.streams().bodies.iter().filter_map(|(_, body)| body.upgrade()).collect()
    }

    fn streams(&self) -> MutexGuard<'_, ActiveBodies> {
        lock(&self.streams)
    }
}

/// The accesses of this process, by loan. Decisions, permits and bodies own them.
#[derive(Debug, Default)]
pub(super) struct Accesses {
    of_loans: Mutex<HashMap<LoanId, Weak<Access>>>,
    feed_status: FeedStatus,
}

/// Number of added entries after which unused ones are removed.
const SWEEP_INTERVAL: usize = 1024;

impl Accesses {
    pub(super) fn new(feed_status: FeedStatus) -> Accesses {
        Accesses { of_loans: Mutex::default(), feed_status }
    }

    /// Returns the access of a loan, and creates it if needed.
    pub(super) fn get_or_create(&self, loan: LoanId) -> Arc<Access> {
        let mut accesses = lock(&self.of_loans);
        if let Some(access) = accesses.get(&loan).and_then(Weak::upgrade) {
            return access;
        }
        if accesses.len() % SWEEP_INTERVAL == SWEEP_INTERVAL - 1 {
            accesses.retain(|_, access| access.strong_count() > 0);
        }
        let access = Arc::new(Access::new(self.feed_status.clone()));
        accesses.insert(loan, Arc::downgrade(&access));
        access
    }

    /// Returns the loans with running bodies.
    pub(super) fn running(&self) -> Vec<LoanId> {
        let accesses = lock(&self.of_loans);
        let is_running = |access: &Weak<Access>| {
            access.upgrade().is_some_and(|access| access.has_running_body())
        };
        accesses.iter().filter(|(_, access)| is_running(access)).map(|(loan, _)| *loan).collect()
    }

    /// Returns the access of a loan if it is in use.
    pub(super) fn find(&self, loan: LoanId) -> Option<Arc<Access>> {
        let accesses = lock(&self.of_loans);
        accesses.get(&loan).and_then(Weak::upgrade)
    }

    /// Removes the access of a loan so that the loan can be opened again: its end failed, or only
    /// its streams were aborted.
    pub(super) fn remove(&self, loan: LoanId) {
        lock(&self.of_loans).remove(&loan);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::connection_handle::Connection;
    use crate::loan::Borrower;

    #[tokio::test]
    async fn access_opens_with_the_mark_and_never_after_the_end() {
        let accesses = Accesses::default();
        let loan = LoanId::random();
        let access = accesses.get_or_create(loan);
        assert!(!access.is_open());
        assert_eq!(access.open(async || Err(Denied::Unmarked)).await, Err(Denied::Unmarked));
        assert!(!access.is_open(), "a mark that was not written opens nothing");
        access.open(async || Ok(true)).await.unwrap();
        access.open(async || panic!("it is marked")).await.unwrap();
        assert!(accesses.get_or_create(loan).is_open(), "the same one");
        assert!(!access.close_unopened() && access.is_open());
        access.close();
        assert!(!access.is_open() && access.is_closed());
        assert_eq!(access.open(async || panic!("it is marked")).await, Err(Denied::Closed));

        let unopened = accesses.get_or_create(LoanId::random());
        assert!(unopened.close_unopened());
        assert_eq!(
            unopened.open(async || Ok(true)).await,
            Err(Denied::Closed),
            "the loan ended first"
        );
        let over = accesses.get_or_create(LoanId::random());
        assert_eq!(over.open(async || Ok(false)).await, Err(Denied::Closed));
    }

    #[test]
    fn slow_read_does_not_bring_the_first_due_time_back() {
        let access = Access::new(FeedStatus::default());
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9788299999014".parse().unwrap(),
        };
        let loan = LoanId::random();
        let until = |second| Timestamp::from_second(second).unwrap();
        let read = |age| ReadTime { age, since_boot: age };
        let read_at = || access.accepted.get().unwrap().read_at();
        access.confirm(key, loan, until(100), read(1));
        access.confirm(key, loan, until(100), read(3));
        access.confirm(key, loan, until(100), read(2));
        assert_eq!(read_at(), 3);
        access.confirm(key, loan, until(50), read(5));
        assert_eq!(read_at(), NEVER);
        access.confirm(key, loan, until(100), read(4));
        assert_eq!(read_at(), NEVER, "the read began before the due time changed");
    }

    #[derive(Debug, Default)]
    struct FakeBody {
        connection: Connection,
        is_aborted: AtomicBool,
    }

    impl OutgoingBody for FakeBody {
        fn connection(&self) -> &Connection {
            &self.connection
        }

        fn abort(&self, why: Abort) {
            assert_eq!(why, Abort::LoanEnded);
            self.is_aborted.store(true, Ordering::Relaxed);
        }

        fn left(&self, _at: Option<u64>, _count: usize) {}
    }

    #[test]
    fn end_aborts_bodies_and_then_closes_connections() {
        let access = Access::new(FeedStatus::default());
        let (one, other) = (Arc::new(FakeBody::default()), Arc::new(FakeBody::default()));
        let listed = |body: &Arc<FakeBody>| {
            let body: Arc<dyn OutgoingBody> = body.clone();
            Arc::downgrade(&body)
        };
        let number = access.register(listed(&one));
        access.register(listed(&other));
        access.unregister(number);
        access.abort();
        assert!(
            !one.is_aborted.load(Ordering::Relaxed) && other.is_aborted.load(Ordering::Relaxed)
        );
        assert!(!other.connection.is_aborted());
        assert_eq!(access.close_connections(), 1);
        assert!(!one.connection.is_aborted() && other.connection.is_aborted());
    }

    #[test]
    fn access_is_confirmed_from_the_start_of_a_read() {
        let feed_status = FeedStatus::default();
        let access = Accesses::new(feed_status.clone()).get_or_create(LoanId::random());
        let now = clock::millis_since_boot();
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let confirm = |since_boot| {
            let read = ReadTime { age: 0, since_boot };
            access.confirm(key, LoanId::random(), Timestamp::MAX, read);
        };
        feed_status.confirm_streams_until(now - 1, 5_000);
        assert!(access.is_unconfirmed(), "no read has confirmed it");
        confirm(now - 6_000);
        assert!(access.is_unconfirmed(), "a read that began too long ago");
        confirm(now + 100_000);
        assert!(!access.is_unconfirmed());
        confirm(now - 6_000);
        assert!(!access.is_unconfirmed(), "an earlier read that ended later");
    }

    #[test]
    fn unused_accesses_are_removed() {
        let accesses = Accesses::default();
        for _ in 0..10 * SWEEP_INTERVAL {
            accesses.get_or_create(LoanId::random());
        }
        assert!(accesses.of_loans.lock().unwrap().len() <= SWEEP_INTERVAL);
    }
}
