//! The schedule of undecided loans: when each is polled next, and which callers wait for it.
//!
//! Each loan of this process that Bokbasen has not decided has one entry of at most 1 KiB. A task
//! exists only while one step runs: a begin, a poll, or a check of a search. The scheduler starts
//! due steps for a bounded number of loans at a time, so that begins get most of the call budget.
//!
//! If more steps are due than can run, the levels take turns: first polls precede later polls, and
//! loans with a waiting caller precede loans without one. Early polls alternate between the newest
//! and the oldest due loan. So a backlog neither delays new readers nor starves old ones. In the
//! other levels the earliest due loan is first.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::drive::{self, DriverState};
use super::wait::ScheduleWaiter;
use super::{Circulation, LoanOutcome};
use crate::crash::{self, Edge};
use crate::lending::{CallKind, Passage};
use crate::loan::LoanId;
use crate::telemetry::Task;

/// First wait between two polls, and the limit up to which it doubles, with and without a waiting
/// caller. Bokbasen decides most loans within two seconds.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_IDLE_WAIT: Duration = Duration::from_secs(60);
/// Wait before a loan is polled again whose task panicked.
const PANIC_RETRY_WAIT: Duration = Duration::from_millis(500);
/// Number of polls that count as early.
const EARLY_POLLS: u32 = 5;
/// Longest time between two checks of the schedule.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Urgency of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    /// The first poll of a loan that a caller waits for. It decides most loans.
    First = 0,
    /// The next few polls of such a loan.
    Early = 1,
    /// Later polls of such a loan.
    Waited = 2,
    /// No caller waits.
    Idle = 3,
}

impl Level {
    /// Returns whether the poll probably decides the loan: it completes a begin.
    fn is_urgent(self) -> bool {
        matches!(self, Level::First | Level::Early)
    }
}

/// Which due loan of a level is picked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PickFrom {
    Newest,
    Oldest,
}

/// The order in which the levels take turns if several have due loans.
const TURNS: [(Level, PickFrom); 8] = [
    (Level::First, PickFrom::Newest),
    (Level::Early, PickFrom::Newest),
    (Level::Waited, PickFrom::Oldest),
    (Level::First, PickFrom::Newest),
    (Level::Early, PickFrom::Oldest),
    (Level::Idle, PickFrom::Oldest),
    (Level::First, PickFrom::Oldest),
    (Level::Waited, PickFrom::Oldest),
];

/// Position in the order of a level: the due time, and a unique number.
type Position = (Instant, u64);

/// The undecided loans of this process.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Boxed, so that unused slots of the map are small.
    entries: HashMap<LoanId, Box<Entry>>,
    /// Scheduled loans, by level.
    due: [BTreeMap<Position, LoanId>; 4],
    /// Number of running tasks of the scheduler, and of those that are not urgent.
    working: usize,
    routine: usize,
    turn: usize,
    positions: u64,
}

/// One undecided loan.
#[derive(Debug)]
struct Entry {
    /// Position in the schedule; none while a step runs.
    position: Option<(Level, Position)>,
    /// State of the driver; none while a step runs.
    driver: Option<DriverState>,
    backoff: PollBackoff,
    /// The callers that wait for the outcome.
    waiters: Vec<oneshot::Sender<LoanOutcome>>,
}

impl Entry {
    fn is_waited_for(&self) -> bool {
        !self.waiters.is_empty()
    }
}

/// Poll interval of a loan, which grows with each poll.
#[derive(Clone, Copy, Debug)]
struct PollBackoff {
    polls: u32,
    wait: Duration,
    last: Instant,
    /// Bokbasen's Retry-After, or the end of `lending.settle`.
    not_before: Instant,
}

impl PollBackoff {
    fn new(now: Instant) -> PollBackoff {
        PollBackoff { polls: 0, wait: FIRST_WAIT, last: now, not_before: now }
    }

    /// Records a poll that decided nothing.
    fn record_poll(&mut self, now: Instant, not_before: Instant) {
        if self.polls > 0 {
            self.wait = (self.wait * 2).min(LONGEST_IDLE_WAIT);
        }
        self.polls = self.polls.saturating_add(1);
        self.last = now;
        self.not_before = not_before;
    }

    /// Returns when the next poll is due.
    fn next(&self, is_waited_for: bool) -> Instant {
        let longest = if is_waited_for { LONGEST_WAIT } else { LONGEST_IDLE_WAIT };
        let wait = if self.polls == 0 { Duration::ZERO } else { self.wait.min(longest) };
        (self.last + wait).max(self.not_before)
    }

    fn level(&self, is_waited_for: bool) -> Level {
        match (is_waited_for, self.polls) {
            (false, _) => Level::Idle,
            (true, 0) => Level::First,
            (true, polls) if polls < EARLY_POLLS => Level::Early,
            (true, _) => Level::Waited,
        }
    }
}

/// What to do after a step.
#[derive(Debug)]
pub(super) enum Next {
    /// The loan is decided, or this process can do nothing more.
    Done(LoanOutcome),
    /// A begin was sent. The loan is polled at once, or at the earliest at this time.
    Begun { not_before: Instant },
    /// The loan is still undecided. It is polled again, at the earliest at this time.
    PollAgain { not_before: Instant },
}

/// A running step of one loan. If it is dropped unfinished, its task died, and the loan is
/// scheduled again.
#[derive(Debug)]
pub(super) struct Work {
    circulation: Circulation,
    pub(super) loan: LoanId,
    pub(super) driver: DriverState,
    /// The level whose limit it counts towards; none for a begin.
    level: Option<Level>,
    is_finished: bool,
}

impl Work {
    /// Ends the step and schedules the next.
    pub(super) fn finish(mut self, next: Next) {
        self.is_finished = true;
        let driver = std::mem::take(&mut self.driver);
        self.circulation.inner.schedule.finish(self.loan, driver, next);
    }

    /// Removes the entry of an intent that was not written.
    pub(super) fn withdraw(mut self) {
        self.is_finished = true;
        self.circulation.inner.schedule.lock().entries.remove(&self.loan);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let schedule = &self.circulation.inner.schedule;
        if !self.is_finished {
            schedule.reschedule_after_panic(self.loan);
            if std::thread::panicking() {
                self.circulation.inner.metrics.task_restarted(Task::Driver);
                tracing::error!(
                    loan = %self.loan,
                    "the driver of a loan panicked; polling it again"
                );
            }
        }
        if let Some(level) = self.level {
            let mut state = schedule.lock();
            state.working -= 1;
            state.routine -= usize::from(!level.is_urgent());
        }
        schedule.changed.notify_one();
    }
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a loan whose intent is about to be written. Returns its first step and its first
    /// waiter.
    pub(super) fn insert(&self, circulation: &Circulation, loan: LoanId) -> (Work, ScheduleWaiter) {
        let (sender, receiver) = oneshot::channel();
        let entry = Entry {
            position: None,
            driver: None,
            backoff: PollBackoff::new(Instant::now()),
            waiters: vec![sender],
        };
        self.lock().entries.insert(loan, Box::new(entry));
        let circulation = circulation.clone();
        let waiter = ScheduleWaiter::new(circulation.clone(), loan, receiver);
        let driver = DriverState::default();
        (Work { circulation, loan, driver, level: None, is_finished: false }, waiter)
    }

    /// Schedules an undecided loan of this process, unless it is scheduled already.
    pub(super) fn add(&self, loan: LoanId) {
        let mut state = self.lock();
        if let hash_map::Entry::Vacant(vacant) = state.entries.entry(loan) {
            let (driver, backoff) =
                (Some(DriverState::default()), PollBackoff::new(Instant::now()));
            vacant.insert(Box::new(Entry { position: None, driver, backoff, waiters: Vec::new() }));
            state.reschedule(loan);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Returns whether this process drives the loan.
    pub(super) fn contains(&self, loan: LoanId) -> bool {
        self.lock().entries.contains_key(&loan)
    }

    /// Registers a waiter for a loan that this process drives. If it is the first, the loan is
    /// polled sooner.
    pub(super) fn wait(&self, circulation: &Circulation, loan: LoanId) -> Option<ScheduleWaiter> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(&loan)?;
        let (sender, receiver) = oneshot::channel();
        let is_first = !entry.is_waited_for();
        entry.waiters.push(sender);
        if is_first {
            entry.backoff.wait = entry.backoff.wait.min(LONGEST_WAIT);
            state.reschedule(loan);
        }
        drop(state);
        self.changed.notify_one();
        Some(ScheduleWaiter::new(circulation.clone(), loan, receiver))
    }

    /// Unregisters the waiters that have left. Without waiters the loan is polled less often.
    pub(super) fn waiter_left(&self, loan: LoanId) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        let was_waited_for = entry.is_waited_for();
        entry.waiters.retain(|waiter| !waiter.is_closed());
        if was_waited_for && !entry.is_waited_for() {
            entry.waiters = Vec::new(); // frees the memory
            state.reschedule(loan);
        }
    }

    /// Makes a loan due at once because its state in the ledger changed.
    pub(super) fn make_due(&self, loan: LoanId) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&loan) {
            let now = Instant::now();
            entry.backoff.last = now.checked_sub(LONGEST_IDLE_WAIT).unwrap_or(now);
            entry.backoff.not_before = now;
            state.reschedule(loan);
        }
        drop(state);
        self.changed.notify_one();
    }

    fn finish(&self, loan: LoanId, driver: DriverState, next: Next) {
        let mut state = self.lock();
        let now = Instant::now();
        let not_before = match next {
            Next::Done(outcome) => {
                // A waiter that arrives after the removal reads the outcome from the ledger.
                let waiters = state.entries.remove(&loan).map(|entry| entry.waiters);
                drop(state);
                for waiter in waiters.into_iter().flatten() {
                    // An error: the waiter has left.
                    let _ = waiter.send(outcome.clone());
                }
                return;
            }
            Next::Begun { not_before } | Next::PollAgain { not_before } => not_before,
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        entry.driver = Some(driver);
        match next {
            Next::Begun { .. } => {
                entry.backoff = PollBackoff { not_before, ..PollBackoff::new(now) }
            }
            _ => entry.backoff.record_poll(now, not_before),
        }
        state.reschedule(loan);
    }

    fn reschedule_after_panic(&self, loan: LoanId) {
        let mut state = self.lock();
        let now = Instant::now();
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        entry.driver = Some(DriverState::default());
        entry.backoff.record_poll(now, now + PANIC_RETRY_WAIT);
        state.reschedule(loan);
    }

    /// Returns the next due step that the limits allow, or when to check again. At most `limit`
    /// tasks are routine, and as many again may be urgent.
    fn pick(&self, circulation: &Circulation, limit: usize) -> Result<Work, Instant> {
        let now = Instant::now();
        if let Passage::Closed(closed) = circulation.inner.lending.passage(CallKind::Poll, false) {
            return Err(now + closed.max(FIRST_WAIT));
        }
        let mut state = self.lock();
        let Some((level, loan)) = state.take_due(now, limit) else {
            return Err(state.next_due(now).min(now + MAX_CHECK_INTERVAL));
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return Err(now) };
        entry.position = None;
        let driver = entry.driver.take().unwrap_or_default();
        state.working += 1;
        state.routine += usize::from(!level.is_urgent());
        let circulation = circulation.clone();
        Ok(Work { circulation, loan, driver, level: Some(level), is_finished: false })
    }
}

impl State {
    /// Schedules an entry by its poll interval and removes its old position. Does nothing to it
    /// while a step runs.
    fn reschedule(&mut self, loan: LoanId) {
        let Some(entry) = self.entries.get_mut(&loan) else { return };
        if let Some((level, position)) = entry.position.take() {
            order(&mut self.due, level).remove(&position);
        }
        if entry.driver.is_some() {
            let is_waited_for = entry.is_waited_for();
            let (level, at) =
                (entry.backoff.level(is_waited_for), entry.backoff.next(is_waited_for));
            self.positions = self.positions.wrapping_add(1);
            let position = (at, self.positions);
            entry.position = Some((level, position));
            order(&mut self.due, level).insert(position, loan);
        }
    }

    /// Removes and returns the due loan whose turn it is, within the limits.
    fn take_due(&mut self, now: Instant, limit: usize) -> Option<(Level, LoanId)> {
        if self.working >= limit * 2 {
            return None;
        }
        let (preferred, pick_from) = TURNS.get(self.turn % TURNS.len()).copied()?;
        let may_be_routine = self.routine < limit;
        for level in [preferred, Level::First, Level::Early, Level::Waited, Level::Idle] {
            if !level.is_urgent() && !may_be_routine {
                continue;
            }
            let order = order(&mut self.due, level);
            let mut due = order.range(..=(now, u64::MAX));
            let taken = if pick_from == PickFrom::Newest && level.is_urgent() {
                due.next_back()
            } else {
                due.next()
            };
            let Some(position) = taken.map(|(position, _)| *position) else { continue };
            self.turn = self.turn.wrapping_add(1);
            return order.remove(&position).map(|loan| (level, loan));
        }
        None
    }

    /// Returns when the next loan becomes due. Loans that are due already wait for a task to end.
    fn next_due(&self, now: Instant) -> Instant {
        let next = |due: &BTreeMap<Position, LoanId>| {
            due.range((now, u64::MAX)..).next().map(|(position, _)| position.0)
        };
        self.due.iter().filter_map(next).min().unwrap_or(now + MAX_CHECK_INTERVAL)
    }
}

fn order(
    due: &mut [BTreeMap<Position, LoanId>; 4],
    level: Level,
) -> &mut BTreeMap<Position, LoanId> {
    let [first, early, waited, idle] = due;
    match level {
        Level::First => first,
        Level::Early => early,
        Level::Waited => waited,
        Level::Idle => idle,
    }
}

/// Starts due steps, until the process stops.
pub(super) async fn run(circulation: Circulation) {
    let (schedule, limit) = (&circulation.inner.schedule, circulation.inner.settings.polls);
    loop {
        let check_at = loop {
            match schedule.pick(&circulation, limit.max(1)) {
                Ok(work) => drop(circulation.spawn(drive::advance(circulation.clone(), work))),
                Err(check_at) => break check_at,
            }
        };
        crash::point("schedule", "checked", Edge::After);
        tokio::select! {
            () = schedule.changed.notified() => {}
            () = tokio::time::sleep_until(check_at) => {}
            () = circulation.inner.stopping.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router};
    use serde_json::{Value, json};
    use url::Url;

    use super::*;
    use crate::circulation::licences::MAX_CANDIDATE_BYTES;
    use crate::circulation::wait::{OutcomeWait, Source};
    use crate::circulation::{Licences, LoanRequest, Settings};
    use crate::clock::Clock;
    use crate::ledger::{self, AuditKey, Brake, Ledger};
    use crate::lending::{self, Auth, Bokbasen};
    use crate::loan::{Borrower, LoanKey};
    use crate::process_handles::ProcessHandles;
    use crate::telemetry::Metrics;

    const ISBN: &str = "9780306406157";

    /// Bokbasen's response: one free licence with a long id, and every loan is pending.
    async fn answer(uri: http::Uri) -> Json<Value> {
        let id = "L".repeat(8 * MAX_CANDIDATE_BYTES);
        let licence = json!({ "licenseId": id, "type": "PACKAGE", "free": 1 });
        Json(match uri.path() {
            "/token" => json!({ "access_token": "t", "expires_in": 3600 }),
            "/v1/loans" => json!({ "loanId": "BL1", "status": "PENDING" }),
            _ => json!([{ "isbn": ISBN, "available": true, "licenses": [licence] }]),
        })
    }

    /// A circulation with a ledger in this directory and Bokbasen at this address. It has a licence
    /// policy, and no background tasks run.
    async fn circulation(directory: &std::path::Path, bokbasen: &Url) -> Circulation {
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let file = ledger::Settings { file: directory.join("loans.db"), brake: Brake::default() };
        let audit_key = AuditKey::new(&[2; 32]);
        let ledger =
            Ledger::open(&file, &[1; 32], audit_key, clock.clone(), metrics.clone()).await.unwrap();
        let auth = Auth::OAuth {
            token_url: bokbasen.join("token").unwrap(),
            audience: "a".to_owned(),
            client_id: "c".to_owned(),
            client_secret: "s".into(),
        };
        let timeout = Duration::from_secs(10);
        let lending = lending::Settings { url: bokbasen.clone(), auth, concurrency: 8, timeout };
        let lending = Bokbasen::new(&lending, clock.clone(), metrics.clone()).unwrap();
        let settings = Settings {
            settle: Duration::from_secs(30),
            refusal_ttl: Duration::from_secs(60),
            availability_ttl: Duration::from_secs(60),
            retention: Duration::from_secs(86_400),
            licences: Licences { order: vec!["PACKAGE".to_owned()], ..Licences::default() },
            polls: 2,
        };
        let slow = tokio::runtime::Handle::current();
        Circulation::new(settings, ledger, lending, ProcessHandles { clock, metrics, slow })
    }

    /// Adds a loan with this poll interval, with or without a waiting caller.
    fn add(state: &mut State, backoff: PollBackoff, is_waited_for: bool) -> LoanId {
        let loan = LoanId::generate();
        let waiters = is_waited_for.then(|| oneshot::channel().0).into_iter().collect();
        let entry =
            Entry { position: None, driver: Some(DriverState::default()), backoff, waiters };
        state.entries.insert(loan, Box::new(entry));
        state.reschedule(loan);
        loan
    }

    #[test]
    fn entry_takes_at_most_one_kib() {
        // The map may be less than half full after growing; a tree's nodes may be half full.
        let map = 3 * (size_of::<LoanId>() + size_of::<Box<Entry>>() + 1);
        let entry = size_of::<Entry>() + 2 * size_of::<usize>();
        let order = 2 * size_of::<(Position, LoanId)>();
        assert!(map + entry + order + MAX_CANDIDATE_BYTES <= 1024, "{map} {entry} {order}");
    }

    #[tokio::test]
    async fn entry_of_a_begun_loan_stores_no_unneeded_licence() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bokbasen = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let server =
            tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        let directory = tempfile::tempdir().unwrap();
        let circulation = circulation(directory.path(), &bokbasen).await;
        let borrower = Borrower::from_bytes([1; 16]);
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower,
            isbn: ISBN.parse().unwrap(),
        };
        let begun = circulation.begin(&LoanRequest { key, issued: None }, "reader").await;
        assert!(matches!(begun, OutcomeWait(Source::Scheduled(_))), "{begun:?}");
        // The ledger has the licence that was used, and its id may be of any length.
        let bytes = {
            let state = circulation.inner.schedule.lock();
            let entry = state.entries.values().next().expect("the loan is pending");
            entry.driver.as_ref().expect("no step is running").heap_bytes()
        };
        assert!(bytes <= MAX_CANDIDATE_BYTES, "{bytes}");
        circulation.inner.ledger.close().await;
        server.abort();
    }

    #[test]
    fn polls_back_off_further_without_a_waiting_caller() {
        let now = Instant::now();
        let mut backoff = PollBackoff::new(now);
        assert_eq!(backoff.next(true), now, "the first poll is due at once");
        let mut waits = Vec::new();
        for _ in 0..12 {
            backoff.record_poll(now, now);
            waits.push((backoff.next(true) - now, backoff.next(false) - now));
        }
        let millis = |(waited, idle): &(Duration, Duration)| (waited.as_millis(), idle.as_millis());
        assert_eq!(millis(&waits[0]), (100, 100));
        assert_eq!(millis(&waits[4]), (1600, 1600));
        assert_eq!(millis(&waits[5]), (2000, 3200));
        assert_eq!(millis(&waits[11]), (2000, 60_000));
        backoff.record_poll(now, now + Duration::from_secs(7));
        assert_eq!(
            backoff.next(true),
            now + Duration::from_secs(7),
            "Bokbasen's Retry-After counts"
        );
    }

    #[test]
    fn first_polls_pass_a_backlog_and_nothing_starves() {
        let mut state = State::default();
        let long_ago = Instant::now();
        let now = long_ago + Duration::from_secs(600);
        let old = PollBackoff { polls: 50, ..PollBackoff::new(long_ago) };
        for _ in 0..700 {
            add(&mut state, old, true);
            add(&mut state, old, false);
        }
        // A burst of loans whose first polls are late as well.
        let burst: Vec<LoanId> =
            (0..700).map(|_| add(&mut state, PollBackoff::new(long_ago), true)).collect();
        let new: Vec<LoanId> =
            (0..15).map(|_| add(&mut state, PollBackoff::new(now), true)).collect();
        let picked: Vec<LoanId> =
            (0..80).map_while(|_| state.take_due(now, 8)).map(|(_, loan)| loan).collect();
        assert_eq!(picked.len(), 80);
        let last = picked.iter().rposition(|loan| new.contains(loan)).unwrap();
        assert!(new.iter().all(|loan| picked.contains(loan)) && last < 60, "{last}");
        let from_burst = picked.iter().filter(|loan| burst.contains(loan)).count();
        let idle = picked.iter().filter(|loan| !state.entries[loan].is_waited_for()).count();
        let waited = picked.len() - idle - from_burst - new.len();
        assert!(from_burst >= 8 && idle >= 8 && waited >= 16, "{from_burst} {idle} {waited}");
    }

    #[test]
    fn routine_polls_leave_half_of_the_tasks_to_urgent_ones() {
        let mut state = State::default();
        let long_ago = Instant::now();
        let now = long_ago + Duration::from_secs(600);
        let old = add(&mut state, PollBackoff { polls: 50, ..PollBackoff::new(long_ago) }, false);
        (state.working, state.routine) = (8, 8);
        assert_eq!(state.take_due(now, 8), None, "routine polls are at their limit");
        let new = add(&mut state, PollBackoff::new(now), true);
        assert_eq!(state.take_due(now, 8), Some((Level::First, new)));
        (state.working, state.routine) = (16, 7);
        assert_eq!(state.take_due(now, 8), None, "all tasks are in use");
        state.working = 15;
        assert_eq!(state.take_due(now, 8), Some((Level::Idle, old)));
    }

    #[test]
    fn new_caller_makes_an_idle_loan_due_soon() {
        let mut state = State::default();
        let now = Instant::now();
        let backoff =
            PollBackoff { polls: 20, wait: LONGEST_IDLE_WAIT, last: now, not_before: now };
        let loan = add(&mut state, backoff, false);
        let first_due = |state: &State| {
            state.due.iter().filter_map(|due| due.keys().next()).min().map(|position| position.0)
        };
        assert_eq!(first_due(&state), Some(now + LONGEST_IDLE_WAIT));
        let schedule = Schedule { state: Mutex::new(state), changed: Notify::new() };
        let mut state = schedule.lock();
        let entry = state.entries.get_mut(&loan).unwrap();
        entry.waiters = vec![oneshot::channel().0];
        state.reschedule(loan);
        assert_eq!(first_due(&state), Some(now + LONGEST_WAIT));
        drop(state);
        schedule.waiter_left(loan);
        assert_eq!(first_due(&schedule.lock()), Some(now + LONGEST_IDLE_WAIT), "idle again");
        let capacity = schedule.lock().entries[&loan].waiters.capacity();
        assert_eq!(capacity, 0, "the caller's channel is freed");
    }
}
