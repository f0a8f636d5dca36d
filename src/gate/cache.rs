//! The cache of decisions: what the hot path looks up, and nothing else.
//!
//! Every hit compares the end of what is kept with Bokbasen's time ([`Clock::lending_now`]), and an
//! acceptance also with the ledger's change feed: one that neither a read nor the feed confirmed
//! within `gate.freshness` is read again. What ends without being requested again gives way to
//! others once the cache is full. A loan that closes is remembered for a while, so that a flight
//! which read it as open a moment before cannot put it back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;

use super::access::{Access, Accesses};
use crate::circulation::{Closed, Fed};
use crate::clock::{self, Clock};
use crate::loan::{LoanId, LoanKey};

/// How many decisions are kept; about 200 bytes each.
const DECISIONS: u64 = 1_000_000;
/// For how many there is room at once; more is made as they come.
const ROOM: usize = 10_000;
/// How long an end is kept to answer an old credential without the ledger.
const END_KEPT: Duration = Duration::from_secs(600);
/// How long a closed loan is remembered: far longer than any flight takes.
const CLOSED_KEPT: Duration = Duration::from_secs(600);
/// How long anything is kept: a day after it was read from the ledger it is read anew.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What the gate has decided about a reader and a title.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    /// A loan opens the title until then.
    Accepted { loan: LoanId, until: Timestamp, access: Arc<Access> },
    /// Bokbasen refused, and is not asked again until then.
    Refused { reason: Arc<str>, until: Timestamp },
    /// The last loan ended then; only a later credential is worth a look in the ledger.
    Ended { at: Timestamp },
}

/// A decision, and until when it is kept.
#[derive(Clone, Debug)]
struct Kept {
    decision: Decision,
    until: Timestamp,
    /// When it was stored, in milliseconds: what it says was read from the ledger a moment before.
    at: i64,
}

/// The decisions, and the loans that have closed lately.
#[derive(Debug)]
pub(super) struct Decisions {
    decided: Cache<LoanKey, Kept>,
    closed: moka::sync::Cache<LoanId, ()>,
    pub(super) accesses: Accesses,
    clock: Clock,
    fed: Fed,
    freshness: Duration,
}

impl Decisions {
    pub(super) fn new(clock: Clock, fed: Fed, freshness: Duration) -> Decisions {
        let decided = Cache::with_weighter(ROOM, DECISIONS, UnitWeighter);
        let closed = moka::sync::Cache::builder();
        let closed = closed.max_capacity(DECISIONS).time_to_live(CLOSED_KEPT).build();
        Decisions { decided, closed, accesses: Accesses::default(), clock, fed, freshness }
    }

    /// What is decided and still holds at `now`.
    pub(super) fn find(&self, key: &LoanKey, now: Timestamp) -> Option<Decision> {
        let kept = self.decided.get(key)?;
        let is_acceptance = matches!(kept.decision, Decision::Accepted { .. });
        let is_stale =
            is_acceptance && self.fed.is_stale(kept.at, self.clock.now(), self.freshness);
        (kept.until > now && !is_stale).then_some(kept.decision)
    }

    /// Keeps a decision; an acceptance only where its loan has not closed, before or meanwhile.
    pub(super) fn keep(&self, key: LoanKey, decision: Decision) {
        let now = self.clock.lending_now();
        let (loan, end) = match &decision {
            Decision::Accepted { loan, until, .. } => (Some(*loan), *until),
            Decision::Refused { until, .. } => (None, *until),
            Decision::Ended { .. } => (None, clock::after(now, END_KEPT)),
        };
        let ended = matches!(decision, Decision::Ended { .. });
        if ended && matches!(self.find(&key, now), Some(Decision::Accepted { .. })) {
            return; // a flight that read before the new loan was begun
        }
        let kept = Kept {
            decision,
            until: end.min(clock::after(now, LONGEST)),
            at: self.clock.now().as_millisecond(),
        };
        self.decided.insert(key, kept);
        // Looked up after the insertion, as `close` notes before it removes: one of the two sees
        // the other.
        if loan.is_some_and(|loan| self.is_closed(loan)) {
            self.forget(&key);
        }
    }

    /// Whether this loan has closed lately.
    pub(super) fn is_closed(&self, loan: LoanId) -> bool {
        self.closed.contains_key(&loan)
    }

    /// Forgets what a loan opened, and gives the access under it where somebody still holds that.
    pub(super) fn close(&self, closed: &Closed) -> Option<Arc<Access>> {
        self.closed.insert(closed.loan, ());
        self.forget(&closed.key);
        let access = self.accesses.find(closed.loan)?;
        access.close();
        Some(access)
    }

    /// Forgets what is decided about a reader and a title.
    pub(super) fn forget(&self, key: &LoanKey) {
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
        Decision::Accepted { loan, until, access: decisions.accesses.of(loan) }
    }

    #[test]
    fn an_acceptance_ends_by_the_projects_clock() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions = Decisions::new(clock.clone(), Fed::default(), Duration::from_secs(30));
        let until = clock::after(clock.now(), Duration::from_secs(60));
        decisions.keep(key(), accepted(&decisions, LoanId::fresh(), until));
        assert!(decisions.find(&key(), clock.now()).is_some());
        clock.advance(Duration::from_secs(60));
        assert!(decisions.find(&key(), clock.now()).is_none());
    }

    #[test]
    fn what_does_not_end_soon_by_itself_is_read_anew_all_the_same() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions = Decisions::new(clock.clone(), Fed::default(), Duration::from_secs(30));
        let year = clock::after(clock.now(), 365 * LONGEST);
        let cases = [
            (accepted(&decisions, LoanId::fresh(), year), LONGEST),
            (Decision::Ended { at: clock.now() }, END_KEPT),
        ];
        for (decision, kept) in cases {
            decisions.forget(&key());
            decisions.keep(key(), decision);
            clock.advance(kept - Duration::from_secs(1));
            assert!(decisions.find(&key(), clock.now()).is_some());
            clock.advance(Duration::from_secs(1));
            assert!(decisions.find(&key(), clock.now()).is_none());
        }
    }

    #[test]
    fn a_flight_that_read_before_the_end_cannot_put_the_loan_back() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions = Decisions::new(clock.clone(), Fed::default(), Duration::from_secs(30));
        let (loan, until) = (LoanId::fresh(), clock::after(clock.now(), Duration::from_secs(60)));
        decisions.close(&Closed { loan, key: key(), at: clock.now() });
        decisions.keep(key(), accepted(&decisions, loan, until));
        assert!(decisions.find(&key(), clock.now()).is_none());
    }
}
