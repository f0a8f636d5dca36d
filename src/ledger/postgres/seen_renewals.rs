//! The renewals of members that this process has seen, and what they prove about the database.
//!
//! Each member increments a counter in its row at every renewal, and once more when it leaves. Rows
//! of members that ended stay for a time. So a row with fewer renewals than were seen, or a row
//! that is missing too early, proves that the database lost what was written since: it was restored
//! from a backup, or a failover lost its last transactions.
//!
//! It knows no SQL and reads no clock. All times are those of the database, in milliseconds. They
//! decide only whether a row may be missing: a row that is there never counts back.

use std::collections::HashMap;

use uuid::Uuid;

use super::observer::Member;

const DAY_MS: i64 = 86_400_000;
/// How long the row of a member that ended is stored.
pub(super) const RETENTION_MS: i64 = 30 * DAY_MS;
/// The same of a member with at most this many renewals. A process that fails at each start leaves
/// such rows.
pub(super) const SHORT_RETENTION_MS: i64 = DAY_MS;
pub(super) const SHORT_LIFE_RENEWALS: i64 = 1;
/// The maximum number of members in the list. The ones that were seen last stay.
const MAX_MEMBERS: usize = 256;

/// The highest number of renewals that was seen of each member.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct SeenRenewals(HashMap<Uuid, Seen>);

/// What was seen of a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) renewals: i64,
    /// When the member was last seen alive. It ended later, so its row is stored for longer.
    pub(super) at: i64,
}

/// A proof that the database lost writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LostRenewals {
    pub(super) member: Uuid,
    pub(super) seen: i64,
    /// None if the row is missing.
    pub(super) found: Option<i64>,
}

impl Seen {
    /// Whether the row must still be stored. Half of the time is a margin for clocks that were set.
    fn is_recent(self, now: i64) -> bool {
        let retention = match self.renewals > SHORT_LIFE_RENEWALS {
            true => RETENTION_MS,
            false => SHORT_RETENTION_MS,
        };
        now.saturating_sub(self.at) <= retention / 2
    }
}

impl SeenRenewals {
    /// Returns the members in the list.
    pub(super) fn members(&self) -> Vec<Uuid> {
        self.0.keys().copied().collect()
    }

    /// Returns what was seen of each member.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Uuid, Seen)> {
        self.0.iter().map(|(member, seen)| (*member, *seen))
    }

    /// Returns whether the list proves that the database lost writes. `rows` has the rows of all
    /// members in the list. Without a time that is certain, a missing row proves nothing.
    pub(super) fn lost(&self, rows: &[Member], now: Option<i64>) -> Option<LostRenewals> {
        let found: HashMap<Uuid, i64> = rows.iter().map(|row| (row.id, row.renewals)).collect();
        self.iter().find_map(|(member, seen)| {
            let found = found.get(&member).copied();
            let is_lost = match found {
                Some(found) => found < seen.renewals,
                None => now.is_some_and(|now| seen.is_recent(now)),
            };
            is_lost.then_some(LostRenewals { member, seen: seen.renewals, found })
        })
    }

    /// Returns whether this renewal of this process proves that. Each one exceeds the one before.
    pub(super) fn lost_own(&self, own: Member) -> Option<LostRenewals> {
        let seen = self.0.get(&own.id)?;
        let (member, found) = (own.id, Some(own.renewals));
        let is_lost = own.renewals <= seen.renewals;
        is_lost.then_some(LostRenewals { member, seen: seen.renewals, found })
    }

    /// Records the members that are alive now.
    pub(super) fn record_live(&mut self, live: &[Member], now: i64) {
        for member in live {
            self.merge(member.id, Seen { renewals: member.renewals, at: now });
        }
        self.0.retain(|_, seen| seen.is_recent(now));
        if self.0.len() > MAX_MEMBERS {
            let mut newest: Vec<_> = self.iter().collect();
            newest.sort_unstable_by_key(|(_, seen)| std::cmp::Reverse(seen.at));
            self.0 = newest.into_iter().take(MAX_MEMBERS).collect();
        }
    }

    /// Records the last renewals of members in the list that have ended.
    pub(super) fn record_ended(&mut self, rows: &[Member]) {
        for row in rows {
            if let Some(seen) = self.0.get_mut(&row.id) {
                seen.renewals = seen.renewals.max(row.renewals);
            }
        }
    }

    /// Adds what another list or an earlier read has seen of a member.
    pub(super) fn merge(&mut self, member: Uuid, other: Seen) {
        let seen = self.0.entry(member).or_insert(other);
        seen.renewals = seen.renewals.max(other.renewals);
        seen.at = seen.at.max(other.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u128, renewals: i64) -> Member {
        Member { id: Uuid::from_u128(id), renewals }
    }

    fn list(live: &[Member]) -> SeenRenewals {
        let mut seen = SeenRenewals::default();
        seen.record_live(live, 0);
        seen
    }

    #[test]
    fn fewer_renewals_or_a_missing_row_prove_a_loss() {
        let seen = list(&[member(1, 7), member(2, 3)]);
        assert_eq!(seen.lost(&[member(1, 7), member(2, 3), member(3, 0)], Some(1)), None);
        assert_eq!(seen.lost(&[member(1, 9), member(2, 4)], Some(1)), None);
        let fewer = LostRenewals { member: Uuid::from_u128(1), seen: 7, found: Some(6) };
        assert_eq!(seen.lost(&[member(1, 6), member(2, 3)], Some(1)), Some(fewer));
        let missing = LostRenewals { member: Uuid::from_u128(2), seen: 3, found: None };
        assert_eq!(seen.lost(&[member(1, 7)], Some(1)), Some(missing));
    }

    #[test]
    fn own_renewal_exceeds_the_one_before() {
        let seen = list(&[member(1, 7)]);
        assert_eq!(seen.lost_own(member(1, 8)), None);
        assert_eq!(seen.lost_own(member(2, 1)), None, "a new name");
        assert!(seen.lost_own(member(1, 7)).is_some());
    }

    #[test]
    fn row_may_be_missing_after_half_of_its_retention() {
        let seen = list(&[member(1, 2), member(2, 1)]);
        let lost = |now| seen.lost(&[], Some(now)).map(|lost| lost.member.as_u128());
        assert!(lost(SHORT_RETENTION_MS / 2).is_some());
        assert_eq!(lost(SHORT_RETENTION_MS / 2 + 1), Some(1), "the other one had a short life");
        assert_eq!(lost(RETENTION_MS / 2), Some(1));
        assert_eq!(lost(RETENTION_MS / 2 + 1), None);
    }

    #[test]
    fn missing_row_proves_nothing_without_a_certain_time() {
        let seen = list(&[member(1, 7)]);
        assert!(seen.lost(&[], Some(1)).is_some());
        assert_eq!(seen.lost(&[], None), None);
        assert!(seen.lost(&[member(1, 6)], None).is_some());
        let late = Some(RETENTION_MS);
        assert!(seen.lost(&[member(1, 6)], late).is_some(), "a row never counts back");
    }

    #[test]
    fn ended_member_counts_from_the_time_it_was_alive() {
        let mut seen = list(&[member(1, 5)]);
        seen.record_ended(&[member(1, 6), member(2, 9)]);
        assert!(seen.lost(&[member(1, 5)], Some(1)).is_some(), "it left with one more renewal");
        assert_eq!(seen.members(), [Uuid::from_u128(1)], "the other was never seen alive");
        seen.record_live(&[], RETENTION_MS / 2 + 1);
        assert!(seen.members().is_empty());
    }

    #[test]
    fn list_is_bounded_and_drops_the_oldest() {
        let mut seen = list(&[member(0, 5)]);
        let many: Vec<Member> = (1..=256).map(|id| member(id, 5)).collect();
        seen.record_live(&many, 1);
        assert_eq!(seen.members().len(), MAX_MEMBERS);
        assert!(!seen.members().contains(&Uuid::from_u128(0)));
    }
}
