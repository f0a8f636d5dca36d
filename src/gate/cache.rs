//! Cache of decisions, the only lookup on the hot path.
//!
//! Every hit compares the expiry of the entry with Bokbasen's time ([`Clock::lending_now`]). An
//! acceptance that neither a read nor the ledger's change feed confirmed within `gate.freshness` is
//! read again. Expired entries are evicted once the cache is full. The cache remembers closed loans
//! for a while, so that a flight that read a loan before it closed cannot insert it again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;

use super::access::{Access, Accesses};
use crate::circulation::{Closed, FeedStatus};
use crate::clock::{self, Clock};
use crate::loan::{LoanId, LoanKey};

/// Maximum number of cached decisions; each takes about 200 bytes.
const MAX_DECISIONS: u64 = 1_000_000;
/// Initial capacity; the cache grows as needed.
const INITIAL_CAPACITY: usize = 10_000;
/// How long an end is cached, to answer old credentials without the ledger.
const END_TTL: Duration = Duration::from_secs(600);
/// How long a closed loan is remembered: far longer than any flight takes.
const CLOSED_TTL: Duration = Duration::from_secs(600);
/// Longest time that a decision is cached before the ledger is read again.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// Decision about a reader and a title.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    /// A loan opens the title until then.
    Accepted { loan: LoanId, until: Timestamp, access: Arc<Access> },
    /// Bokbasen refused, and is not queried again until then.
    Refused { reason: Arc<str>, until: Timestamp },
    /// The last loan ended then. Only a later credential causes a read of the ledger.
    Ended { at: Timestamp },
}

/// A cached decision with its expiry.
#[derive(Clone, Debug)]
struct Entry {
    decision: Decision,
    until: Timestamp,
    /// When it was stored, in milliseconds, shortly after it was read from the ledger.
    at: i64,
}

/// The cached decisions and the recently closed loans.
#[derive(Debug)]
pub(super) struct Decisions {
    decided: Cache<LoanKey, Entry>,
    closed: moka::sync::Cache<LoanId, ()>,
    pub(super) accesses: Accesses,
    clock: Clock,
    feed_status: FeedStatus,
    freshness: Duration,
}

impl Decisions {
    pub(super) fn new(clock: Clock, feed_status: FeedStatus, freshness: Duration) -> Decisions {
        let decided = Cache::with_weighter(INITIAL_CAPACITY, MAX_DECISIONS, UnitWeighter);
        let closed = moka::sync::Cache::builder();
        let closed = closed.max_capacity(MAX_DECISIONS).time_to_live(CLOSED_TTL).build();
        Decisions { decided, closed, accesses: Accesses::default(), clock, feed_status, freshness }
    }

    /// Returns the decision if it still holds at `now`.
    pub(super) fn find(&self, key: &LoanKey, now: Timestamp) -> Option<Decision> {
        let entry = self.decided.get(key)?;
        let is_acceptance = matches!(entry.decision, Decision::Accepted { .. });
        let is_stale =
            is_acceptance && self.feed_status.is_stale(entry.at, self.clock.now(), self.freshness);
        (entry.until > now && !is_stale).then_some(entry.decision)
    }

    /// Stores a decision; an acceptance only if its loan has not closed.
    pub(super) fn store(&self, key: LoanKey, decision: Decision) {
        let now = self.clock.lending_now();
        let (loan, end) = match &decision {
            Decision::Accepted { loan, until, .. } => (Some(*loan), *until),
            Decision::Refused { until, .. } => (None, *until),
            Decision::Ended { .. } => (None, clock::after(now, END_TTL)),
        };
        let ended = matches!(decision, Decision::Ended { .. });
        if ended && matches!(self.find(&key, now), Some(Decision::Accepted { .. })) {
            return; // the flight read the ledger before the new loan was begun
        }
        let entry = Entry {
            decision,
            until: end.min(clock::after(now, MAX_TTL)),
            at: self.clock.now().as_millisecond(),
        };
        self.decided.insert(key, entry);
        // Checked after the insertion, since `close` records before it removes: one of the two sees
        // the other.
        if loan.is_some_and(|loan| self.is_closed(loan)) {
            self.remove(&key);
        }
    }

    /// Returns whether this loan has closed recently.
    pub(super) fn is_closed(&self, loan: LoanId) -> bool {
        self.closed.contains_key(&loan)
    }

    /// Removes the decision about a closed loan and closes its access. Returns the access if it is
    /// in use.
    pub(super) fn close(&self, closed: &Closed) -> Option<Arc<Access>> {
        self.closed.insert(closed.loan, ());
        self.remove(&closed.key);
        let access = self.accesses.find(closed.loan)?;
        access.close();
        Some(access)
    }

    /// Removes the decision about a reader and a title.
    pub(super) fn remove(&self, key: &LoanKey) {
        self.decided.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::Borrower;

    fn key() -> LoanKey {
        LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        }
    }

    fn accepted(decisions: &Decisions, loan: LoanId, until: Timestamp) -> Decision {
        Decision::Accepted { loan, until, access: decisions.accesses.get_or_create(loan) }
    }

    #[test]
    fn acceptance_ends_by_the_projects_clock() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions =
            Decisions::new(clock.clone(), FeedStatus::default(), Duration::from_secs(30));
        let until = clock::after(clock.now(), Duration::from_secs(60));
        decisions.store(key(), accepted(&decisions, LoanId::generate(), until));
        assert!(decisions.find(&key(), clock.now()).is_some());
        clock.advance(Duration::from_secs(60));
        assert!(decisions.find(&key(), clock.now()).is_none());
    }

    #[test]
    fn long_lived_decisions_expire_after_their_ttl() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions =
            Decisions::new(clock.clone(), FeedStatus::default(), Duration::from_secs(30));
        let year = clock::after(clock.now(), 365 * MAX_TTL);
        let cases = [
            (accepted(&decisions, LoanId::generate(), year), MAX_TTL),
            (Decision::Ended { at: clock.now() }, END_TTL),
        ];
        for (decision, ttl) in cases {
            decisions.remove(&key());
            decisions.store(key(), decision);
            clock.advance(ttl - Duration::from_secs(1));
            assert!(decisions.find(&key(), clock.now()).is_some());
            clock.advance(Duration::from_secs(1));
            assert!(decisions.find(&key(), clock.now()).is_none());
        }
    }

    #[test]
    fn late_flight_cannot_store_a_closed_loan() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions =
            Decisions::new(clock.clone(), FeedStatus::default(), Duration::from_secs(30));
        let (loan, until) =
            (LoanId::generate(), clock::after(clock.now(), Duration::from_secs(60)));
        decisions.close(&Closed { loan, key: key(), at: clock.now() });
        decisions.store(key(), accepted(&decisions, loan, until));
        assert!(decisions.find(&key(), clock.now()).is_none());
    }
}
