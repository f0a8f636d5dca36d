//! When each undecided loan is worked on next, and who waits for it.
//!
//! A loan of this process whose state at Bokbasen is open has one entry here, of at most 1 KiB. A
//! task exists only while work on it is under way: one begin, one poll, one check of a search. The
//! scheduler starts that work when it falls due, for a bounded number of loans at a time, so that
//! polls leave most of the call budget to begins.
//!
//! Where more is due than can be sent, the levels take turns: first polls before later ones, loans
//! with a waiting caller before those without. Early polls alternate between the newest and the
//! oldest loan that is due, so that a backlog makes neither new readers wait nor old ones starve.
//! In the other levels the earliest goes first.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::drive::{self, Going};
use super::wait::Waiting;
use super::{Circulation, Outcome};
use crate::crash::{self, Edge};
use crate::lending::{CallKind, Passage};
use crate::loan::LoanId;

/// The first wait between two polls, and the longest that it doubles up to with and without a
/// waiting caller. Bokbasen decides most loans within a second or two.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_IDLE_WAIT: Duration = Duration::from_secs(60);
/// How long after the death of its driver a loan is taken up again.
const AFTER_DEATH: Duration = Duration::from_millis(500);
/// How many polls count as early.
const EARLY_POLLS: u32 = 5;
/// How often the scheduler checks at least.
const CHECK_AGAIN: Duration = Duration::from_secs(5);

/// How urgent work is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    /// The first poll of a loan that a caller waits for: it decides most loans.
    First = 0,
    /// The next few.
    Early = 1,
    /// A caller waits.
    Waited = 2,
    /// Nobody waits.
    Idle = 3,
}

impl Level {
    /// Whether a loan that is likely to be decided now is polled: such a poll completes a begin.
    fn is_urgent(self) -> bool {
        matches!(self, Level::First | Level::Early)
    }
}

/// Which of the loans of a level that are due is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Newest,
    Oldest,
}

/// The turns of the levels, where work of several is due.
const TURNS: [(Level, End); 8] = [
    (Level::First, End::Newest),
    (Level::Early, End::Newest),
    (Level::Waited, End::Oldest),
    (Level::First, End::Newest),
    (Level::Early, End::Oldest),
    (Level::Idle, End::Oldest),
    (Level::First, End::Oldest),
    (Level::Waited, End::Oldest),
];

/// A place in the order of a level: when it is due, and a number that no other place has.
type Place = (Instant, u64);

/// The undecided loans of this process.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Boxed, so that the spare places of the map cost little.
    entries: HashMap<LoanId, Box<Entry>>,
    /// What is scheduled, by level.
    due: [BTreeMap<Place, LoanId>; 4],
    /// How many of the scheduler's tasks are under way, and how many of those are not urgent.
    working: usize,
    routine: usize,
    turn: usize,
    places: u64,
}

/// One undecided loan.
#[derive(Debug)]
struct Entry {
    /// Where it is scheduled; none while work is under way.
    place: Option<(Level, Place)>,
    /// What its driver knows; taken out while work is under way.
    going: Option<Going>,
    pace: Pace,
    /// Exists only while somebody waits.
    waiters: Option<watch::Sender<Option<Outcome>>>,
}

/// How often a loan is polled.
#[derive(Clone, Copy, Debug)]
struct Pace {
    polls: u32,
    wait: Duration,
    last: Instant,
    /// Bokbasen's Retry-After, or the end of `lending.settle`.
    not_before: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { polls: 0, wait: FIRST_WAIT, last: now, not_before: now }
    }

    /// Notes a poll that decided nothing.
    fn polled(&mut self, now: Instant, not_before: Instant) {
        if self.polls > 0 {
            self.wait = (self.wait * 2).min(LONGEST_IDLE_WAIT);
        }
        self.polls = self.polls.saturating_add(1);
        self.last = now;
        self.not_before = not_before;
    }

    /// When the next poll is due.
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

/// What follows on a piece of work.
#[derive(Debug)]
pub(super) enum Next {
    /// The loan is decided, or nothing more can be done about it here.
    Over(Outcome),
    /// A begin has been sent: the loan is polled at once, or not before this moment.
    Begun { not_before: Instant },
    /// Nothing is decided: it is polled again, and not before this moment.
    Again { not_before: Instant },
}

/// Work on one loan that is under way. Where it is dropped unfinished, its task died, and the loan
/// is taken up again.
#[derive(Debug)]
pub(super) struct Work {
    circulation: Circulation,
    pub(super) loan: LoanId,
    pub(super) going: Going,
    /// Whose share of the calls it takes; none for a begin.
    level: Option<Level>,
    is_finished: bool,
}

impl Work {
    /// Ends the work.
    pub(super) fn finish(mut self, next: Next) {
        self.is_finished = true;
        let going = std::mem::take(&mut self.going);
        self.circulation.inner.schedule.finish(self.loan, going, next);
    }

    /// Ends the work of an intent that was not written.
    pub(super) fn withdraw(mut self) {
        self.is_finished = true;
        self.circulation.inner.schedule.lock().entries.remove(&self.loan);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let schedule = &self.circulation.inner.schedule;
        if !self.is_finished {
            schedule.take_up_after_death(self.loan);
            if std::thread::panicking() {
                self.circulation.inner.metrics.task_restarted("driver");
                tracing::error!(loan = %self.loan, "the driver of a loan panicked; the loan is taken up again");
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

    /// Enters a loan whose intent is about to be written, with its first work and its first waiter.
    pub(super) fn enter(&self, circulation: &Circulation, loan: LoanId) -> (Work, Waiting) {
        let (sender, receiver) = watch::channel(None);
        let entry = Entry {
            place: None,
            going: None,
            pace: Pace::new(Instant::now()),
            waiters: Some(sender),
        };
        self.lock().entries.insert(loan, Box::new(entry));
        let circulation = circulation.clone();
        let waiting = Waiting::new(circulation.clone(), loan, receiver);
        let going = Going::default();
        (Work { circulation, loan, going, level: None, is_finished: false }, waiting)
    }

    /// Takes up a loan of this process that is half-way, unless it is driven already.
    pub(super) fn take_up(&self, loan: LoanId) {
        let mut state = self.lock();
        if let hash_map::Entry::Vacant(vacant) = state.entries.entry(loan) {
            let (going, pace) = (Some(Going::default()), Pace::new(Instant::now()));
            vacant.insert(Box::new(Entry { place: None, going, pace, waiters: None }));
            state.place(loan);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether the loan is driven here.
    pub(super) fn has(&self, loan: LoanId) -> bool {
        self.lock().entries.contains_key(&loan)
    }

    /// Waits for a loan that is driven here; a loan that nobody waited for is polled sooner from
    /// now on.
    pub(super) fn wait(&self, circulation: &Circulation, loan: LoanId) -> Option<Waiting> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(&loan)?;
        let receiver = match &entry.waiters {
            Some(sender) => sender.subscribe(),
            None => {
                let (sender, receiver) = watch::channel(None);
                entry.waiters = Some(sender);
                entry.pace.wait = entry.pace.wait.min(LONGEST_WAIT);
                state.place(loan);
                receiver
            }
        };
        drop(state);
        self.changed.notify_one();
        Some(Waiting::new(circulation.clone(), loan, receiver))
    }

    /// A waiter has left: without any, the loan is polled less often, and nothing of theirs stays.
    pub(super) fn left(&self, loan: LoanId) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        if entry.waiters.as_ref().is_some_and(|sender| sender.receiver_count() == 0) {
            entry.waiters = None;
            state.place(loan);
        }
    }

    /// Makes a loan due at once, whose state here has changed.
    pub(super) fn hurry(&self, loan: LoanId) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&loan) {
            let now = Instant::now();
            entry.pace.last = now.checked_sub(LONGEST_IDLE_WAIT).unwrap_or(now);
            entry.pace.not_before = now;
            state.place(loan);
        }
        drop(state);
        self.changed.notify_one();
    }

    fn finish(&self, loan: LoanId, going: Going, next: Next) {
        let mut state = self.lock();
        let now = Instant::now();
        let not_before = match next {
            Next::Over(outcome) => {
                // The outcome precedes the removal: whoever looks in between still finds it.
                if let Some(waiters) =
                    state.entries.get(&loan).and_then(|entry| entry.waiters.as_ref())
                {
                    waiters.send_replace(Some(outcome));
                }
                state.entries.remove(&loan);
                return;
            }
            Next::Begun { not_before } | Next::Again { not_before } => not_before,
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        entry.going = Some(going);
        match next {
            Next::Begun { .. } => entry.pace = Pace { not_before, ..Pace::new(now) },
            _ => entry.pace.polled(now, not_before),
        }
        state.place(loan);
    }

    fn take_up_after_death(&self, loan: LoanId) {
        let mut state = self.lock();
        let now = Instant::now();
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        entry.going = Some(Going::default());
        entry.pace.polled(now, now + AFTER_DEATH);
        state.place(loan);
    }

    /// The next work that is due and allowed, or when to check again. At most `limit` tasks are
    /// routine; as many again may be urgent.
    fn pick(&self, circulation: &Circulation, limit: usize) -> Result<Work, Instant> {
        let now = Instant::now();
        if let Passage::Closed(closed) = circulation.inner.lending.passage(CallKind::Poll, false) {
            return Err(now + closed.max(FIRST_WAIT));
        }
        let mut state = self.lock();
        let Some((level, loan)) = state.take_due(now, limit) else {
            return Err(state.next_due(now).min(now + CHECK_AGAIN));
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return Err(now) };
        entry.place = None;
        let going = entry.going.take().unwrap_or_default();
        state.working += 1;
        state.routine += usize::from(!level.is_urgent());
        let circulation = circulation.clone();
        Ok(Work { circulation, loan, going, level: Some(level), is_finished: false })
    }
}

impl State {
    /// Schedules an entry by its pace, in place of where it was; not while work on it is under way.
    fn place(&mut self, loan: LoanId) {
        let Some(entry) = self.entries.get_mut(&loan) else { return };
        if let Some((level, place)) = entry.place.take() {
            order(&mut self.due, level).remove(&place);
        }
        if entry.going.is_some() {
            let is_waited_for = entry.waiters.is_some();
            let (level, at) = (entry.pace.level(is_waited_for), entry.pace.next(is_waited_for));
            self.places = self.places.wrapping_add(1);
            let place = (at, self.places);
            entry.place = Some((level, place));
            order(&mut self.due, level).insert(place, loan);
        }
    }

    /// Takes out the loan whose turn it is among those that are due and allowed.
    fn take_due(&mut self, now: Instant, limit: usize) -> Option<(Level, LoanId)> {
        if self.working >= limit * 2 {
            return None;
        }
        let (preferred, end) = TURNS.get(self.turn % TURNS.len()).copied()?;
        let may_be_routine = self.routine < limit;
        for level in [preferred, Level::First, Level::Early, Level::Waited, Level::Idle] {
            if !level.is_urgent() && !may_be_routine {
                continue;
            }
            let order = order(&mut self.due, level);
            let mut due = order.range(..=(now, u64::MAX));
            let taken =
                if end == End::Newest && level.is_urgent() { due.next_back() } else { due.next() };
            let Some(place) = taken.map(|(place, _)| *place) else { continue };
            self.turn = self.turn.wrapping_add(1);
            return order.remove(&place).map(|loan| (level, loan));
        }
        None
    }

    /// When the next loan falls due that is not due already: what is due waits for a task to end.
    fn next_due(&self, now: Instant) -> Instant {
        let next = |due: &BTreeMap<Place, LoanId>| {
            due.range((now, u64::MAX)..).next().map(|(place, _)| place.0)
        };
        self.due.iter().filter_map(next).min().unwrap_or(now + CHECK_AGAIN)
    }
}

fn order(due: &mut [BTreeMap<Place, LoanId>; 4], level: Level) -> &mut BTreeMap<Place, LoanId> {
    let [first, early, waited, idle] = due;
    match level {
        Level::First => first,
        Level::Early => early,
        Level::Waited => waited,
        Level::Idle => idle,
    }
}

/// Starts work when it falls due, until the process stops.
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
    use crate::circulation::licences::MAX_TRIES_BYTES;
    use crate::circulation::{Asker, Begun, Licences, Settings};
    use crate::clock::Clock;
    use crate::ledger::{self, AuditKey, Brake, Ledger};
    use crate::lending::{self, Auth, Bokbasen};
    use crate::loan::{Borrower, LoanKey};
    use crate::telemetry::Metrics;

    const ISBN: &str = "9780306406157";

    /// Bokbasen's answer to a call: a licence with a long id is free, and every loan is pending.
    async fn answer(uri: http::Uri) -> Json<Value> {
        let licence =
            json!({ "licenseId": "L".repeat(8 * MAX_TRIES_BYTES), "type": "PACKAGE", "free": 1 });
        Json(match uri.path() {
            "/token" => json!({ "access_token": "t", "expires_in": 3600 }),
            "/v1/loans" => json!({ "loanId": "BL1", "status": "PENDING" }),
            _ => json!([{ "isbn": ISBN, "available": true, "licenses": [licence] }]),
        })
    }

    /// A circulation over a ledger in this directory, with Bokbasen at this address. It has a
    /// policy of licences, and its background tasks do not run.
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
        Circulation::new(
            settings,
            ledger,
            lending,
            clock,
            metrics,
            tokio::runtime::Handle::current(),
        )
    }

    /// A state with one loan of this pace, which a caller waits for or nobody.
    fn add(state: &mut State, pace: Pace, is_waited_for: bool) -> LoanId {
        let loan = LoanId::fresh();
        let waiters = is_waited_for.then(|| watch::channel(None).0);
        let entry = Entry { place: None, going: Some(Going::default()), pace, waiters };
        state.entries.insert(loan, Box::new(entry));
        state.place(loan);
        loan
    }

    #[test]
    fn an_entry_takes_at_most_one_kib() {
        // The map may be less than half full after it has grown; a tree's nodes may be half full.
        let map = 3 * (size_of::<LoanId>() + size_of::<Box<Entry>>() + 1);
        let entry = size_of::<Entry>() + 2 * size_of::<usize>();
        let order = 2 * size_of::<(Place, LoanId)>();
        assert!(map + entry + order + MAX_TRIES_BYTES <= 1024, "{map} {entry} {order}");
    }

    #[tokio::test]
    async fn entry_of_a_begun_loan_keeps_no_licence_without_need() {
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
        let begun = circulation.begin(&Asker { key, issued: None }, "reader").await;
        assert!(matches!(begun, Begun::Sent(_)), "{begun:?}");
        // A licence that was begun under is in the ledger, and its id may be of any length.
        let bytes = {
            let state = circulation.inner.schedule.lock();
            let entry = state.entries.values().next().expect("the loan is pending");
            entry.going.as_ref().expect("no work is under way").heap_bytes()
        };
        assert!(bytes <= MAX_TRIES_BYTES, "{bytes}");
        circulation.inner.ledger.close().await;
        server.abort();
    }

    #[test]
    fn polls_back_off_further_while_nobody_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.next(true), now, "the first poll follows at once");
        let mut waits = Vec::new();
        for _ in 0..12 {
            pace.polled(now, now);
            waits.push((pace.next(true) - now, pace.next(false) - now));
        }
        let millis = |(waited, idle): &(Duration, Duration)| (waited.as_millis(), idle.as_millis());
        assert_eq!(millis(&waits[0]), (100, 100));
        assert_eq!(millis(&waits[4]), (1600, 1600));
        assert_eq!(millis(&waits[5]), (2000, 3200));
        assert_eq!(millis(&waits[11]), (2000, 60_000));
        pace.polled(now, now + Duration::from_secs(7));
        assert_eq!(pace.next(true), now + Duration::from_secs(7), "as Bokbasen says");
    }

    #[test]
    fn first_polls_pass_a_backlog_and_nothing_starves() {
        let mut state = State::default();
        let long_ago = Instant::now();
        let now = long_ago + Duration::from_secs(600);
        let old = Pace { polls: 50, ..Pace::new(long_ago) };
        for _ in 0..700 {
            add(&mut state, old, true);
            add(&mut state, old, false);
        }
        // A burst whose first polls are late as well.
        let burst: Vec<LoanId> =
            (0..700).map(|_| add(&mut state, Pace::new(long_ago), true)).collect();
        let new: Vec<LoanId> = (0..15).map(|_| add(&mut state, Pace::new(now), true)).collect();
        let picked: Vec<LoanId> =
            (0..80).map_while(|_| state.take_due(now, 8)).map(|(_, loan)| loan).collect();
        assert_eq!(picked.len(), 80);
        let last = picked.iter().rposition(|loan| new.contains(loan)).unwrap();
        assert!(new.iter().all(|loan| picked.contains(loan)) && last < 60, "{last}");
        let of_the_burst = picked.iter().filter(|loan| burst.contains(loan)).count();
        let idle = picked.iter().filter(|loan| state.entries[loan].waiters.is_none()).count();
        let waited = picked.len() - idle - of_the_burst - new.len();
        assert!(of_the_burst >= 8 && idle >= 8 && waited >= 16, "{of_the_burst} {idle} {waited}");
    }

    #[test]
    fn routine_polls_leave_half_of_the_tasks_to_urgent_ones() {
        let mut state = State::default();
        let long_ago = Instant::now();
        let now = long_ago + Duration::from_secs(600);
        let old = add(&mut state, Pace { polls: 50, ..Pace::new(long_ago) }, false);
        (state.working, state.routine) = (8, 8);
        assert_eq!(state.take_due(now, 8), None, "the share of routine polls is used up");
        let new = add(&mut state, Pace::new(now), true);
        assert_eq!(state.take_due(now, 8), Some((Level::First, new)));
        (state.working, state.routine) = (16, 7);
        assert_eq!(state.take_due(now, 8), None, "and so are all");
        state.working = 15;
        assert_eq!(state.take_due(now, 8), Some((Level::Idle, old)));
    }

    #[test]
    fn a_caller_who_arrives_makes_an_idle_loan_due_soon() {
        let mut state = State::default();
        let now = Instant::now();
        let pace = Pace { polls: 20, wait: LONGEST_IDLE_WAIT, last: now, not_before: now };
        let loan = add(&mut state, pace, false);
        let soon = |state: &State| {
            state.due.iter().filter_map(|due| due.keys().next()).min().map(|place| place.0)
        };
        assert_eq!(soon(&state), Some(now + LONGEST_IDLE_WAIT));
        let schedule = Schedule { state: Mutex::new(state), changed: Notify::new() };
        let mut state = schedule.lock();
        let entry = state.entries.get_mut(&loan).unwrap();
        entry.waiters = Some(watch::channel(None).0);
        state.place(loan);
        assert_eq!(soon(&state), Some(now + LONGEST_WAIT));
        drop(state);
        schedule.left(loan);
        assert_eq!(soon(&schedule.lock()), Some(now + LONGEST_IDLE_WAIT), "and idle again");
        assert!(schedule.lock().entries[&loan].waiters.is_none(), "nothing of the caller stays");
    }
}
