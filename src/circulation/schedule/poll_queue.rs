//! The order of due polls.
//!
//! If more steps are due than can run, the levels take turns: first polls precede later polls, and
//! loans with a waiting caller precede loans without one. Early polls alternate between the newest
//! and the oldest due loan. So a backlog neither delays new readers nor starves old ones. In the
//! other levels the earliest due loan is first.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::loan::LoanId;

/// Longest time between two checks of the schedule.
pub(super) const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Number of polls that count as early.
const EARLY_POLLS: u32 = 5;

/// Urgency of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Level {
    /// The first poll of a loan that a caller waits for. It decides most loans.
    First,
    /// The next few polls of such a loan.
    Early,
    /// Later polls of such a loan.
    Waited,
    /// No caller waits.
    Idle,
}

impl Level {
    /// Returns the level of a loan that was polled this often.
    pub(super) fn of(polls: u32, is_waited_for: bool) -> Level {
        match (is_waited_for, polls) {
            (false, _) => Level::Idle,
            (true, 0) => Level::First,
            (true, polls) if polls < EARLY_POLLS => Level::Early,
            (true, _) => Level::Waited,
        }
    }

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
pub(super) type Position = (Instant, u64);

/// Loans that wait for their next poll, and the number of polls that run.
#[derive(Debug, Default)]
pub(super) struct PollQueue {
    levels: [BTreeMap<Position, LoanId>; 4],
    /// Number of running tasks of the scheduler, and of those that are not urgent.
    working: usize,
    routine: usize,
    turn: usize,
    positions: u64,
}

impl PollQueue {
    /// Adds a loan that is due at this time, and returns its position.
    pub(super) fn insert(&mut self, level: Level, at: Instant, loan: LoanId) -> Position {
        self.positions = self.positions.wrapping_add(1);
        let position = (at, self.positions);
        order(&mut self.levels, level).insert(position, loan);
        position
    }

    pub(super) fn remove(&mut self, level: Level, position: &Position) {
        order(&mut self.levels, level).remove(position);
    }

    /// Counts a task that starts for a loan of this level.
    pub(super) fn task_started(&mut self, level: Level) {
        self.working += 1;
        self.routine += usize::from(!level.is_urgent());
    }

    pub(super) fn task_ended(&mut self, level: Level) {
        self.working -= 1;
        self.routine -= usize::from(!level.is_urgent());
    }

    /// Removes and returns the due loan whose turn it is, within the limits.
    pub(super) fn take_due(&mut self, now: Instant, limit: usize) -> Option<(Level, LoanId)> {
        if self.working >= limit * 2 {
            return None;
        }
        let (preferred, pick_from) = TURNS.get(self.turn % TURNS.len()).copied()?;
        let may_be_routine = self.routine < limit;
        for level in [preferred, Level::First, Level::Early, Level::Waited, Level::Idle] {
            if !level.is_urgent() && !may_be_routine {
                continue;
            }
            let order = order(&mut self.levels, level);
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
    pub(super) fn next_due(&self, now: Instant) -> Instant {
        let next = |due: &BTreeMap<Position, LoanId>| {
            due.range((now, u64::MAX)..).next().map(|(position, _)| position.0)
        };
        self.levels.iter().filter_map(next).min().unwrap_or(now + MAX_CHECK_INTERVAL)
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

#[cfg(test)]
impl PollQueue {
    /// Sets how many tasks are running, and how many of them are not urgent.
    pub(super) fn set_running(&mut self, working: usize, routine: usize) {
        (self.working, self.routine) = (working, routine);
    }

    /// Returns when the first loan is due.
    pub(super) fn first_due(&self) -> Option<Instant> {
        self.levels.iter().filter_map(|due| due.keys().next()).min().map(|position| position.0)
    }
}
