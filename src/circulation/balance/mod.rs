//! Balance: compares the ledger with Bokbasen's listing, each night and on demand.
//!
//! The nightly task and the admin listener call this module. `compare` reads one library's listing
//! and reports differences; `extras` ends loans there, and `repair` decides which loans end here.
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
mod rows;

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

/// Shortest period that a balance compares: a loan lasts for weeks.
const LOOKBACK: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Hour, in UTC, of the nightly run. Each process draws its minute at random.
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
        self.balance_if(|_| true, since).await
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

    async fn compare_libraries(
        &self,
        includes: impl Fn(LibraryId) -> bool,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Report, LedgerError> {
        let until = Instant::now() + MAX_RUN_TIME;
        let mut report = Report::begun(now);
        let libraries = self.inner.ledger.libraries().await?;
        for library in libraries.into_iter().filter(|library| includes(*library)) {
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
            let mut compared = comparison.compared;
            compared.failed = failed.err().map(|error| error.to_string());
            report.compared(compared);
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

/// Runs a balance each night, until the process stops.
pub(super) async fn run_nightly(circulation: Circulation) {
    let minute = fastrand::i64(0..60);
    loop {
        let next = next_night(circulation.inner.clock.now(), minute);
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

/// Returns the next start at this minute of the nightly hour. Every UTC day has the same length
/// here.
fn next_night(now: Timestamp, minute: i64) -> Timestamp {
    const DAY: i64 = 86_400;
    let of_the_day = NIGHTLY_HOUR * 3600 + minute * 60;
    let since = (now.as_second() - of_the_day).rem_euclid(DAY);
    Timestamp::from_second(now.as_second() + DAY - since).unwrap_or(Timestamp::MAX)
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
            assert_eq!(next_night(at(now), 7), at(next), "{now}");
        }
    }
}
