//! Observes the renewals of other members, and decides whose lease has expired.
//!
//! It knows no SQL and reads no clock, so tests move the time. `membership` calls it with what it
//! has read.
//!
//! Each member increments a counter in its row at every renewal. Its lease lasts from the start of
//! a renewal. An observer that has seen the counter unchanged for longer than a lease has proof
//! that the lease is over: it first saw the counter after that renewal had started. The clocks of
//! the two machines are not compared. Each member records how long its lease is, so processes with
//! different leases can use one ledger.
//!
//! Only time in which the observer itself reached the database counts. While nobody reaches it,
//! nobody can renew, and a member that nobody fenced continues when the database is back. So
//! each read adds at most the interval of reads, or of the member's renewals if they are more
//! frequent. That also covers an observer that was suspended.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

/// The renewals in the duration of a lease.
pub(super) const RENEWALS_PER_LEASE: u32 = 5;

/// How often a member has renewed its lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Member {
    pub(super) id: Uuid,
    pub(super) renewals: i64,
}

/// A member that nobody has fenced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LiveMember {
    pub(super) member: Member,
    /// How long its lease lasts after a renewal.
    pub(super) lease: Duration,
}

impl LiveMember {
    /// Returns the interval of its renewals.
    fn interval(self) -> Duration {
        self.lease / RENEWALS_PER_LEASE
    }

    /// Returns the time after which it has lost its lease, if it was silent. The margin of one
    /// interval allows for clocks that run at different rates.
    fn patience(self) -> Duration {
        self.lease.saturating_add(self.interval())
    }
}

/// What one process has seen of the other members.
#[derive(Debug)]
pub(super) struct Observer {
    /// The interval of reads, the most that one read adds.
    interval: Duration,
    /// The time of the last read, by the observer's clock.
    last_read: Option<Duration>,
    seen: HashMap<Uuid, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    renewals: i64,
    /// For how long the counter was unchanged.
    silent: Duration,
}

impl Observer {
    /// Creates an observer that reads at this interval.
    pub(super) fn new(interval: Duration) -> Observer {
        Observer { interval, last_read: None, seen: HashMap::new() }
    }

    /// Records what a read that ended at `now` has returned. Returns the members whose lease has
    /// expired, with the counter on which their fencing depends.
    pub(super) fn record(&mut self, members: &[LiveMember], now: Duration) -> Vec<Member> {
        let since_last = self.last_read.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        let counted = since_last.min(self.interval);
        self.last_read = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut expired = Vec::new();
        for live in members {
            let member = live.member;
            let silent = match before.get(&member.id) {
                Some(seen) if seen.renewals == member.renewals => {
                    seen.silent + counted.min(live.interval())
                }
                _ => Duration::ZERO,
            };
            if silent > live.patience() {
                expired.push(member);
            }
            self.seen.insert(member.id, Seen { renewals: member.renewals, silent });
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const INTERVAL: Duration = Duration::from_secs(6);

    fn observer() -> Observer {
        Observer::new(INTERVAL)
    }

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn member(id: u128, renewals: i64) -> LiveMember {
        LiveMember { member: Member { id: Uuid::from_u128(id), renewals }, lease: LEASE }
    }

    #[test]
    fn silent_member_expires_after_lease_and_margin() {
        let mut observer = observer();
        for at in (0..=36).step_by(6) {
            assert!(observer.record(&[member(1, 5)], second(at)).is_empty(), "second {at}");
        }
        assert_eq!(observer.record(&[member(1, 5)], second(42)), [member(1, 5).member]);
        // It stays expired until somebody fences it.
        assert_eq!(observer.record(&[member(1, 5)], second(48)), [member(1, 5).member]);
    }

    #[test]
    fn every_renewal_starts_the_lease_again() {
        let mut observer = observer();
        for round in 0..100 {
            // A renewal at every sixth read only: the last moment.
            let renewals = i64::try_from(round / 6).unwrap();
            assert!(observer.record(&[member(1, renewals)], second(round * 6)).is_empty());
        }
    }

    #[test]
    fn outage_of_the_database_does_not_count() {
        let mut observer = observer();
        observer.record(&[member(1, 5)], second(0));
        observer.record(&[member(1, 5)], second(6));
        // Nobody reached the database for an hour. One read adds one interval.
        assert!(observer.record(&[member(1, 5)], second(3606)).is_empty());
        // The member renews late. Nobody has fenced it, so it stays.
        for at in 0..5 {
            assert!(observer.record(&[member(1, 6)], second(3612 + at * 6)).is_empty());
        }
    }

    #[test]
    fn suspended_observer_fences_nobody_when_it_continues() {
        let mut observer = observer();
        observer.record(&[member(1, 5)], second(0));
        assert!(observer.record(&[member(1, 5)], second(86_400)).is_empty());
        // Both were suspended: the other needs its whole lease again.
        for at in (86_406..86_430).step_by(6) {
            assert!(observer.record(&[member(1, 5)], second(at)).is_empty(), "second {at}");
        }
    }

    #[test]
    fn clock_that_jumps_back_adds_nothing() {
        let mut observer = observer();
        observer.record(&[member(1, 5)], second(100));
        for _ in 0..100 {
            assert!(observer.record(&[member(1, 5)], second(50)).is_empty());
        }
    }

    #[test]
    fn frequent_reads_count_the_time_between_them() {
        let mut observer = observer();
        for tenth in 0..=360 {
            let at = Duration::from_millis(tenth * 100);
            assert!(observer.record(&[member(1, 5)], at).is_empty(), "{at:?}");
        }
        assert_eq!(observer.record(&[member(1, 5)], Duration::from_millis(36_100)).len(), 1);
    }

    #[test]
    fn member_that_joins_again_is_another_member() {
        let mut observer = observer();
        for at in (0..=36).step_by(6) {
            observer.record(&[member(1, 5)], second(at));
        }
        // It was fenced, and its process has joined under a new name.
        assert!(observer.record(&[member(2, 0)], second(42)).is_empty());
        for at in (48..=78).step_by(6) {
            assert!(observer.record(&[member(2, 0)], second(at)).is_empty(), "second {at}");
        }
        assert_eq!(observer.record(&[member(2, 0)], second(84)), [member(2, 0).member]);
    }

    #[test]
    fn each_member_has_a_lease_of_its_own() {
        let mut observer = observer();
        let [long, short] = [90, 10].map(Duration::from_secs);
        let members = [
            LiveMember { lease: long, ..member(1, 5) },
            LiveMember { lease: short, ..member(2, 5) },
        ];
        let mut expired = [None; 2];
        for at in (0..=120).step_by(6) {
            for found in observer.record(&members, second(at)) {
                let number = members.iter().position(|live| live.member == found).unwrap();
                expired[number].get_or_insert(at);
            }
        }
        // One read adds at most one interval of the member, so that an outage shorter than the
        // observer's interval does not expire a member with a short lease.
        assert_eq!(expired, [Some(114), Some(42)]);
    }

    #[test]
    fn two_observers_expire_a_member_independently() {
        let (mut early, mut late) = (observer(), observer());
        for at in (0..=42).step_by(6) {
            let expired = early.record(&[member(1, 5)], second(at));
            assert_eq!(!expired.is_empty(), at > 36, "second {at}");
            if at >= 12 {
                assert!(late.record(&[member(1, 5)], second(at + 1)).is_empty());
            }
        }
        assert_eq!(late.record(&[member(1, 5)], second(49)).len(), 0);
        assert_eq!(late.record(&[member(1, 5)], second(55)).len(), 1);
    }
}
