//! The schedule of undecided loans: when each is polled next, and which callers wait for it.
//!
//! Each loan of this process that Bokbasen has not decided has one entry of at most 1 KiB. A task
//! exists only while one step runs: a begin, a poll, or a check of a search. The scheduler starts
//! due steps for a bounded number of loans at a time, so that begins get most of the call budget.
//!
//! `poll_backoff` decides when a loan is due, and `poll_queue` which due loan is next. [`Work`] is
//! a running step.

mod poll_backoff;
mod poll_queue;
#[cfg(test)]
pub(super) mod tests;
mod work;

use std::collections::{HashMap, hash_map};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::drive::{self, DriverState};
use super::wait::ScheduleWaiter;
use super::{Circulation, LoanOutcome};
use crate::crash::{self, Edge};
use crate::lending::{CallKind, Passage};
use crate::loan::LoanId;
use crate::lock::lock;
use poll_backoff::PollBackoff;
pub(super) use poll_backoff::{FIRST_WAIT, LONGEST_WAIT};
use poll_queue::{Level, MAX_CHECK_INTERVAL, PollQueue, Position};
pub(super) use work::{Next, Work};

/// Wait before a loan is polled again whose task panicked.
const PANIC_RETRY_WAIT: Duration = Duration::from_millis(500);

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
    queue: PollQueue,
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

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
        (Work::new(circulation, loan, driver, None), waiter)
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
            entry.backoff.shorten_wait();
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
            entry.backoff.make_due(Instant::now());
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
            Next::Released => {
                state.entries.remove(&loan);
                return;
            }
            Next::Begun { not_before } | Next::PollAgain { not_before } => not_before,
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return };
        entry.driver = Some(driver);
        match next {
            Next::Begun { .. } => entry.backoff = PollBackoff::from(now, not_before),
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
        let Some((level, loan)) = state.queue.take_due(now, limit) else {
            return Err(state.queue.next_due(now).min(now + MAX_CHECK_INTERVAL));
        };
        let Some(entry) = state.entries.get_mut(&loan) else { return Err(now) };
        entry.position = None;
        let driver = entry.driver.take().unwrap_or_default();
        state.queue.task_started(level);
        Ok(Work::new(circulation.clone(), loan, driver, Some(level)))
    }

    /// Removes the entry of an intent that was not written.
    fn remove(&self, loan: LoanId) {
        self.lock().entries.remove(&loan);
    }

    /// Makes room for the next task of the scheduler, now that one has ended; none for a begin.
    fn task_ended(&self, level: Option<Level>) {
        if let Some(level) = level {
            self.lock().queue.task_ended(level);
        }
        self.changed.notify_one();
    }
}

impl State {
    /// Schedules an entry by its poll interval and removes its old position. While a step runs, the
    /// entry has no position.
    fn reschedule(&mut self, loan: LoanId) {
        let Some(entry) = self.entries.get_mut(&loan) else { return };
        if let Some((level, position)) = entry.position.take() {
            self.queue.remove(level, &position);
        }
        if entry.driver.is_some() {
            let is_waited_for = entry.is_waited_for();
            let level = Level::of(entry.backoff.polls(), is_waited_for);
            let position = self.queue.insert(level, entry.backoff.next(is_waited_for), loan);
            entry.position = Some((level, position));
        }
    }
}

/// Starts due steps, until the process stops.
pub(super) async fn run(circulation: Circulation) {
    let schedule = &circulation.inner.schedule;
    loop {
        let check_at = loop {
            match schedule.pick(&circulation, circulation.max_polls()) {
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
