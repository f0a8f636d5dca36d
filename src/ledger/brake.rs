//! The brake: limits on the loans of a library and of a borrower within an hour and a day.
//!
//! There are two kinds of limits. Limits on loans count loans that cost money, and protect a budget
//! from a stolen signing key or a looping app. Limits on attempts count every begin and protect
//! Bokbasen. They include begins that Bokbasen refused, and begins that the licence policy refused
//! after a query to Bokbasen.
//!
//! The executor checks both in the transaction of an intent, and the store counts the rows
//! themselves. So the limits hold for concurrent requests, for all processes on one ledger and
//! across restarts. This module decides from the counts.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock;
use crate::telemetry::{BrakeAction, BrakeLimit};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// How long a failed begin counts.
const FAILED_WINDOW: Duration = Duration::from_secs(120);

/// What the brake does when a limit on loans is reached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BrakeMode {
    /// The limits on loans are not checked.
    #[default]
    Off,
    /// Counts and logs a warning, and permits the loan.
    Shadow,
    /// Refuses the loan until the limit permits it.
    Enforce,
}

/// The keys of `[brake]`. A limit of 0 means no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Brake {
    /// The mode of the limits on loans.
    pub mode: BrakeMode,
    /// The maximum number of new loans of a library in an hour.
    pub library_per_hour: u32,
    /// The maximum number of new loans of a library in a day.
    pub library_per_day: u32,
    /// The maximum number of new loans of a borrower in an hour.
    pub borrower_per_hour: u32,
    /// Begins of a borrower in an hour, including refused ones. Enforced in every mode.
    pub attempts_per_borrower_per_hour: u32,
    /// Begins of a library in an hour, including refused ones. Enforced in every mode.
    pub attempts_per_library_per_hour: u32,
}

/// The loans that count towards a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Counted {
    /// Loans that cost money: neither refused nor rejected.
    Lent,
    /// Begins that Bokbasen has decided or is deciding.
    Decided,
    /// Failed begins: Bokbasen was not reached, or responded with an error.
    Failed,
}

/// A count of loans that were begun recently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Count {
    pub(super) counted: Counted,
    /// Whether only loans of the borrower count, or those of the whole library.
    pub(super) of_borrower: bool,
    /// Only loans that were begun after this time count.
    pub(super) since: Timestamp,
    /// The number of loans with which the limit is reached.
    pub(super) maximum: u32,
}

/// A limit on the number of loans within a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowLimit {
    /// Its key in `[brake]`.
    key: BrakeLimit,
    kind: LimitKind,
    action: BrakeAction,
    window: Duration,
    count: Count,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum LimitKind {
    Attempts,
    Loans,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reached {
    /// Its key in `[brake]`.
    pub(super) limit: BrakeLimit,
    /// Whether it refuses the loan.
    pub(super) action: BrakeAction,
    /// When the next loan is permitted.
    pub(super) until: Timestamp,
    kind: LimitKind,
}

impl WindowLimit {
    /// Returns the limit as reached if a loan of the count was begun at this time. It lasts until
    /// the oldest of these loans leaves the window.
    pub(super) fn reached(&self, oldest: Option<Timestamp>) -> Option<Reached> {
        let until = clock::after(oldest?, self.window);
        Some(Reached { limit: self.key, action: self.action, until, kind: self.kind })
    }

    /// Returns the loans to count.
    pub(super) fn count(&self) -> &Count {
        &self.count
    }
}

/// Returns the reached limit of each kind that lasts longest.
pub(super) fn longest(all: &[Reached]) -> impl Iterator<Item = Reached> {
    [LimitKind::Attempts, LimitKind::Loans].into_iter().filter_map(|kind| {
        let of_kind = all.iter().filter(|reached| reached.kind == kind);
        // The first of equals, as `max_by_key` would return the last.
        of_kind.rev().max_by_key(|reached| reached.until).copied()
    })
}

/// Returns when the reached limits permit the loan, if they refuse it now.
pub(super) fn refused_until(reached: &[Reached]) -> Option<Timestamp> {
    let enforced = reached.iter().filter(|reached| reached.action == BrakeAction::Enforce);
    enforced.map(|reached| reached.until).max()
}

impl Brake {
    /// Returns the limits of a library, whatever the mode: the key, the maximum, the window, and
    /// the loans that count. The limit on attempts also counts failed begins, for a shorter time.
    pub(super) fn of_library(&self) -> [(BrakeLimit, u32, Duration, Counted); 4] {
        let attempts = self.attempts_per_library_per_hour;
        [
            (BrakeLimit::LibraryPerHour, self.library_per_hour, HOUR, Counted::Lent),
            (BrakeLimit::LibraryPerDay, self.library_per_day, DAY, Counted::Lent),
            (BrakeLimit::AttemptsPerLibrary, attempts, HOUR, Counted::Decided),
            (BrakeLimit::AttemptsPerLibrary, attempts, FAILED_WINDOW, Counted::Failed),
        ]
    }

    /// Returns the limits on a loan that is begun now. Limits on attempts are enforced in every
    /// mode. Limits on loans depend on the mode.
    pub(super) fn limits(&self, now: Timestamp) -> Vec<WindowLimit> {
        let limit = |kind, action, key, maximum, window, counted, of_borrower| WindowLimit {
            key,
            kind,
            action,
            window,
            count: Count { counted, of_borrower, since: clock::before(now, window), maximum },
        };
        // A failed begin counts only for a short time, so that readers who retried during an outage
        // are served at once after it.
        let attempts = [(HOUR, Counted::Decided), (FAILED_WINDOW, Counted::Failed)];
        let mut limits = Vec::with_capacity(7);
        for (key, maximum, of_borrower) in [
            (BrakeLimit::AttemptsPerBorrower, self.attempts_per_borrower_per_hour, true),
            (BrakeLimit::AttemptsPerLibrary, self.attempts_per_library_per_hour, false),
        ] {
            limits.extend(attempts.map(|(window, counted)| {
                let (kind, action) = (LimitKind::Attempts, BrakeAction::Enforce);
                limit(kind, action, key, maximum, window, counted, of_borrower)
            }));
        }
        let action = match self.mode {
            BrakeMode::Off => None,
            BrakeMode::Shadow => Some(BrakeAction::Shadow),
            BrakeMode::Enforce => Some(BrakeAction::Enforce),
        };
        if let Some(action) = action {
            limits.extend(
                [
                    (BrakeLimit::LibraryPerHour, self.library_per_hour, HOUR, false),
                    (BrakeLimit::LibraryPerDay, self.library_per_day, DAY, false),
                    (BrakeLimit::BorrowerPerHour, self.borrower_per_hour, HOUR, true),
                ]
                .map(|(key, maximum, window, of_borrower)| {
                    let kind = LimitKind::Loans;
                    limit(kind, action, key, maximum, window, Counted::Lent, of_borrower)
                }),
            );
        }
        limits.retain(|limit| limit.count.maximum > 0);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_store::{TestStore, on_each_store};
    use super::super::test_support::{by, loan_at};
    use super::super::{Intended, Ledger};
    use super::*;
    use crate::loan::{Event, LoanId, Refusal};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn limits_follow_the_mode_and_zero_means_none() {
        let keys = |brake: Brake| -> Vec<(&str, u32)> {
            let limits = brake.limits(at(0));
            limits.iter().map(|limit| (limit.key.name(), limit.count.maximum)).collect()
        };
        let brake = Brake { library_per_day: 5, borrower_per_hour: 2, ..Brake::default() };
        assert_eq!(keys(brake), []);
        let shadow = Brake { mode: BrakeMode::Shadow, ..brake };
        assert_eq!(keys(shadow), [("library_per_day", 5), ("borrower_per_hour", 2)]);
        let attempts = Brake { attempts_per_library_per_hour: 9, ..Brake::default() };
        let key = "attempts_per_library_per_hour";
        assert_eq!(keys(attempts), [(key, 9), (key, 9)], "decided and failed begins");
    }

    #[test]
    fn only_enforced_limits_refuse_and_the_longest_wins() {
        let brake = Brake {
            mode: BrakeMode::Shadow,
            library_per_hour: 1,
            library_per_day: 1,
            attempts_per_borrower_per_hour: 1,
            ..Brake::default()
        };
        let limits = brake.limits(at(0));
        let reached: Vec<Reached> =
            limits.iter().filter_map(|limit| limit.reached(Some(at(-100)))).collect();
        let longest: Vec<Reached> = longest(&reached).collect();
        let keys: Vec<&str> = longest.iter().map(|reached| reached.limit.name()).collect();
        assert_eq!(keys, ["attempts_per_borrower_per_hour", "library_per_day"]);
        assert_eq!(refused_until(&longest), Some(at(3500)));
        assert!(limits[0].reached(None).is_none());
    }

    async fn intend(ledger: &Ledger, borrower: u8, at: i64) -> Result<LoanId, i64> {
        let loan = loan_at(borrower, Timestamp::from_second(at).unwrap());
        match ledger.intend(loan, Some(Timestamp::MAX), by("reader")).await.unwrap() {
            Intended::Written(loan) => Ok(loan.id),
            Intended::Braked(until) => Err(until.as_second()),
            other => panic!("{other:?}"),
        }
    }

    on_each_store! { failed_begins_count_two_minutes_and_refused_ones_an_hour }

    async fn failed_begins_count_two_minutes_and_refused_ones_an_hour(store: &TestStore) {
        let brake = Brake { attempts_per_borrower_per_hour: 3, ..Brake::default() };
        let ledger = store.open_with(brake).await;
        let refusal = Refusal { code: "NO".into(), message: String::new(), retry_at: None };
        let refused = Event::Refused { lending_id: None, refusal };
        for (borrower, event, counts) in [(1, Event::NotSent, 120), (2, refused, 3600)] {
            for number in 0..3 {
                let id = intend(&ledger, borrower, 1_000_000 + number).await.unwrap();
                ledger.apply(id, event.clone(), by("begin")).await.unwrap();
            }
            let room = 1_000_000 + counts;
            assert_eq!(intend(&ledger, borrower, 1_000_010).await, Err(room));
            assert_eq!(intend(&ledger, borrower, room - 1).await, Err(room));
            assert!(intend(&ledger, borrower, room).await.is_ok());
        }
        ledger.close().await;
    }
}
