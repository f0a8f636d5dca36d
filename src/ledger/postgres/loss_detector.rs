//! Decides whether the database lost writes, from what this process has seen of the members.
//!
//! The keeper in `membership` calls it with each renewal and each read of the members, and closes
//! the begins of all gates while it says so. It writes what it has seen to the file of this
//! process. It runs no SQL and reads no clock.
//!
//! While begins are closed, it records nothing: an operator may restore a newer state, which has
//! nothing of the time between. While the clocks of this machine and of the database differ, it
//! records nobody as alive, and a missing row proves nothing: a database whose clock was set by
//! weeks deletes rows early, or makes members seem alive in the future.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::closed_begins::ANY_EPOCH;
use super::epoch::{FORGED, FORGED_SENTENCE};
use super::members_table::{Members, Renewal};
use super::observer::Member;
use super::renewals_file::RenewalsFile;
use super::seen_renewals::{LostRenewals, SeenRenewals};
use crate::ledger::audit::chain_heads::ChainHeads;

/// What a process knows when it joins.
#[derive(Debug, Default)]
pub(super) struct KnownBefore {
    /// The epoch of the database, or a newer one that an earlier process has seen.
    pub(super) epoch: i64,
    /// What earlier processes on this machine have seen in this epoch.
    pub(super) seen: SeenRenewals,
    /// Whether that proves that the database lost writes.
    pub(super) has_lost: bool,
    /// The files of ended processes that the file of this process makes superfluous.
    pub(super) superseded: Vec<PathBuf>,
}

/// What this process has seen of the members in one epoch.
#[derive(Debug)]
pub(super) struct LossDetector {
    /// The file of this process, and the heads of its chains. Tests have neither.
    file: Option<RenewalsFile>,
    heads: Option<Arc<ChainHeads>>,
    epoch: i64,
    seen: SeenRenewals,
    has_lost: bool,
    /// Whether the last renewal had an epoch without a valid seal.
    is_forged: bool,
    /// Whether the begins of all gates are closed, as of the last renewal.
    are_closed: bool,
    /// The time of the last renewal, by the clock of the database in milliseconds.
    now: i64,
    /// Whether that agrees with the clock of this machine. Otherwise one of them was set.
    is_certain: bool,
}

impl LossDetector {
    /// Creates the detector of a process that is about to join.
    pub(super) fn new(
        before: KnownBefore,
        file: Option<RenewalsFile>,
        heads: Option<Arc<ChainHeads>>,
    ) -> LossDetector {
        let KnownBefore { epoch, seen, has_lost, .. } = before;
        LossDetector {
            file,
            heads,
            epoch,
            seen,
            has_lost,
            is_forged: false,
            are_closed: false,
            now: 0,
            is_certain: false,
        }
    }

    /// Returns whether the database lost writes in this epoch.
    pub(super) fn has_lost(&self) -> bool {
        self.has_lost
    }

    /// Returns whether the begins of all gates must be closed, and were not at the last renewal.
    pub(super) fn must_close(&self) -> bool {
        self.has_lost && !self.are_closed
    }

    /// Returns the epoch in which the loss was found.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Returns the epoch whose begins must be closed.
    pub(super) fn closing_epoch(&self) -> i64 {
        if self.is_forged { ANY_EPOCH } else { self.epoch }
    }

    /// Returns the members whose rows [`LossDetector::compare`] needs.
    pub(super) fn members(&self) -> Vec<Uuid> {
        self.seen.members()
    }

    /// Compares a renewal of this process with the one before, and notices a new epoch.
    /// `clocks_agree` says whether this machine's clock agrees with that of the database.
    pub(super) fn compare_renewal(&mut self, member: Uuid, renewal: Renewal, clocks_agree: bool) {
        (self.now, self.is_certain) = (renewal.at.as_millisecond(), clocks_agree);
        self.are_closed = renewal.begins_are_closed;
        if renewal.epoch > self.epoch {
            self.begin_epoch(renewal.epoch);
        }
        self.is_forged = renewal.epoch == FORGED;
        if renewal.epoch < self.epoch && !self.has_lost {
            match self.is_forged {
                true => tracing::error!("{FORGED_SENTENCE}"),
                false => tracing::error!("{LOST}: an operator has reconciled it since"),
            }
            self.has_lost = true;
        }
        let own = Member { id: member, renewals: renewal.renewals };
        self.conclude(self.seen.lost_own(own));
        self.record_live(&[own]);
    }

    /// Compares the members that were read after the last renewal.
    pub(super) fn compare(&mut self, members: &Members) {
        let live: Vec<Member> = members.live.iter().map(|live| live.member).collect();
        let rows = [live.as_slice(), &members.ended].concat();
        self.conclude(self.seen.lost(&rows, self.is_certain.then_some(self.now)));
        self.record_live(&live);
        if self.records() {
            self.seen.record_ended(&members.ended);
        }
        self.write();
    }

    fn record_live(&mut self, live: &[Member]) {
        // By a clock that is ahead, members would be forgotten.
        if self.records() && self.is_certain {
            self.seen.record_live(live, self.now);
        }
    }

    /// Records that this process has left with this counter, and waits until the file is durable.
    pub(super) async fn finish(&mut self, left: Option<Member>) {
        if self.records() {
            self.seen.record_ended(left.as_slice());
        }
        self.write();
        if let Some(file) = self.file.take() {
            file.finish().await;
        }
    }

    fn write(&self) {
        if let Some(file) = &self.file {
            file.write(self.epoch, &self.seen);
        }
    }

    fn records(&self) -> bool {
        !self.has_lost && !self.are_closed
    }

    fn begin_epoch(&mut self, epoch: i64) {
        tracing::info!(epoch, "an operator has reconciled the ledger with Bokbasen");
        self.epoch = epoch;
        self.seen = SeenRenewals::default();
        self.has_lost = false;
        if let Some(heads) = &self.heads {
            heads.begin_epoch(epoch);
        }
    }

    fn conclude(&mut self, lost: Option<LostRenewals>) {
        let Some(LostRenewals { member, seen, found }) = lost else { return };
        if !std::mem::replace(&mut self.has_lost, true) {
            tracing::error!(
                %member,
                seen,
                found,
                "{LOST}: a member has fewer renewals than before"
            );
        }
    }
}

const LOST: &str = "the database of the ledger was restored from a backup, or a failover lost its \
    last transactions";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::super::observer::LiveMember;
    use super::*;

    fn renewal(epoch: i64, renewals: i64, begins_are_closed: bool) -> Renewal {
        let at = Timestamp::from_millisecond(1000).unwrap();
        Renewal { at, renewals, epoch, begins_are_closed }
    }

    fn detector() -> LossDetector {
        LossDetector::new(KnownBefore { epoch: 5, ..KnownBefore::default() }, None, None)
    }

    /// Returns the row of this process, and of another one with this counter.
    fn members(renewals: i64) -> Members {
        let own = Member { id: Uuid::from_u128(1), renewals: 9 };
        let live = [own, Member { id: Uuid::from_u128(2), renewals }];
        let lease = Duration::from_secs(30);
        let live = live.map(|member| LiveMember { member, lease }).to_vec();
        Members { live, ..Members::default() }
    }

    #[test]
    fn loss_stays_until_the_next_epoch() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        detector.compare_renewal(me, renewal(5, 2, false), true);
        detector.compare_renewal(me, renewal(5, 3, false), true);
        detector.compare(&members(8));
        assert!(!detector.has_lost());
        detector.compare_renewal(me, renewal(5, 2, false), true);
        assert!(detector.has_lost());
        detector.compare_renewal(me, renewal(5, 9, false), true);
        detector.compare(&members(8));
        assert!(detector.has_lost(), "its own renewals have caught up");
        detector.compare_renewal(me, renewal(6, 3, false), true);
        detector.compare(&members(1));
        assert!(!detector.has_lost());
        detector.compare(&members(0));
        assert!(detector.has_lost(), "lost in the new epoch");
    }

    #[test]
    fn database_of_an_older_epoch_has_lost_writes() {
        let mut detector = detector();
        detector.compare_renewal(Uuid::from_u128(1), renewal(4, 3, false), true);
        assert!(detector.has_lost() && detector.epoch() == 5);
    }

    #[test]
    fn step_of_the_clock_proves_no_loss() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        let renewed = |renewals, days: i64| {
            let at = Timestamp::from_millisecond(1000 + days * 86_400_000).unwrap();
            Renewal { at, ..renewal(5, renewals, false) }
        };
        detector.compare_renewal(me, renewed(9, 0), true);
        detector.compare(&members(8));
        // The clock of the database is set by 16 days, and a gate leaves before it is set back.
        detector.compare_renewal(me, renewed(10, 16), false);
        let mut with_third = members(8);
        let third = Member { id: Uuid::from_u128(3), renewals: 4 };
        with_third.live.push(LiveMember { member: third, lease: Duration::from_secs(30) });
        detector.compare(&with_third);
        let mut without = members(8);
        without.live.truncate(1);
        detector.compare(&without);
        assert!(!detector.has_lost(), "a row may have been deleted early");
        detector.compare_renewal(me, renewed(11, 0), true);
        let members = |renewals| {
            let mut members = members(renewals);
            members.live[0].member.renewals = 11;
            members
        };
        detector.compare(&members(8));
        assert!(!detector.has_lost(), "the third was not seen at a certain time");
        let mut without = members(8);
        without.live.truncate(1);
        detector.compare(&without);
        assert!(detector.has_lost());
    }

    #[test]
    fn row_that_was_deleted_during_a_suspension_is_no_loss() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        detector.compare_renewal(me, renewal(5, 9, false), true);
        detector.compare(&members(8));
        let at = Timestamp::from_millisecond(31 * 86_400_000).unwrap();
        detector.compare_renewal(me, Renewal { at, ..renewal(5, 10, false) }, true);
        let mut without = members(8);
        without.live.truncate(1);
        without.live[0].member.renewals = 10;
        detector.compare(&without);
        assert!(!detector.has_lost());
    }

    #[test]
    fn step_of_the_clock_forgets_no_member() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        detector.compare_renewal(me, renewal(5, 9, false), true);
        detector.compare(&members(8));
        let at = Timestamp::from_millisecond(400 * 86_400_000).unwrap();
        detector.compare_renewal(me, Renewal { at, ..renewal(5, 10, false) }, false);
        detector.compare_renewal(me, renewal(5, 11, false), true);
        let mut without = members(8);
        without.live.truncate(1);
        without.live[0].member.renewals = 11;
        detector.compare(&without);
        assert!(detector.has_lost(), "the row of the other member is missing");
    }

    #[test]
    fn forged_epoch_closes_begins_until_the_next_epoch() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        detector.compare_renewal(me, renewal(FORGED, 3, false), true);
        assert!(detector.must_close());
        assert_eq!((detector.epoch(), detector.closing_epoch()), (5, ANY_EPOCH));
        detector.compare_renewal(me, renewal(6, 4, true), true);
        assert_eq!((detector.has_lost(), detector.closing_epoch()), (false, 6));
    }

    #[test]
    fn nothing_is_recorded_while_begins_are_closed() {
        let (mut detector, me) = (detector(), Uuid::from_u128(1));
        detector.compare_renewal(me, renewal(5, 3, false), true);
        detector.compare_renewal(me, renewal(5, 7, true), true);
        detector.compare(&members(8));
        // The newest state was restored.
        detector.compare_renewal(me, renewal(5, 4, false), true);
        detector.compare(&members(1));
        assert!(!detector.has_lost());
    }
}
