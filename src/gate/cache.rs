//! Cache of decisions, the only lookup on the hot path.
//!
//! moka is the cache of record. Each worker thread has a near cache of accepted loans in front of
//! it, because a hit in moka reorders a list, and so touches memory that the processor's caches do
//! not hold. [`Decisions::store`] and [`Decisions::remove`] are the only changes of the record, and
//! both invalidate the near caches. A closed loan also misses there, since its access is closed.
//!
//! Every hit compares the expiry of the entry with Bokbasen's time ([`Clock::lending_now`]). An
//! acceptance that neither a read nor the ledger's change feed confirmed within `gate.freshness` is
//! read again. moka's own expiry follows another clock and only frees memory. The cache remembers
//! closed loans for a while, so that a flight that read a loan before it closed cannot insert it
//! again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::access::{Access, Accesses, ReadTime};
use crate::circulation::{Closed, FeedStatus};
use crate::clock::{self, Clock};
use crate::loan::{LoanId, LoanKey};
use crate::near_cache::NearCache;

/// Maximum number of cached decisions; each takes about 400 bytes.
const MAX_DECISIONS: u64 = 1_000_000;
/// Number of entries in the near caches of all workers together. Their tables take 8 MiB, and their
/// entries keep the accesses of closed loans in memory until their places are needed: about 100 MB
/// at most. With two workers and readers distributed as Zipf's law says, they serve seven of eight
/// hits among a million decisions.
const NEAR_ENTRIES: usize = 1 << 19;
/// How long an end is cached, to answer old credentials without the ledger.
const END_TTL: Duration = Duration::from_secs(600);
/// How long a closed loan is remembered: far longer than any flight takes.
const CLOSED_TTL: Duration = Duration::from_secs(600);
/// Longest time that a decision is cached before the ledger is read again.
const MAX_TTL: Duration = Duration::from_millis(MAX_TTL_MILLIS as u64);
const MAX_TTL_MILLIS: i64 = 86_400_000;

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
    /// When the read of the ledger began, by [`Clock::age_millis`].
    read_at: i64,
}

/// The cached decisions and the recently closed loans.
#[derive(Debug)]
pub(super) struct Decisions {
    record: Cache<LoanKey, Entry>,
    near: NearCache<Access>,
    closed: Cache<LoanId, ()>,
    pub(super) accesses: Accesses,
    clock: Clock,
    feed_status: FeedStatus,
    freshness: Duration,
}

/// Lets moka drop an entry whose expiry has passed. A lookup does not rely on it: moka's clock
/// does not advance while the machine sleeps, and does not follow Bokbasen's.
struct MemoryExpiry(Clock);

impl Expiry<LoanKey, Entry> for MemoryExpiry {
    fn expire_after_create(&self, _: &LoanKey, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(clock::until(self.0.lending_now(), entry.until))
    }

    fn expire_after_update(
        &self,
        key: &LoanKey,
        entry: &Entry,
        at: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, at)
    }
}

impl Decisions {
    pub(super) fn new(clock: Clock, feed_status: FeedStatus, freshness: Duration) -> Decisions {
        // Least recently used, and not TinyLFU, which could turn away a new reader's decision in
        // favour of those of last week.
        let record = Cache::builder()
            .max_capacity(MAX_DECISIONS)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(MemoryExpiry(clock.clone()))
            .build();
        let closed = Cache::builder().max_capacity(MAX_DECISIONS).time_to_live(CLOSED_TTL).build();
        let near = NearCache::for_workers(NEAR_ENTRIES);
        let accesses = Accesses::new(feed_status.clone());
        Decisions { record, near, closed, accesses, clock, feed_status, freshness }
    }

    /// Returns about how many decisions are stored.
    pub(super) fn count(&self) -> u64 {
        self.record.entry_count()
    }

    /// Returns the decision if it still holds at `now`.
    pub(super) fn find(&self, key: &LoanKey, now: Timestamp) -> Option<Decision> {
        let miss = match self.near.find(hash(key), |access| self.acceptance(access, key, now)) {
            Ok(decision) => return Some(decision),
            Err(miss) => miss,
        };
        let decision = self.find_in_record(key, now)?;
        if let Decision::Accepted { access, .. } = &decision {
            self.near.insert(miss, access.clone());
        }
        Some(decision)
    }

    /// Returns the decision that opens this access if it is about this key and still holds.
    fn acceptance(&self, access: &Arc<Access>, key: &LoanKey, now: Timestamp) -> Option<Decision> {
        let accepted = access.opened_by()?;
        let (read_at, our_now) = (accepted.read_at(), self.clock.age_millis());
        let holds = accepted.key == *key
            && accepted.until > now
            && our_now.saturating_sub(read_at) < MAX_TTL_MILLIS
            && !self.feed_status.is_stale(read_at, our_now, self.freshness);
        let (loan, until) = (accepted.loan, accepted.until);
        holds.then(|| Decision::Accepted { loan, until, access: access.clone() })
    }

    fn find_in_record(&self, key: &LoanKey, now: Timestamp) -> Option<Decision> {
        let entry = self.record.get(key)?;
        let is_acceptance = matches!(entry.decision, Decision::Accepted { .. });
        let is_stale = is_acceptance
            && self.feed_status.is_stale(entry.read_at, self.clock.age_millis(), self.freshness);
        (entry.until > now && !is_stale).then_some(entry.decision)
    }

    /// Returns the time of a read of the ledger that begins now, for [`Decisions::store`].
    pub(super) fn read_time(&self) -> ReadTime {
        ReadTime::now(&self.clock)
    }

    /// Stores the decision of a read of the ledger that began at `read`; an acceptance only if its
    /// loan has not closed.
    pub(super) fn store(&self, key: LoanKey, decision: Decision, read: ReadTime) {
        let now = self.clock.lending_now();
        let (loan, end) = match &decision {
            Decision::Accepted { loan, until, access } => {
                access.confirm(key, *loan, *until, read);
                (Some(*loan), *until)
            }
            Decision::Refused { until, .. } => (None, *until),
            Decision::Ended { .. } => (None, clock::after(now, END_TTL)),
        };
        let ended = matches!(decision, Decision::Ended { .. });
        if ended && matches!(self.find_in_record(&key, now), Some(Decision::Accepted { .. })) {
            return; // the flight read the ledger before the new loan was begun
        }
        let until = end.min(clock::after(now, MAX_TTL));
        self.record.insert(key, Entry { decision, until, read_at: read.age });
        self.near.invalidate(hash(&key));
        // Checked after the insertion, since `close` records before it removes: one of the two sees
        // the other.
        if loan.is_some_and(|loan| self.is_closed(loan)) {
            self.remove(&key);
        }
    }

    /// Returns the access of a loan that a flight has found open: usually the one in its decision,
    /// which takes no lock that all workers share. If the loan closes now, it is the closed access,
    /// or a new one that the ledger denies.
    pub(super) fn access_of(&self, key: &LoanKey, loan: LoanId) -> Arc<Access> {
        match self.find(key, self.clock.lending_now()) {
            Some(Decision::Accepted { loan: decided, access, .. })
                if decided == loan && !access.is_closed() =>
            {
                access
            }
            _ => self.accesses.get_or_create(loan),
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

    /// Removes the end of an earlier loan, since another loan may be live: an older credential may
    /// read under it.
    pub(super) fn remove_end(&self, key: &LoanKey) {
        if matches!(self.find(key, self.clock.lending_now()), Some(Decision::Ended { .. })) {
            self.remove(key);
        }
    }

    /// Removes the decision about a reader and a title.
    pub(super) fn remove(&self, key: &LoanKey) {
        self.record.invalidate(key);
        self.near.invalidate(hash(key));
    }
}

/// Returns the hash of a key for the near caches. The pseudonym is a keyed hash of library and
/// borrower already.
fn hash(key: &LoanKey) -> u64 {
    /// An odd number whose multiples are spread over 64 bits: 2^64 by the golden ratio.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let pseudonym = u128::from_le_bytes(*key.borrower.as_bytes()) as u64;
    pseudonym ^ key.isbn.number().wrapping_mul(SPREAD)
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

    /// Stores a loan that is due in an hour and open, and looks it up, so that this thread's near
    /// cache has it.
    async fn store_opened(decisions: &Decisions, loan: LoanId) {
        let until = clock::after(decisions.clock.now(), Duration::from_secs(3600));
        let access = decisions.accesses.get_or_create(loan);
        access.open(async || Ok(true)).await.unwrap();
        store(decisions, accepted(decisions, loan, until));
        assert_eq!(found(decisions), Some(loan));
    }

    /// Stores the decision of a read that took no time.
    fn store(decisions: &Decisions, decision: Decision) {
        decisions.store(key(), decision, decisions.read_time());
    }

    /// Returns the loan that opens the title now.
    fn found(decisions: &Decisions) -> Option<LoanId> {
        match decisions.find(&key(), decisions.clock.now()) {
            Some(Decision::Accepted { loan, .. }) => Some(loan),
            _ => None,
        }
    }

    fn decisions() -> Decisions {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        Decisions::new(clock, FeedStatus::default(), Duration::from_secs(30))
    }

    #[test]
    fn acceptance_ends_by_the_projects_clock() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let decisions =
            Decisions::new(clock.clone(), FeedStatus::default(), Duration::from_secs(30));
        let until = clock::after(clock.now(), Duration::from_secs(60));
        store(&decisions, accepted(&decisions, LoanId::random(), until));
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
            (accepted(&decisions, LoanId::random(), year), MAX_TTL),
            (Decision::Ended { at: clock.now() }, END_TTL),
        ];
        for (decision, ttl) in cases {
            decisions.remove(&key());
            store(&decisions, decision);
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
        let (loan, until) = (LoanId::random(), clock::after(clock.now(), Duration::from_secs(60)));
        decisions.close(&Closed { loan, key: key(), at: clock.now() });
        store(&decisions, accepted(&decisions, loan, until));
        assert!(decisions.find(&key(), clock.now()).is_none());
    }

    #[tokio::test]
    async fn near_cache_serves_a_loan_until_it_is_due() {
        let decisions = decisions();
        let loan = LoanId::random();
        store_opened(&decisions, loan).await;
        decisions.record.invalidate(&key()); // so that only the near cache has it
        decisions.clock.advance(Duration::from_secs(3599));
        assert_eq!(found(&decisions), Some(loan));
        decisions.clock.advance(Duration::from_secs(1));
        assert_eq!(found(&decisions), None);
    }

    #[tokio::test]
    async fn near_cache_serves_no_other_reader() {
        let decisions = decisions();
        store_opened(&decisions, LoanId::random()).await;
        let other = LoanKey { library: "NO-0301001".parse().unwrap(), ..key() };
        assert_eq!(hash(&other), hash(&key()));
        assert!(decisions.find(&other, decisions.clock.now()).is_none());
    }

    #[tokio::test]
    async fn near_cache_serves_no_closed_loan() {
        let decisions = decisions();
        let loan = LoanId::random();
        store_opened(&decisions, loan).await;
        decisions.accesses.find(loan).unwrap().close();
        decisions.record.invalidate(&key());
        assert_eq!(found(&decisions), None, "its access is closed");

        let loan = LoanId::random();
        store_opened(&decisions, loan).await;
        decisions.remove(&key());
        assert_eq!(found(&decisions), None, "its decision was removed");
    }

    #[tokio::test]
    async fn near_cache_serves_the_newer_loan() {
        let decisions = decisions();
        let (first, second) = (LoanId::random(), LoanId::random());
        store_opened(&decisions, first).await;
        store_opened(&decisions, second).await;
        decisions.close(&Closed { loan: first, key: key(), at: decisions.clock.now() });
        store_opened(&decisions, second).await;
        decisions.record.invalidate(&key());
        assert_eq!(found(&decisions), Some(second));
    }

    #[tokio::test]
    async fn end_replaces_what_the_near_cache_has() {
        let decisions = decisions();
        store_opened(&decisions, LoanId::random()).await;
        let now = decisions.clock.now();
        let refused = Decision::Refused { reason: "LIMIT".into(), until: Timestamp::MAX };
        store(&decisions, refused);
        assert!(matches!(decisions.find(&key(), now), Some(Decision::Refused { .. })));
        decisions.remove(&key());
        store(&decisions, Decision::Ended { at: now });
        assert!(matches!(decisions.find(&key(), now), Some(Decision::Ended { .. })));
    }

    #[tokio::test]
    async fn near_cache_reads_the_record_after_a_day() {
        let decisions = decisions();
        let loan = LoanId::random();
        let access = decisions.accesses.get_or_create(loan);
        access.open(async || Ok(true)).await.unwrap();
        let store_again = || store(&decisions, accepted(&decisions, loan, Timestamp::MAX));
        store_again();
        assert_eq!(found(&decisions), Some(loan));
        decisions.record.invalidate(&key());
        decisions.clock.advance(MAX_TTL - Duration::from_secs(1));
        assert_eq!(found(&decisions), Some(loan));
        decisions.clock.advance(Duration::from_secs(1));
        assert_eq!(found(&decisions), None);
        store_again();
        assert_eq!(found(&decisions), Some(loan));
    }

    #[tokio::test]
    async fn near_cache_serves_no_stale_loan() {
        let decisions = decisions();
        let loan = LoanId::random();
        store_opened(&decisions, loan).await;
        decisions.record.invalidate(&key());
        decisions.feed_status.record_read(decisions.clock.age_millis());
        decisions.clock.advance(Duration::from_secs(30));
        assert_eq!(found(&decisions), Some(loan));
        decisions.clock.advance(Duration::from_secs(1));
        assert_eq!(found(&decisions), None, "neither read nor confirmed within gate.freshness");
        decisions.feed_status.record_read(decisions.clock.age_millis());
        assert_eq!(found(&decisions), Some(loan));
    }

    #[tokio::test]
    async fn slow_read_is_as_old_as_its_start() {
        let decisions = decisions();
        let (loan, until) = (LoanId::random(), Timestamp::MAX);
        let access = decisions.accesses.get_or_create(loan);
        access.open(async || Ok(true)).await.unwrap();
        decisions.feed_status.record_read(decisions.clock.age_millis());
        for (took, expected) in [(30, Some(loan)), (31, None)] {
            let read = decisions.read_time();
            decisions.clock.advance(Duration::from_secs(took));
            decisions.store(key(), accepted(&decisions, loan, until), read);
            decisions.feed_status.record_read(i64::MIN / 2);
            assert_eq!(found(&decisions), expected, "{took} s");
            decisions.record.invalidate(&key());
        }
    }

    #[tokio::test]
    async fn changed_due_time_is_served_from_the_record() {
        let decisions = decisions();
        let loan = LoanId::random();
        store_opened(&decisions, loan).await;
        let earlier = clock::after(decisions.clock.now(), Duration::from_secs(60));
        store(&decisions, accepted(&decisions, loan, earlier));
        assert_eq!(found(&decisions), Some(loan));
        decisions.clock.advance(Duration::from_secs(60));
        assert_eq!(found(&decisions), None);
    }
}
