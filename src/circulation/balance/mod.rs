//! Balance: compares the ledger with Bokbasen's listing, each night and on demand.
//!
//! The nightly task and the admin listener call this module. `compare` reads one library's listing
//! and reports differences; `extras` ends loans there, and `repair` decides which loans end here.
//! `requested` then examines the loans that a person asked for.
//!
//! Any response of Bokbasen may be wrong, so one response never ends a loan. A listed end must be
//! confirmed by id. An absence must be confirmed by id and found again by a later run. One night
//! ends at most a small share of a library's loans. All other differences are only reported.

mod compare;
mod confirm;
mod extras;
mod findings;
mod repair;
mod report;
mod requested;
mod rows;
mod running;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{CLOCK_CHECK_INTERVAL, Circulation};
use crate::clock;
use crate::ledger::LedgerError;
use crate::lending::CallError;
use crate::loan::LibraryId;
use crate::lock::lock;
use compare::Comparison;

pub use report::{Compared, Done, Finding, Kind, Report};
pub use running::RunningBalance;

pub(super) use running::Running;

/// Shortest period that a balance compares: a loan lasts for weeks.
const LOOKBACK: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Hour, in UTC, of the nightly run. The minute follows from the date.
const NIGHTLY_HOUR: i64 = 2;
/// Time limit of one balance, over all libraries.
const MAX_RUN_TIME: Duration = Duration::from_secs(4 * 3600);

/// Why no balance was made.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// Another balance is running.
    #[error("another balance is running; wait for it")]
    UnderWay,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Circulation {
    /// Compares the ledger with Bokbasen's listing of every library, and makes the repairs that the
    /// rules allow.
    ///
    /// # Errors
    /// [`BalanceError`]. The report names each library whose comparison failed.
    pub async fn balance(&self, since: Option<Timestamp>) -> Result<Report, BalanceError> {
        let report = self.balance_if(|_| true, since).await?;
        if let Some(since) = report.compared_since().or(since)
            && report.libraries.iter().all(|library| library.failed.is_none())
        {
            let recorded = self.inner.ledger.record_balance(since, report.at).await;
            recorded.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot record a balance for `loangate ledger reconcile`");
            });
        }
        Ok(report)
    }

    /// As [`Circulation::balance`], of the libraries that `includes`.
    async fn balance_if(
        &self,
        includes: impl Fn(LibraryId) -> bool,
        since: Option<Timestamp>,
    ) -> Result<Report, BalanceError> {
        let Ok(_guard) = self.inner.balancing.try_lock() else {
            return Err(BalanceError::UnderWay);
        };
        let now = self.inner.clock.now();
        match self.compare_libraries(includes, since, now).await {
            Ok(report) => {
                self.inner.metrics.balanced(now, report.balanced);
                let last = Some(Arc::new(report.clone()));
                *lock(&self.inner.last_balance) = last;
                Ok(report)
            }
            Err(error) => {
                self.inner.metrics.balance_failed();
                Err(error.into())
            }
        }
    }

    /// Returns the report of this process's last balance.
    pub fn last_balance(&self) -> Option<Arc<Report>> {
        lock(&self.inner.last_balance).clone()
    }

    /// Returns how far the balance is that runs in this process, if one does.
    pub fn running_balance(&self) -> Option<RunningBalance> {
        self.inner.running_balance.get()
    }

    async fn compare_libraries(
        &self,
        includes: impl Fn(LibraryId) -> bool,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Report, LedgerError> {
        let until = Instant::now() + MAX_RUN_TIME;
        let mut report = Report::begun(now);
        let mut libraries = self.inner.ledger.libraries().await?;
        // Chosen at the start: a library that moves to another process during the run would be left
        // out by both, or compared by both.
        libraries.retain(|library| includes(*library));
        let running = self.inner.running_balance.begin(libraries.len());
        for library in libraries {
            let (since, unread) = match since {
                Some(since) => (since, None),
                None => match self.since(library, now).await {
                    Ok(since) => (since, None),
                    Err(error) => (now, Some(Stopped::from(error))),
                },
            };
            let mut comparison = Comparison::new(self, library, since, (now, until), &mut report);
            let failed = match unread {
                Some(error) => Err(error),
                None => comparison.run().await,
            };
            if failed.is_err() {
                comparison.clear_doubts().await;
            }
            // The loans that it did not examine stay marked, and the books may balance without.
            if let Err(error) = comparison.examine_requested().await {
                tracing::warn!(%library, %error, "not all marked loans were examined");
            }
            let mut compared = comparison.compared;
            compared.failed = failed.err().map(|error| error.to_string());
            report.compared(compared);
            running.add_library();
        }
        Ok(report)
    }

    /// Returns the start of the period to compare, which includes the oldest live loan.
    async fn since(&self, library: LibraryId, now: Timestamp) -> Result<Timestamp, LedgerError> {
        let back = now.checked_sub(LOOKBACK).unwrap_or(now);
        let oldest = self.inner.ledger.oldest_live(library).await?;
        let day_before =
            |at: Timestamp| at.checked_sub(SignedDuration::from_hours(24)).unwrap_or(at);
        Ok(oldest.map_or(back, |oldest| back.min(day_before(oldest))))
    }
}

/// Runs a balance each night, until the process stops. All processes on a ledger start it at the
/// same time, so each library has one owner then, whoever owned it the night before.
pub(super) async fn run_nightly(circulation: Circulation) {
    loop {
        let next = next_night(circulation.inner.clock.now(), minute_of);
        while circulation.inner.clock.now() < next {
            // The limit lets the wait follow a clock that was set.
            let wait = clock::until(circulation.inner.clock.now(), next);
            if !circulation.pause(wait.min(CLOCK_CHECK_INTERVAL)).await {
                return;
            }
        }
        // Each process compares its own libraries.
        let ledger = &circulation.inner.ledger;
        match circulation.balance_if(|library| ledger.owns_library(library), None).await {
            Ok(report) if report.balanced => {
                tracing::info!(repaired = report.findings.len(), "the books balance")
            }
            Ok(report) => tracing::error!(
                findings = report.findings.len() + report.more,
                "the books do not balance; `GET /api/v1/balance` of the admin listener \
                 lists the findings"
            ),
            Err(error) => tracing::error!(%error, "the balance failed"),
        }
    }
}

/// Returns the next start in a nightly hour, by the minute of each day. Every UTC day has the same
/// length here; days are counted from 1970.
fn next_night(now: Timestamp, minute_of: impl Fn(i64) -> i64) -> Timestamp {
    const DAY: i64 = 86_400;
    let start_of = |day: i64| day * DAY + NIGHTLY_HOUR * 3600 + minute_of(day) * 60;
    let today = now.as_second().div_euclid(DAY);
    let start = Some(start_of(today)).filter(|start| *start > now.as_second());
    Timestamp::from_second(start.unwrap_or_else(|| start_of(today + 1))).unwrap_or(Timestamp::MAX)
}

/// Returns the minute of the run of a day. It varies, so that a run does not collide every night
/// with another job of that hour.
fn minute_of(day: i64) -> i64 {
    // Fibonacci hashing: 2^32 divided by the golden ratio.
    (day.wrapping_mul(0x9E37_79B9) >> 16).rem_euclid(60)
}

/// Why the comparison of a library stopped early.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the balance exceeded its time limit; run it again by hand")]
    TooLong,
    #[error("the gate is stopping")]
    Stopping,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_night_is_today_or_tomorrow() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (now, next) in [
            ("2026-03-29T00:00:00Z", "2026-03-29T02:07:00Z"),
            ("2026-03-29T02:07:00Z", "2026-03-30T02:07:00Z"),
            ("2026-12-31T23:00:00Z", "2027-01-01T02:07:00Z"),
        ] {
            assert_eq!(next_night(at(now), |_| 7), at(next), "{now}");
        }
    }

    #[test]
    fn every_process_starts_at_the_minute_of_the_date() {
        let midnight = "2026-03-29T00:00:00Z".parse::<Timestamp>().unwrap();
        let mut minutes = std::collections::HashSet::new();
        for day in 0..365 {
            let midnight = midnight + SignedDuration::from_hours(24 * day);
            let start = next_night(midnight, minute_of);
            let minute = (start.as_second() - midnight.as_second()) / 60 - NIGHTLY_HOUR * 60;
            assert!((0..60).contains(&minute), "{start}");
            minutes.insert(minute);
            // Processes that were started at other times, and after the run of the day before.
            for hours in [1, 12, 20] {
                let now = midnight - SignedDuration::from_hours(hours);
                assert_eq!(next_night(now, minute_of), start);
            }
        }
        assert!(minutes.len() > 30, "{minutes:?}");
    }
}
