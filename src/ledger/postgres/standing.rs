//! What this process knows of its membership: its name, its lease and its buckets, in memory.
//!
//! The keeper in `membership` writes it, and every transaction and every begin reads it. Reading
//! takes no lock and waits for nothing.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{SetOnce, mpsc, oneshot};
use uuid::Uuid;

use super::clock_difference::ClockDifference;
use super::members_table::Members;
use super::observer::Member;
use crate::ledger::LedgerError;
use crate::ledger::buckets::{bucket_of, bucket_of_library, owned_by};
use crate::ledger::copy_mark::Marks;
use crate::ledger::membership::Membership;
use crate::loan::{LibraryId, LoanId};
use crate::lock::lock;

/// The comparisons of clocks whose largest difference counts: a slow response can hide one.
const COMPARISONS: usize = 5;
/// A response within this time shows the difference well, so that no earlier one counts.
const FAST_RESPONSE: Duration = Duration::from_millis(500);
/// How long a process that ends waits until its row says so.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// Returns the time since the machine started. Tests replace it.
pub(super) type BootTime = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The membership of this process.
pub(super) struct Standing {
    boot_time: BootTime,
    lease: ArcSwap<LeaseState>,
    shares: ArcSwap<Shares>,
    /// The certain differences of the clocks by the last comparisons, the newest last.
    clock_differences: Mutex<VecDeque<ClockDifference>>,
    /// The largest of them in milliseconds; positive if the database is ahead.
    clock_difference: AtomicI64,
    begins_are_closed: AtomicBool,
    /// The newest known epoch of the database, and the one in which this process found a loss.
    epoch: AtomicI64,
    lost_epoch: AtomicI64,
    /// The marks with which a copy took the ledger from this process, for good.
    moved: SetOnce<Marks>,
    leaving: mpsc::Sender<oneshot::Sender<()>>,
}

/// The name of this process, and until when no other process can have fenced it.
#[derive(Clone, Debug)]
struct LeaseState {
    member: Uuid,
    /// The last renewal that was confirmed.
    renewals: i64,
    name: Arc<str>,
    valid_until: Duration,
}

/// The members, and the work that falls to this one.
#[derive(Debug, Default)]
struct Shares {
    version: u64,
    live: usize,
    /// The processes that share the limits of calls to Bokbasen.
    sharers: usize,
    sharing: Vec<Uuid>,
    fenced: HashSet<Uuid>,
    /// In ascending order.
    buckets: Arc<[i16]>,
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing")
            .field("lease", &self.lease.load())
            .field("members", &self.shares.load().live)
            .finish_non_exhaustive()
    }
}

impl Standing {
    /// Creates the standing of a process that is no member yet. The receiver gets its leave.
    pub(super) fn new(boot_time: BootTime) -> (Standing, mpsc::Receiver<oneshot::Sender<()>>) {
        let (leaving, leave) = mpsc::channel(1);
        let standing = Standing {
            boot_time,
            lease: ArcSwap::from_pointee(LeaseState {
                member: Uuid::nil(),
                renewals: 0,
                name: Uuid::nil().to_string().into(),
                valid_until: Duration::ZERO,
            }),
            shares: ArcSwap::default(),
            clock_differences: Mutex::default(),
            clock_difference: AtomicI64::new(0),
            begins_are_closed: AtomicBool::new(false),
            epoch: AtomicI64::new(0),
            lost_epoch: AtomicI64::new(i64::MIN),
            moved: SetOnce::new(),
            leaving,
        };
        (standing, leave)
    }

    pub(super) fn member(&self) -> Uuid {
        self.lease.load().member
    }

    /// Records that this member holds the lease until this time since the start of the machine,
    /// since its last renewal.
    pub(super) fn hold(&self, renewed: Member, valid_until: Duration) {
        let (before, Member { id: member, renewals }) = (self.lease.load(), renewed);
        let name = match before.member == member {
            true => before.name.clone(),
            false => member.to_string().into(),
        };
        self.lease.store(Arc::new(LeaseState { member, renewals, name, valid_until }));
    }

    /// Returns the last renewal of this process, while nobody can have fenced it.
    pub(super) fn renewed(&self) -> Option<Member> {
        let is_valid = (self.boot_time)() < self.lease.load().valid_until;
        is_valid.then(|| self.last_renewal())
    }

    /// Returns the last renewal of this process, whether it still holds that lease or not.
    pub(super) fn last_renewal(&self) -> Member {
        let lease = self.lease.load();
        Member { id: lease.member, renewals: lease.renewals }
    }

    /// Waits until this process has left the members for good.
    pub(super) async fn left(&self) {
        self.leaving.closed().await;
    }

    /// Records that this process holds no lease any more, and gives its work to the others.
    pub(super) fn lose(&self) {
        let before = self.lease.load_full();
        self.lease.store(Arc::new(LeaseState { valid_until: Duration::ZERO, ..(*before).clone() }));
        let shares = self.shares.load();
        // The other members still share the limits of Bokbasen with this process.
        let (version, live, sharers) = (shares.version + 1, shares.live, shares.sharers);
        self.shares.store(Arc::new(Shares { version, live, sharers, ..Shares::default() }));
    }

    /// Records the members, and divides the work among them. A member takes part from its first
    /// renewal on, so that the others notice it before it takes their work.
    pub(super) fn share(&self, members: &Members) {
        let before = self.shares.load();
        let mut sharing: Vec<Uuid> = members
            .live
            .iter()
            .filter(|live| live.member.renewals > 0)
            .map(|live| live.member.id)
            .collect();
        if sharing.is_empty() {
            sharing = members.live.iter().map(|live| live.member.id).collect();
        }
        let (version, buckets) = if sharing == before.sharing {
            (before.version, before.buckets.clone())
        } else {
            (before.version + 1, owned_by(self.member(), &sharing))
        };
        let fenced = members.fenced.iter().copied().collect();
        let live = members.live.len();
        // A process that has just joined counts itself: it may send calls before it shares work.
        let sharers = sharing.len() + usize::from(!sharing.contains(&self.member()));
        let shares = Shares { version, live, sharers, sharing, fenced, buckets };
        self.shares.store(Arc::new(shares));
    }

    /// Compares the clocks by a statement that was sent and answered at these times of this
    /// machine, and returned this time of the database. Returns the largest difference that this or
    /// one of the last comparisons proved.
    pub(super) fn compare_clocks(
        &self,
        sent: Timestamp,
        database: Timestamp,
        answered: Timestamp,
    ) -> ClockDifference {
        let mut recent = lock(&self.clock_differences);
        if answered.duration_since(sent).unsigned_abs() <= FAST_RESPONSE {
            recent.clear();
        }
        if recent.len() >= COMPARISONS {
            recent.pop_front();
        }
        recent.push_back(ClockDifference::between(sent, database, answered));
        let largest = recent.iter().copied().max_by_key(|difference| difference.amount());
        let difference = largest.unwrap_or(ClockDifference(0));
        self.clock_difference.store(difference.0, Ordering::Relaxed);
        difference
    }

    /// Records whether no gate may begin a loan, by the database in this epoch.
    pub(super) fn note_begins(&self, are_closed: bool, epoch: i64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
        self.begins_are_closed.store(are_closed, Ordering::Relaxed);
    }

    /// Records that a transaction found a loss in this epoch. This process begins no loan until a
    /// newer one, also if the database does not say so yet.
    pub(super) fn note_loss(&self, epoch: i64) {
        self.lost_epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Returns whether this process holds its lease now.
    pub(super) fn is_member(&self) -> bool {
        self.holds_lease(&self.lease.load().name)
    }

    fn difference(&self) -> ClockDifference {
        ClockDifference(self.clock_difference.load(Ordering::Relaxed))
    }

    fn owns_bucket(&self, bucket: i16) -> bool {
        self.shares.load().buckets.binary_search(&bucket).is_ok()
    }
}

impl Membership for Standing {
    fn name(&self) -> Arc<str> {
        self.lease.load().name.clone()
    }

    fn is_dead(&self, name: &str) -> bool {
        Uuid::parse_str(name).is_ok_and(|member| self.shares.load().fenced.contains(&member))
    }

    fn count_others(&self) -> usize {
        self.shares.load().live.saturating_sub(1)
    }

    fn holds_lease(&self, name: &str) -> bool {
        let lease = self.lease.load();
        lease.name.as_ref() == name
            && (self.boot_time)() < lease.valid_until
            && !self.begins_are_closed()
            && self.moved.get().is_none()
    }

    /// If no gate may use a ledger with these marks, this process never uses it again: the loans
    /// may have ended in another ledger.
    fn note_marks(&self, marks: &Marks) {
        if let Err(error) = marks.allow_gate()
            && self.moved.set(marks.clone()).is_ok()
        {
            tracing::error!(%error, "the gate delivers nothing more, and ends");
        }
    }

    fn moved(&self) -> Option<LedgerError> {
        self.moved.get().and_then(|marks| marks.allow_gate().err())
    }

    fn until_moved(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.moved.wait().await;
        })
    }

    fn begins_are_closed(&self) -> bool {
        self.begins_are_closed.load(Ordering::Relaxed)
            || self.lost_epoch.load(Ordering::Relaxed) >= self.epoch.load(Ordering::Relaxed)
    }

    fn sharers(&self) -> usize {
        // Only those that have renewed their lease: a process that fails at each start leaves rows,
        // which must not take a part of the limits until their lease is over.
        self.shares.load().sharers
    }

    fn buckets(&self) -> Arc<[i16]> {
        self.shares.load().buckets.clone()
    }

    fn shares_version(&self) -> u64 {
        self.shares.load().version
    }

    fn owns(&self, loan: LoanId) -> bool {
        self.owns_bucket(bucket_of(loan.uuid()))
    }

    fn owns_library(&self, library: LibraryId) -> bool {
        self.owns_bucket(bucket_of_library(library))
    }

    fn clocks_agree(&self) -> bool {
        !self.difference().is_too_large()
    }

    fn clock_lag(&self) -> Duration {
        let difference = self.difference();
        if difference.0 > 0 { difference.amount() } else { Duration::ZERO }
    }

    /// Also while a transaction runs: a process that was declared dead cannot change a loan.
    fn leave(&self, _is_silent: bool) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (done, left) = oneshot::channel();
            if self.leaving.try_send(done).is_ok() {
                let _ = tokio::time::timeout(LEAVE_DEADLINE, left).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::observer::LiveMember;
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn member(id: u128) -> Member {
        Member { id: Uuid::from_u128(id), renewals: 1 }
    }

    fn standing() -> (Standing, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(0));
        let boot = now.clone();
        let boot_time = Arc::new(move || Duration::from_secs(boot.load(Ordering::SeqCst)));
        (Standing::new(boot_time).0, now)
    }

    fn members(renewals: &[(u128, i64)]) -> Members {
        let live = renewals.iter();
        let live = live.map(|(id, renewals)| LiveMember {
            member: Member { id: Uuid::from_u128(*id), renewals: *renewals },
            lease: Duration::from_secs(30),
        });
        Members { live: live.collect(), ..Members::default() }
    }

    #[test]
    fn lease_ends_by_the_clock_and_with_the_name() {
        let (standing, now) = standing();
        assert!(!standing.is_member());
        standing.hold(member(1), Duration::from_secs(30));
        let name = standing.name();
        assert_eq!(&*name, "00000000-0000-0000-0000-000000000001");
        now.store(29, Ordering::SeqCst);
        assert!(standing.holds_lease(&name));
        assert_eq!(standing.renewed(), Some(member(1)));
        now.store(30, Ordering::SeqCst);
        assert!(!standing.holds_lease(&name));
        assert_eq!((standing.renewed(), standing.last_renewal()), (None, member(1)));
        // A late renewal of a member that nobody fenced.
        standing.hold(member(1), Duration::from_secs(60));
        assert!(standing.holds_lease(&name));
        standing.lose();
        assert!(!standing.holds_lease(&name));
        standing.hold(member(2), Duration::from_secs(60));
        assert!(!standing.holds_lease(&name) && standing.is_member());
    }

    #[test]
    fn lease_gives_no_right_while_begins_are_closed() {
        let (standing, _) = standing();
        standing.hold(member(1), Duration::from_secs(30));
        standing.note_begins(true, 3);
        assert!(!standing.holds_lease(&standing.name()) && standing.begins_are_closed());
        standing.hold(member(1), Duration::from_secs(60));
        assert!(!standing.is_member());
        standing.note_begins(false, 3);
        assert!(standing.holds_lease(&standing.name()) && !standing.begins_are_closed());
        standing.note_loss(3);
        standing.note_begins(false, 3);
        assert!(!standing.is_member(), "an older response does not open begins");
        standing.note_begins(false, 4);
        assert!(standing.is_member());
    }

    #[test]
    fn first_member_owns_all_and_a_new_one_waits_for_its_renewal() {
        let (standing, _) = standing();
        standing.hold(member(1), Duration::from_secs(30));
        standing.share(&members(&[(1, 0)]));
        assert_eq!(standing.buckets().len(), 1024);
        let version = standing.shares_version();
        standing.share(&members(&[(1, 1), (2, 0)]));
        assert_eq!((standing.buckets().len(), standing.shares_version()), (1024, version));
        assert_eq!((standing.sharers(), standing.count_others()), (1, 1));
        standing.share(&members(&[(1, 2), (2, 1)]));
        assert_eq!((standing.sharers(), standing.count_others()), (2, 1));
        assert!((400..624).contains(&standing.buckets().len()));
        assert!(standing.shares_version() > version);
    }

    #[test]
    fn fenced_process_owns_nothing() {
        let (standing, _) = standing();
        standing.hold(member(1), Duration::from_secs(30));
        standing.share(&members(&[(1, 1)]));
        let library = "NO-0301000".parse().unwrap();
        assert!(standing.owns(LoanId::generate(library)) && standing.owns_library(library));
        standing.lose();
        assert!(!standing.owns(LoanId::generate(library)) && !standing.owns_library(library));
        assert_eq!(standing.buckets().len(), 0);
    }

    #[test]
    fn only_members_that_were_fenced_are_dead() {
        let (standing, _) = standing();
        standing.hold(member(1), Duration::from_secs(30));
        let fenced = vec![Uuid::from_u128(7)];
        standing.share(&Members { fenced, ..members(&[(1, 1), (2, 1)]) });
        let is_dead = |id| standing.is_dead(&Uuid::from_u128(id).to_string());
        assert_eq!([1, 2, 3, 7].map(is_dead), [false, false, false, true]);
        assert!(!standing.is_dead("no name"));
    }

    #[test]
    fn slow_response_proves_no_difference_of_the_clocks() {
        for (sent, database, answered, difference) in [
            (1000, 1005, 1010, 0),
            (1000, 1300, 1010, 290),
            (1000, 100, 1010, -900),
            (0, 9_000, 20_000, 0),
            (20_000, 9_000, 0, 0),
        ] {
            let found = ClockDifference::between(at(sent), at(database), at(answered));
            assert_eq!(found, ClockDifference(difference), "{sent} {database} {answered}");
        }
    }

    #[test]
    fn clocks_that_differ_by_more_than_ten_seconds_disagree() {
        let (standing, _) = standing();
        for (database, agree, lag) in
            [(0, true, 0), (10_000, true, 10_000), (10_001, false, 10_001), (-10_001, false, 0)]
        {
            standing.compare_clocks(at(0), at(database), at(0));
            assert_eq!(standing.clocks_agree(), agree, "{database}");
            assert_eq!(standing.clock_lag(), Duration::from_millis(lag));
        }
    }

    #[test]
    fn limits_are_shared_by_members_that_have_renewed() {
        let (standing, _) = standing();
        standing.hold(member(1), Duration::from_secs(30));
        for (renewals, sharers) in [
            (&[(1, 0)][..], 1),
            (&[(1, 0), (2, 0)], 2),
            (&[(1, 0), (2, 7)], 2),
            (&[(1, 3), (2, 7), (3, 0), (4, 0)], 2),
        ] {
            standing.share(&members(renewals));
            assert_eq!(standing.sharers(), sharers, "{renewals:?}");
        }
        standing.lose();
        assert_eq!(standing.sharers(), 2, "the others still count this process");
    }

    #[test]
    fn slow_response_does_not_hide_a_known_difference() {
        let (standing, _) = standing();
        let slow = |ahead: i64| {
            standing.compare_clocks(at(0), at(ahead + 2000), at(4000));
            standing.clocks_agree()
        };
        standing.compare_clocks(at(0), at(11_000), at(0));
        for renewal in 1..COMPARISONS {
            assert!(!slow(11_000), "{renewal}");
        }
        assert_eq!(standing.clock_lag(), Duration::from_secs(11));
        assert!(slow(11_000), "only the last few comparisons count");
        assert!(!slow(13_000));
        assert!(!slow(0));
        standing.compare_clocks(at(0), at(0), at(10));
        assert!(standing.clocks_agree(), "a fast response shows that a clock was set");
    }
}
