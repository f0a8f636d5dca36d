//! Members on a table in memory, with clocks that the tests move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;

use super::super::loss_detector::KnownBefore;
use super::super::members_table::Members;
use super::super::observer::{LiveMember, Member};
use super::*;
use crate::lock::lock;

const LEASE: Duration = Duration::from_secs(30);

/// The rows: the counter, and whether the member is fenced.
type Rows = Arc<Mutex<Stored>>;
type Stored = BTreeMap<Uuid, (i64, bool)>;

/// The table as one process reaches it.
struct Table {
    rows: Rows,
    is_down: Arc<AtomicBool>,
    /// The member whose row cannot be fenced.
    locked: Arc<Mutex<Option<Uuid>>>,
    /// Whether the next renewal panics.
    panics: Arc<AtomicBool>,
    ahead: Arc<AtomicU64>,
    begins_are_closed: Arc<AtomicBool>,
    epoch: Arc<AtomicI64>,
    deletions: usize,
}

impl Table {
    fn rows(&self) -> Result<MutexGuard<'_, Stored>, sqlx::Error> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(sqlx::Error::PoolTimedOut);
        }
        Ok(lock(&self.rows))
    }

    fn now(&self) -> Timestamp {
        let ahead = Duration::from_secs(self.ahead.load(Ordering::SeqCst));
        clock::after(Clock::system().machine_now(), ahead)
    }

    fn renewal(&self, renewals: i64) -> Renewal {
        Renewal {
            at: self.now(),
            renewals,
            epoch: self.epoch.load(Ordering::SeqCst),
            begins_are_closed: self.begins_are_closed.load(Ordering::SeqCst),
        }
    }
}

impl MemberTable for Table {
    async fn join(
        &mut self,
        member: Uuid,
        _process: JoiningProcess,
    ) -> Result<Renewal, sqlx::Error> {
        self.rows()?.insert(member, (0, false));
        Ok(self.renewal(0))
    }

    async fn renew(&mut self, member: Uuid) -> Result<Option<Renewal>, sqlx::Error> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on purpose");
        let mut rows = self.rows()?;
        let row = rows.get_mut(&member).filter(|(_, is_fenced)| !is_fenced);
        Ok(row.map(|(renewals, _)| {
            *renewals += 1;
            self.renewal(*renewals)
        }))
    }

    async fn read(&mut self, _ended: &[Uuid]) -> Result<Members, sqlx::Error> {
        let mut members = Members::default();
        for (id, (renewals, is_fenced)) in self.rows()?.iter() {
            let member = Member { id: *id, renewals: *renewals };
            match is_fenced {
                true => {
                    members.fenced.push(*id);
                    members.ended.push(member);
                }
                false => members.live.push(LiveMember { member, lease: LEASE }),
            }
        }
        Ok(members)
    }

    async fn fence(&mut self, member: Member) -> Result<bool, sqlx::Error> {
        if *lock(&self.locked) == Some(member.id) {
            return Err(sqlx::Error::PoolTimedOut);
        }
        match self.rows()?.get_mut(&member.id) {
            Some(row) if *row == (member.renewals, false) => row.1 = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    async fn leave(&mut self, member: Uuid) -> Result<Option<i64>, sqlx::Error> {
        let mut rows = self.rows()?;
        Ok(rows.get_mut(&member).map(|row| {
            *row = (row.0 + 1, true);
            row.0
        }))
    }

    async fn delete_old(&mut self) -> Result<(), sqlx::Error> {
        self.deletions += 1;
        self.rows().map(drop)
    }

    async fn close_begins(&mut self, _process: Uuid, epoch: i64) -> Result<(), sqlx::Error> {
        if !self.is_down.load(Ordering::SeqCst) && self.epoch.load(Ordering::SeqCst) <= epoch {
            self.begins_are_closed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A process, with its own clock and its own connection to the table.
struct Process {
    keeper: Keeper<Table>,
    leave: mpsc::Receiver<oneshot::Sender<()>>,
    now: Arc<AtomicU64>,
    is_down: Arc<AtomicBool>,
    locked: Arc<Mutex<Option<Uuid>>>,
    panics: Arc<AtomicBool>,
    ahead: Arc<AtomicU64>,
    begins_are_closed: Arc<AtomicBool>,
    epoch: Arc<AtomicI64>,
}

impl Process {
    async fn join(rows: &Rows) -> Process {
        let (now, is_down, ahead) = <(Arc<AtomicU64>, Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (locked, panics) = (Arc::default(), Arc::default());
        let (begins_are_closed, epoch) = <(Arc<AtomicBool>, Arc<AtomicI64>)>::default();
        let table = Table {
            rows: rows.clone(),
            is_down: is_down.clone(),
            locked: Arc::clone(&locked),
            panics: Arc::clone(&panics),
            ahead: ahead.clone(),
            begins_are_closed: begins_are_closed.clone(),
            epoch: epoch.clone(),
            deletions: 0,
        };
        let boot = now.clone();
        let boot_time: BootTime =
            Arc::new(move || Duration::from_secs(boot.load(Ordering::SeqCst)));
        let (standing, leave) = Standing::new(boot_time.clone());
        let clocks = (boot_time, Clock::system());
        let detector = LossDetector::new(KnownBefore::default(), None, None);
        let (standing, metrics) = (Arc::new(standing), Metrics::new().unwrap());
        let process =
            JoiningProcess { id: Uuid::new_v4(), lease: LEASE, freshness: LEASE, program: 1 };
        let mut keeper = Keeper::new(table, process, standing, detector, clocks, metrics);
        keeper.join().await.unwrap();
        keeper.observe().await.unwrap();
        Process { keeper, leave, now, is_down, locked, panics, ahead, begins_are_closed, epoch }
    }

    /// Lets time pass without running the process.
    fn pass(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Lets one interval pass, and runs a round.
    async fn round(&mut self) -> Result<Duration, sqlx::Error> {
        self.pass(6);
        self.keeper.round().await
    }

    fn standing(&self) -> &Standing {
        &self.keeper.standing
    }

    fn is_up(&self, is_up: bool) {
        self.is_down.store(!is_up, Ordering::SeqCst);
    }

    fn count(&self, metric: &str) -> Option<String> {
        let text = self.keeper.metrics.render();
        let line = text.lines().find(|line| line.starts_with(metric))?;
        line.rsplit(' ').next().map(str::to_owned)
    }
}

#[tokio::test]
async fn two_members_share_the_work_after_a_renewal() {
    let rows = Rows::default();
    let mut first = Process::join(&rows).await;
    let mut second = Process::join(&rows).await;
    assert_eq!(first.standing().buckets().len(), 1024);
    for _ in 0..2 {
        first.round().await.unwrap();
        second.round().await.unwrap();
    }
    let (left, right) = (first.standing().buckets(), second.standing().buckets());
    assert_eq!(left.len() + right.len(), 1024);
    assert!(left.iter().all(|bucket| !right.contains(bucket)));
    assert_eq!((first.standing().sharers(), second.standing().count_others()), (2, 1));
    assert_eq!(first.count("loangate_ledger_members "), Some("2".to_owned()));
}

#[tokio::test]
async fn dead_member_is_fenced_and_its_work_is_taken_over() {
    let rows = Rows::default();
    let (mut alive, dead) = (Process::join(&rows).await, Process::join(&rows).await);
    let name = dead.standing().name();
    for round in 1..=7 {
        alive.round().await.unwrap();
        // The first read that saw the dead member was the one at the start of the first round.
        assert_eq!(alive.standing().is_dead(&name), round > 7, "round {round}");
    }
    alive.round().await.unwrap();
    assert!(alive.standing().is_dead(&name));
    assert_eq!(alive.standing().buckets().len(), 1024);
    assert_eq!(alive.standing().sharers(), 1);
    let fenced = alive.count("loangate_ledger_members_fenced_total{member=\"other\"}");
    assert_eq!(fenced, Some("1".to_owned()));
}

#[tokio::test]
async fn lease_is_over_before_another_process_may_fence() {
    let rows = Rows::default();
    let (mut alive, stalled) = (Process::join(&rows).await, Process::join(&rows).await);
    let name = stalled.standing().name();
    while !alive.standing().is_dead(&name) {
        let held = stalled.standing().holds_lease(&name);
        alive.round().await.unwrap();
        stalled.pass(6);
        assert!(held || stalled.now.load(Ordering::SeqCst) >= 30);
    }
    assert!(!stalled.standing().holds_lease(&name));
    assert!(stalled.now.load(Ordering::SeqCst) >= 36, "lease and margin");
}

#[tokio::test]
async fn fenced_member_joins_again_under_a_new_name() {
    let rows = Rows::default();
    let (mut alive, mut stalled) = (Process::join(&rows).await, Process::join(&rows).await);
    let old = stalled.standing().name();
    for _ in 0..8 {
        alive.round().await.unwrap();
    }
    stalled.pass(48);
    stalled.round().await.unwrap();
    let new = stalled.standing().name();
    assert_ne!(old, new);
    assert!(stalled.standing().holds_lease(&new) && !stalled.standing().holds_lease(&old));
    assert!(stalled.standing().is_dead(&old) && !stalled.standing().is_dead(&new));
    assert_eq!(rows.lock().unwrap().values().filter(|(_, is_fenced)| !is_fenced).count(), 2);
    let fenced = stalled.count("loangate_ledger_members_fenced_total{member=\"own\"}");
    assert_eq!(fenced, Some("1".to_owned()));
}

#[tokio::test]
async fn fenced_member_owns_nothing_until_it_has_joined_again() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    rows.lock().unwrap().values_mut().for_each(|row| row.1 = true);
    process.keeper.renew().await.unwrap();
    assert_eq!(process.standing().buckets().len(), 0);
    assert!(!process.standing().is_member());
    process.is_up(false);
    for _ in 0..3 {
        assert!(process.round().await.is_err() && !process.standing().is_member());
    }
    process.is_up(true);
    process.round().await.unwrap();
    assert!(process.standing().is_member());
    assert_eq!(process.standing().buckets().len(), 1024);
    let fenced = process.count("loangate_ledger_members_fenced_total{member=\"own\"}");
    assert_eq!(fenced, Some("1".to_owned()), "fenced once");
}

#[tokio::test]
async fn member_that_nobody_fenced_continues_after_an_outage() {
    let rows = Rows::default();
    let (mut first, mut second) = (Process::join(&rows).await, Process::join(&rows).await);
    let names = [first.standing().name(), second.standing().name()];
    for process in [&mut first, &mut second] {
        process.is_up(false);
        for _ in 0..100 {
            assert!(process.round().await.is_err());
        }
        assert!(!process.standing().is_member(), "the lease is over");
    }
    first.is_up(true);
    second.is_up(true);
    // The first is back early, and sees the other silent for a while.
    for _ in 0..4 {
        first.round().await.unwrap();
    }
    second.round().await.unwrap();
    first.round().await.unwrap();
    assert_eq!(names, [first.standing().name(), second.standing().name()]);
    assert!(first.standing().is_member() && second.standing().is_member());
}

#[tokio::test]
async fn observer_that_was_suspended_fences_nobody_at_once() {
    let rows = Rows::default();
    let (mut observer, other) = (Process::join(&rows).await, Process::join(&rows).await);
    observer.round().await.unwrap();
    observer.pass(3600);
    // It finds itself unfenced, and counts one interval for the hour.
    for _ in 0..4 {
        observer.round().await.unwrap();
        assert!(!observer.standing().is_dead(&other.standing().name()));
    }
}

#[tokio::test]
async fn one_of_two_observers_fences() {
    let rows = Rows::default();
    let (mut first, mut second) = (Process::join(&rows).await, Process::join(&rows).await);
    let dead = Process::join(&rows).await.standing().name();
    for _ in 0..9 {
        first.round().await.unwrap();
        second.round().await.unwrap();
    }
    let fenced = "loangate_ledger_members_fenced_total{member=\"other\"}";
    let mut counts = [first.count(fenced), second.count(fenced)];
    counts.sort();
    assert_eq!(counts, ["0", "1"].map(|count| Some(count.to_owned())));
    assert!(first.standing().is_dead(&dead) && second.standing().is_dead(&dead));
}

#[tokio::test]
async fn process_that_leaves_shares_no_work() {
    let rows = Rows::default();
    let (mut first, mut second) = (Process::join(&rows).await, Process::join(&rows).await);
    second.keeper.leave().await;
    assert!(!second.standing().is_member());
    first.round().await.unwrap();
    assert_eq!(first.standing().buckets().len(), 1024);
}

#[tokio::test]
async fn clock_of_the_database_is_compared_at_each_renewal() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    for (ahead, agree) in [(0, true), (9, true), (12, false), (0, true)] {
        process.ahead.store(ahead, Ordering::SeqCst);
        process.round().await.unwrap();
        assert_eq!(process.standing().clocks_agree(), agree, "{ahead} s");
        let lag = process.standing().clock_lag();
        assert!(
            lag <= Duration::from_secs(ahead)
                && lag + Duration::from_secs(1) > Duration::from_secs(ahead)
        );
    }
}

#[tokio::test]
async fn rows_are_not_deleted_by_a_clock_that_differs() {
    for (ahead, deletions) in [(0, 1), (16 * 86_400, 0)] {
        let mut process = Process::join(&Rows::default()).await;
        process.ahead.store(ahead, Ordering::SeqCst);
        process.round().await.unwrap();
        assert_eq!(process.keeper.table.deletions, deletions, "{ahead} s ahead");
    }
}

#[tokio::test]
async fn round_fences_one_member_only() {
    let rows = Rows::default();
    let mut alive = Process::join(&rows).await;
    let dead = [Process::join(&rows).await, Process::join(&rows).await];
    let names = dead.map(|process| process.standing().name());
    let count_dead =
        |alive: &Process| names.iter().filter(|name| alive.standing().is_dead(name)).count();
    for fenced in [0, 0, 0, 0, 0, 0, 0, 1, 2] {
        let wait = alive.round().await.unwrap();
        assert_eq!(count_dead(&alive), fenced);
        // The next one must not wait for another interval.
        assert_eq!(wait < alive.keeper.interval, fenced == 1, "{fenced} are fenced: {wait:?}");
    }
}

#[tokio::test]
async fn failed_fence_stops_neither_shares_nor_other_fences() {
    let rows = Rows::default();
    let mut alive = Process::join(&rows).await;
    let (stuck, dead) = (Process::join(&rows).await, Process::join(&rows).await);
    let (stuck, dead) = (stuck.standing().member(), dead.standing().name());
    *lock(&alive.locked) = Some(stuck);
    for _ in 0..8 {
        alive.round().await.unwrap();
    }
    let mut third = Process::join(&rows).await;
    third.round().await.unwrap();
    for _ in 0..2 {
        alive.round().await.unwrap();
    }
    assert!(alive.standing().is_dead(&dead), "it gets its turn");
    assert!(!alive.standing().is_dead(&stuck.to_string()));
    assert_eq!(alive.standing().sharers(), 2, "the process that joined has its share");
    *lock(&alive.locked) = None;
    alive.round().await.unwrap();
    assert!(alive.standing().is_dead(&stuck.to_string()));
}

#[tokio::test(start_paused = true)]
async fn lease_is_renewed_again_after_a_panic() {
    let rows = Rows::default();
    let Process { keeper, leave, panics, .. } = Process::join(&rows).await;
    let (standing, metrics) = (keeper.standing.clone(), keeper.metrics.clone());
    let renewals = || lock(&rows).values().next().map(|row| row.0);
    panics.store(true, Ordering::SeqCst);
    let keeping = tokio::spawn(keep(keeper, leave, metrics.clone()));
    tokio::time::sleep(Duration::from_millis(6050)).await;
    assert_eq!(renewals(), Some(0), "the first renewal panicked");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(renewals(), Some(1));
    let restarts = "loangate_task_restarts_total{task=\"keep-lease\"} 1";
    assert!(metrics.render().contains(restarts));
    standing.leave(true).await;
    assert!(!standing.is_member() && lock(&rows).values().all(|(_, has_ended)| *has_ended));
    keeping.await.unwrap();
}

#[tokio::test]
async fn gauge_of_the_lease_needs_no_renewal() {
    let rows = Rows::default();
    let process = Process::join(&rows).await;
    let standing = process.keeper.standing.clone();
    process.keeper.metrics.watch_lease(move || standing.is_member());
    let held = || process.count("loangate_ledger_lease_held ");
    assert_eq!(held(), Some("1".to_owned()));
    process.pass(30);
    assert_eq!(held(), Some("0".to_owned()));
}

#[tokio::test]
async fn fewer_own_renewals_close_begins_until_the_next_epoch() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    for _ in 0..5 {
        process.round().await.unwrap();
    }
    assert!(process.standing().is_member());
    rows.lock().unwrap().values_mut().for_each(|row| row.0 -= 1);
    process.round().await.unwrap();
    assert!(process.begins_are_closed.load(Ordering::SeqCst) && !process.standing().is_member());
    // An operator deletes the row and does not reconcile.
    for _ in 0..10 {
        process.begins_are_closed.store(false, Ordering::SeqCst);
        process.round().await.unwrap();
        assert!(process.begins_are_closed.load(Ordering::SeqCst));
        assert!(!process.standing().is_member());
    }
    process.epoch.store(1, Ordering::SeqCst);
    process.begins_are_closed.store(false, Ordering::SeqCst);
    for _ in 0..10 {
        process.round().await.unwrap();
        assert!(!process.begins_are_closed.load(Ordering::SeqCst));
        assert!(process.standing().is_member());
    }
}

#[tokio::test]
async fn lost_row_of_a_running_gate_closes_begins_before_it_joins_again() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    process.round().await.unwrap();
    let former = process.standing().member();
    rows.lock().unwrap().clear();
    process.keeper.renew().await.unwrap();
    process.keeper.join().await.unwrap();
    assert!(process.standing().member() != former && !process.standing().is_member());
    process.round().await.unwrap();
    assert!(process.begins_are_closed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn lost_row_of_another_gate_closes_begins() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    let other = Process::join(&rows).await.standing().member();
    process.round().await.unwrap();
    rows.lock().unwrap().remove(&other);
    process.round().await.unwrap();
    assert!(process.begins_are_closed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn gate_that_was_suspended_for_long_joins_again_and_closes_nothing() {
    let rows = Rows::default();
    let mut process = Process::join(&rows).await;
    process.round().await.unwrap();
    // Meanwhile its row was fenced, and deleted after 30 days.
    rows.lock().unwrap().clear();
    process.pass(31 * 86_400);
    // The clock of its machine is not set yet.
    process.ahead.store(31 * 86_400, Ordering::SeqCst);
    process.round().await.unwrap();
    process.round().await.unwrap();
    assert!(!process.begins_are_closed.load(Ordering::SeqCst) && process.standing().is_member());
}
