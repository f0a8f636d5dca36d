//! The brake: limits on the loans of a library and of a borrower within an hour and a day.
//!
//! There are two kinds of limits. Limits on loans count loans that cost money, and protect a budget
//! from a stolen signing key or a looping app. Limits on attempts count every begin and protect
//! Bokbasen. They include begins that Bokbasen refused, and begins that the licence policy refused
//! after a query to Bokbasen.
//!
//! The writing task checks both in the transaction of an intent, and counts the rows themselves by
//! an index. So the limits hold for concurrent requests, for all processes on one ledger and across
//! restarts.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::SqliteConnection;

use crate::clock;
use crate::loan::LoanKey;
use crate::telemetry::{BrakeAction, BrakeLimit, Metrics};

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

/// A limit that is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reached {
    /// Its key in `[brake]`.
    pub(super) limit: BrakeLimit,
    /// When the next loan is permitted.
    pub(super) until: Timestamp,
}

/// A limit on the number of loans within a window.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// Its key in `[brake]`.
    key: BrakeLimit,
    /// The maximum number of loans in the window; 0 means no limit.
    maximum: u32,
    window: Duration,
    /// Selects the begun time of the loan with which the limit is reached, if it is.
    query: &'static str,
    of_borrower: bool,
}

macro_rules! of_library {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_of_library ",
            "WHERE library = ? AND begun > ? AND ",
            $counted,
            " ORDER BY begun DESC LIMIT 1 OFFSET ?"
        )
    };
}

macro_rules! of_borrower {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_begun_by ",
            "WHERE library = ? AND borrower = ? AND begun > ? AND ",
            $counted,
            " ORDER BY begun DESC LIMIT 1 OFFSET ?"
        )
    };
}

/// Loans that cost money: neither refused nor rejected.
const LOANS_OF_LIBRARY: &str =
    of_library!("state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected')");
const LOANS_OF_BORROWER: &str =
    of_borrower!("state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected')");
/// Begins that Bokbasen has decided or is deciding.
const DECIDED_OF_LIBRARY: &str = of_library!("(end_reason IS NULL OR end_reason <> 'rejected')");
const DECIDED_OF_BORROWER: &str = of_borrower!("(end_reason IS NULL OR end_reason <> 'rejected')");
/// Failed begins: Bokbasen was not reached, or responded with an error.
const FAILED_OF_LIBRARY: &str = of_library!("end_reason = 'rejected'");
const FAILED_OF_BORROWER: &str = of_borrower!("end_reason = 'rejected'");

impl Brake {
    /// Returns when this loan may be begun, if not now. Limits on attempts are enforced in every
    /// mode. Limits on loans depend on the mode.
    pub(super) async fn refused_until(
        &self,
        connection: &mut SqliteConnection,
        key: &LoanKey,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<Option<Timestamp>, sqlx::Error> {
        let mut until = None;
        for (mode, limits) in
            [(BrakeMode::Enforce, &self.attempts()[..]), (self.mode, &self.loans()[..])]
        {
            let Some(reached) = reached(limits, connection, key, now).await? else { continue };
            let is_enforced = mode == BrakeMode::Enforce;
            let action = if is_enforced { BrakeAction::Enforce } else { BrakeAction::Shadow };
            metrics.brake(reached.limit, action);
            let (limit, mode) = (reached.limit.name(), action.name());
            tracing::warn!(library = %key.library, limit, mode, "brake limit reached");
            if is_enforced {
                until = until.max(Some(reached.until));
            }
        }
        Ok(until)
    }

    /// Returns whether no limit is configured.
    pub(super) fn has_no_limits(&self) -> bool {
        let limits = [self.attempts_per_borrower_per_hour, self.attempts_per_library_per_hour];
        self.mode == BrakeMode::Off && limits == [0, 0]
    }

    /// Returns the limits on attempts. A failed begin counts only for a short time, so that readers
    /// who retried during an outage are served at once after it.
    fn attempts(&self) -> [Limit; 4] {
        let (borrower, library) =
            (self.attempts_per_borrower_per_hour, self.attempts_per_library_per_hour);
        let (of_borrower, of_library) =
            (BrakeLimit::AttemptsPerBorrower, BrakeLimit::AttemptsPerLibrary);
        let limit = |key, maximum, window, query, of_borrower| Limit {
            key,
            maximum,
            window,
            query,
            of_borrower,
        };
        [
            limit(of_borrower, borrower, HOUR, DECIDED_OF_BORROWER, true),
            limit(of_borrower, borrower, FAILED_WINDOW, FAILED_OF_BORROWER, true),
            limit(of_library, library, HOUR, DECIDED_OF_LIBRARY, false),
            limit(of_library, library, FAILED_WINDOW, FAILED_OF_LIBRARY, false),
        ]
    }

    fn loans(&self) -> [Limit; 3] {
        let on = if self.mode == BrakeMode::Off { 0 } else { 1 };
        let limit = |key, maximum: u32, window, query, of_borrower| Limit {
            key,
            maximum: maximum * on,
            window,
            query,
            of_borrower,
        };
        [
            limit(BrakeLimit::LibraryPerHour, self.library_per_hour, HOUR, LOANS_OF_LIBRARY, false),
            limit(BrakeLimit::LibraryPerDay, self.library_per_day, DAY, LOANS_OF_LIBRARY, false),
            limit(
                BrakeLimit::BorrowerPerHour,
                self.borrower_per_hour,
                HOUR,
                LOANS_OF_BORROWER,
                true,
            ),
        ]
    }
}

/// Returns the reached limit that lasts longest.
async fn reached(
    limits: &[Limit],
    connection: &mut SqliteConnection,
    key: &LoanKey,
    now: Timestamp,
) -> Result<Option<Reached>, sqlx::Error> {
    let mut last: Option<Reached> = None;
    for limit in limits {
        // If the limit is reached, it lasts until the oldest of these loans leaves the window.
        let Some(before) = limit.maximum.checked_sub(1) else { continue };
        let since = clock::before(now, limit.window).as_millisecond();
        let query = sqlx::query_scalar(limit.query).bind(key.library.as_str());
        let query =
            if limit.of_borrower { query.bind(key.borrower.as_bytes().as_slice()) } else { query };
        let query = query.bind(since).bind(i64::from(before));
        let oldest: Option<i64> = query.fetch_optional(&mut *connection).await?;
        let oldest = oldest.and_then(|millis| Timestamp::from_millisecond(millis).ok());
        let reached = oldest
            .map(|oldest| Reached { limit: limit.key, until: clock::after(oldest, limit.window) });
        if reached.is_some_and(|reached| last.is_none_or(|last| last.until < reached.until)) {
            last = reached;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{KEY, audit_key, by, loan_at};
    use super::super::{Intended, Ledger, Settings};
    use super::*;
    use crate::clock::Clock;
    use crate::loan::{Event, LoanId, Refusal};

    async fn open(file: std::path::PathBuf, brake: Brake) -> Ledger {
        let settings = Settings { file, brake };
        Ledger::open(&settings, &KEY, audit_key(), Clock::system(), Metrics::new().unwrap())
            .await
            .unwrap()
    }

    async fn intend(ledger: &Ledger, borrower: u8, at: i64) -> Result<LoanId, i64> {
        let loan = loan_at(borrower, Timestamp::from_second(at).unwrap());
        match ledger.intend(loan, Some(Timestamp::MAX), by("reader")).await.unwrap() {
            Intended::Written(loan) => Ok(loan.id),
            Intended::Braked(until) => Err(until.as_second()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn failed_begins_count_two_minutes_and_refused_ones_an_hour() {
        let directory = tempfile::tempdir().unwrap();
        let brake = Brake { attempts_per_borrower_per_hour: 3, ..Brake::default() };
        let ledger = open(directory.path().join("loans.db"), brake).await;
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
