//! Usage reports to Bokbasen: finds the loans and packages that are due, and sends each report
//! once.
//!
//! One task works through the books, off the path of requests:
//!
//! 1. Reports that a process left in `sending` go to a person (`send`).
//! 2. Reports without a price or a measure are looked at again (`assess`).
//! 3. Accepted loans that were not assessed are assessed by the rule (`rule`, `assess`).
//! 4. Due reports are claimed and sent, one after the other (`send`).
//!
//! While this machine's clock may be wrong, or begins are closed since the ledger lost steps, only
//! the first step is done. `boundary` says what may have been sent before such a loss.
//!
//! The ledger makes each report unique and each claim exclusive, so several gates may do this at
//! once. `lists` reads the prices and sizes again in each run.

mod assess;
mod boundary;
mod entry;
mod lists;
mod oslo;
mod rule;
mod send;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Circulation, Inner, log_ledger_failure};
use crate::ledger::LedgerError;
use crate::lending::{Reporting, ReportingSettings};
use crate::loan::Progress;
use crate::telemetry::Task;

use boundary::Boundary;
pub use lists::{ListMistake, Lists};
pub use oslo::{date_in_oslo, start_of_day};
pub use rule::EvidenceRule;

/// The longest wait after a report was not recorded, unless Bokbasen asks for a longer one.
const LONGEST_HOLD: Duration = Duration::from_secs(3600);

/// `[reports]`: what is reported, and when.
#[derive(Clone, Debug)]
pub struct ReportSettings {
    /// Where reports are sent.
    pub endpoint: ReportingSettings,
    /// Only loans that were accepted at this time or later are reported.
    pub since: Timestamp,
    /// The file of the prices.
    pub prices: Option<PathBuf>,
    /// The file of the sizes of titles.
    pub sizes: Option<PathBuf>,
    /// The licence types that are packages.
    pub packages: Vec<String>,
    /// The licence types that are paid by use.
    pub pay_per_loan: Vec<String>,
    /// The part of a title from which a loan that is paid by use is due.
    pub limit: Progress,
    /// What shows how far a title was read.
    pub evidence: EvidenceRule,
    /// The time between two runs.
    pub interval: Duration,
    /// How long after its end a loan may still become due: until all its deliveries are counted.
    pub grace: Duration,
}

/// Identifies the stored file of the path of a request; none if no route leads to it. Several paths
/// may lead to one file.
pub type StoredFile = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What one run of the task works with.
#[derive(Clone, Copy)]
struct Run<'a> {
    lists: &'a Lists,
    boundary: Boundary,
}

/// What the task works with.
struct Reporter {
    circulation: Circulation,
    settings: ReportSettings,
    client: Reporting,
    stored_file: StoredFile,
}

/// Until when no report is sent, since the last one was not recorded.
#[derive(Debug, Default)]
struct Hold {
    until: Option<Instant>,
    last: Duration,
    /// The loan of a report that was not recorded and stays due: the next run begins behind it, so
    /// that it does not keep the others from being sent.
    behind: Uuid,
}

impl Hold {
    /// Doubles the wait, from `first` on, but waits at least as long as Bokbasen asks.
    fn extend(&mut self, first: Duration, asked: Option<Duration>) {
        self.last = (self.last * 2).clamp(first, LONGEST_HOLD.max(first));
        self.until = Some(Instant::now() + self.last.max(asked.unwrap_or_default()));
    }

    /// Returns behind which loan the next run begins. The one after it begins with the first.
    fn take_position(&mut self) -> Uuid {
        std::mem::take(&mut self.behind)
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }
}

impl Circulation {
    /// Starts the task that sends usage reports.
    pub fn start_reports(
        &self,
        settings: ReportSettings,
        client: Reporting,
        stored_file: StoredFile,
    ) {
        self.supervised(Task::ReportUsage, move |circulation| {
            let (settings, client) = (settings.clone(), client.clone());
            Reporter { circulation, settings, client, stored_file: stored_file.clone() }.run()
        });
    }
}

impl Reporter {
    async fn run(self) {
        let mut hold = Hold::default();
        let mut lists = Lists::default();
        loop {
            if let Err(error) = self.work(&mut hold, &mut lists).await {
                log_ledger_failure("reporting usage", &error);
            }
            if !self.circulation.pause(self.settings.interval).await {
                return self.client.close().await;
            }
        }
    }

    async fn work(&self, hold: &mut Hold, lists: &mut Lists) -> Result<(), LedgerError> {
        self.pass_lost_reports_on().await?;
        if !self.may_work() {
            return Ok(());
        }
        match Lists::read(self.settings.prices.as_deref(), self.settings.sizes.as_deref()).await {
            Ok(read) => *lists = read,
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!(%mistake, "list of [reports] not read; the old one stays");
                }
            }
        }
        let reconciled = self.circulation.inner.ledger.reconciled().await?;
        let boundary = Boundary { since: self.settings.since, reconciled };
        let run = Run { lists, boundary };
        self.assess_again(&run).await?;
        self.assess_loans(&run).await?;
        if hold.is_over() {
            self.send_due(&run, hold).await?;
        }
        Ok(())
    }

    /// Returns what was changed: nothing, if the row of the loan is damaged or the database rejects
    /// a value. This must not keep other loans from being reported, so the error is only logged.
    fn changed<T: Default>(changed: Result<T, LedgerError>) -> Result<T, LedgerError> {
        match changed {
            Err(error) if is_of_one_loan(&error) => {
                log_ledger_failure("changing a usage report", &error);
                Ok(T::default())
            }
            other => other,
        }
    }

    /// Returns whether reports may be assessed and sent. A wrong clock would give them wrong days,
    /// and compare them wrongly with `since`. A ledger that lost steps is reconciled first.
    fn may_work(&self) -> bool {
        let Inner { stopping, ledger, .. } = &*self.circulation.inner;
        !stopping.is_cancelled()
            && self.circulation.clocks_can_end_loans()
            && !ledger.begins_are_closed()
    }
}

/// Returns whether only the reports of a certain loan fail by this error.
fn is_of_one_loan(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Damaged { .. } | LedgerError::Unwritable(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_resumes_once_behind_a_report_that_was_not_recorded() {
        let mut hold = Hold::default();
        assert_eq!(hold.take_position(), Uuid::nil());
        let behind = Uuid::from_u128(7);
        hold.extend(Duration::ZERO, None);
        hold.behind = behind;
        assert_eq!(hold.take_position(), behind);
        assert_eq!(hold.take_position(), Uuid::nil(), "the report is tried again later");
    }
}
