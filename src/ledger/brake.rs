//! The brake: how many loans a library, and one of its borrowers, may begin in an hour and a day.
//!
//! There are two kinds of limits. Those on loans protect a budget from a stolen signing key or a
//! looping app, and count loans that cost something. Those on attempts protect Bokbasen, and count
//! every begin, whatever became of it: refused by Bokbasen, or here by the licence policy, which
//! has to query Bokbasen for each title first.
//!
//! The writing task checks both inside the transaction of an intent, so that they hold under any
//! concurrency, over all processes of a ledger and across restarts: what is counted are the loans
//! themselves, by an index.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::SqliteConnection;

use crate::clock;
use crate::loan::LoanKey;
use crate::telemetry::Metrics;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// How long a begin counts that came to nothing.
const FAILED_COUNTS: Duration = Duration::from_secs(120);

/// What the brake does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BrakeMode {
    /// Nothing.
    #[default]
    Off,
    /// Counts and warns, and lets loans be begun.
    Shadow,
    /// Refuses.
    Enforce,
}

impl BrakeMode {
    fn name(self) -> &'static str {
        match self {
            BrakeMode::Off => "off",
            BrakeMode::Shadow => "shadow",
            BrakeMode::Enforce => "enforce",
        }
    }
}

/// The keys of `[brake]`. A limit of 0 is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Brake {
    /// What it does.
    pub mode: BrakeMode,
    /// New loans of a library in an hour.
    pub library_per_hour: u32,
    /// New loans of a library in a day.
    pub library_per_day: u32,
    /// New loans of a borrower in an hour.
    pub borrower_per_hour: u32,
    /// Begins of a borrower in an hour, refused ones included; in force in every mode.
    pub attempts_per_borrower_per_hour: u32,
    /// Begins of a library in an hour, refused ones included; in force in every mode.
    pub attempts_per_library_per_hour: u32,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reached {
    /// Its key in `[brake]`.
    pub(super) limit: &'static str,
    /// When there is room again.
    pub(super) until: Timestamp,
}

/// A limit on the loans within a time.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// Its key in `[brake]`.
    key: &'static str,
    /// How many; 0 is no limit.
    most: u32,
    window: Duration,
    /// Selects the loans that count, by the begun time of the one that makes the limit full.
    query: &'static str,
    of_borrower: bool,
}

macro_rules! of_library {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_of_library WHERE library = ? AND begun > ? AND ",
            $counted,
            " ORDER BY begun DESC LIMIT 1 OFFSET ?"
        )
    };
}

macro_rules! of_borrower {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_begun_by WHERE library = ? AND borrower = ? AND begun > ? AND ",
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
/// Begins that Bokbasen decided, or has still to decide.
const DECIDED_OF_LIBRARY: &str = of_library!("(end_reason IS NULL OR end_reason <> 'rejected')");
const DECIDED_OF_BORROWER: &str = of_borrower!("(end_reason IS NULL OR end_reason <> 'rejected')");
/// Begins that came to nothing: Bokbasen was not reached, or answered with an error.
const FAILED_OF_LIBRARY: &str = of_library!("end_reason = 'rejected'");
const FAILED_OF_BORROWER: &str = of_borrower!("end_reason = 'rejected'");

impl Brake {
    /// When this loan may be begun, if not now. The limits on attempts hold in every mode; of the
    /// others, shadow counts and warns, and never refuses.
    pub(super) async fn holds(
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
            metrics.brake(reached.limit, mode.name());
            tracing::warn!(library = %key.library, limit = reached.limit, mode = mode.name(), "brake limit reached");
            if mode == BrakeMode::Enforce {
                until = until.max(Some(reached.until));
            }
        }
        Ok(until)
    }

    /// Whether nothing is limited.
    pub(super) fn is_idle(&self) -> bool {
        let limits = [self.attempts_per_borrower_per_hour, self.attempts_per_library_per_hour];
        self.mode == BrakeMode::Off && limits == [0, 0]
    }

    /// A begin that failed counts for a short time only: after an outage, the readers who tried
    /// through it must be served at once.
    fn attempts(&self) -> [Limit; 4] {
        let (borrower, library) =
            (self.attempts_per_borrower_per_hour, self.attempts_per_library_per_hour);
        let (of_borrower, of_library) =
            ("attempts_per_borrower_per_hour", "attempts_per_library_per_hour");
        let limit =
            |key, most, window, query, of_borrower| Limit { key, most, window, query, of_borrower };
        [
            limit(of_borrower, borrower, HOUR, DECIDED_OF_BORROWER, true),
            limit(of_borrower, borrower, FAILED_COUNTS, FAILED_OF_BORROWER, true),
            limit(of_library, library, HOUR, DECIDED_OF_LIBRARY, false),
            limit(of_library, library, FAILED_COUNTS, FAILED_OF_LIBRARY, false),
        ]
    }

    fn loans(&self) -> [Limit; 3] {
        let on = if self.mode == BrakeMode::Off { 0 } else { 1 };
        let limit = |key, most: u32, window, query, of_borrower| Limit {
            key,
            most: most * on,
            window,
            query,
            of_borrower,
        };
        [
            limit("library_per_hour", self.library_per_hour, HOUR, LOANS_OF_LIBRARY, false),
            limit("library_per_day", self.library_per_day, DAY, LOANS_OF_LIBRARY, false),
            limit("borrower_per_hour", self.borrower_per_hour, HOUR, LOANS_OF_BORROWER, true),
        ]
    }
}

/// The limit that has room again last, of those that are reached.
async fn reached(
    limits: &[Limit],
    connection: &mut SqliteConnection,
    key: &LoanKey,
    now: Timestamp,
) -> Result<Option<Reached>, sqlx::Error> {
    let mut last: Option<Reached> = None;
    for limit in limits {
        // Where that many were begun within the window, the oldest of them says when there is room
        // again.
        let Some(before) = limit.most.checked_sub(1) else { continue };
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
