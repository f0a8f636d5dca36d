//! Sends due reports, each at most once.

use std::time::Duration;

use uuid::Uuid;

use super::{Hold, Reporter, Run, log_ledger_failure};
use crate::ledger::{Attempt, Lease, LedgerError, Report, ReportState, ReportStep};
use crate::lending::{ReportOutcome, UsageReport};
use crate::loan::LoanId;

/// The number of reports in one query.
const PAGE: u32 = 100;
/// The wait before a result is written again, and the limit of its doubling.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

impl Reporter {
    /// Passes reports that may have been sent, and whose process has ended or has forgotten them,
    /// to a person. This task sends nothing meanwhile, so it has forgotten all of its own.
    pub(super) async fn pass_lost_reports_on(&self) -> Result<(), LedgerError> {
        let ledger = &self.circulation.inner.ledger;
        let mut after = Some(Uuid::nil());
        while let Some(position) = after {
            let (reports, next) =
                ledger.reports_in_state(ReportState::Sending, position, PAGE).await?;
            for report in reports {
                let is_lost = ledger.owns_report(&report)
                    || Reporter::changed(ledger.is_report_abandoned(&report).await)?;
                let note = "the gate ended while it sent the report".to_owned();
                if is_lost && Reporter::changed(ledger.lose_report(&report, note).await)? {
                    let loan = report.loan;
                    tracing::error!(
                        %loan,
                        "a usage report may have been sent, and a person must find out"
                    );
                }
            }
            after = next;
        }
        Ok(())
    }

    /// Sends the due reports of this process's share, one after the other, until one is not
    /// recorded. The next run resumes behind that one.
    pub(super) async fn send_due(&self, run: &Run<'_>, hold: &mut Hold) -> Result<(), LedgerError> {
        let ledger = &self.circulation.inner.ledger;
        let mut after = Some(hold.take_position());
        while let Some(position) = after {
            let (reports, next) = ledger.reports_in_state(ReportState::Due, position, PAGE).await?;
            for report in reports {
                let lease = ledger.lease();
                if !self.may_work() || !lease.is_held() {
                    return Ok(());
                }
                if let Some(doubt) = run.boundary.doubt(&report) {
                    self.pass_on(report.loan, doubt).await?;
                    continue;
                }
                let claimed = ledger.claim_report(&report, &lease).await;
                let Some(attempt) = Reporter::changed(claimed)? else { continue };
                let sending = self.send(&report, &lease, &attempt);
                match self.circulation.traced("usage report", sending).await {
                    ReportOutcome::Recorded => *hold = Hold::default(),
                    ReportOutcome::NotRecorded(_, asked) => {
                        hold.extend(self.settings.interval, asked);
                        hold.behind = report.loan.uuid();
                        return Ok(());
                    }
                    // Each costs a person some work, so more are not risked at once.
                    ReportOutcome::Refused(_) | ReportOutcome::Unknown(_) => {
                        hold.extend(self.settings.interval, None);
                        return Ok(());
                    }
                }
            }
            after = next;
        }
        Ok(())
    }

    /// Passes a due report to a person. After a restore from a backup, the ledger does not know
    /// whether it was sent.
    async fn pass_on(&self, loan: LoanId, note: String) -> Result<(), LedgerError> {
        let step = ReportStep::new(loan, &[ReportState::Due], ReportState::Unknown, "report");
        let step = ReportStep { note: Some(note), ..step };
        let stepped = self.circulation.inner.ledger.step_report(step).await;
        Reporter::changed(stepped).map(drop)
    }

    /// Sends a report that this process has claimed, and records the result.
    async fn send(&self, report: &Report, lease: &Lease, attempt: &Attempt) -> ReportOutcome {
        let outcome = match report.price {
            Some(price) => {
                let usage = UsageReport {
                    isbn: report.isbn,
                    model: report.model.name(),
                    price,
                    date: report.date,
                };
                let held = lease.clone();
                self.client.send(&usage, std::sync::Arc::new(move || held.is_held())).await
            }
            None => ReportOutcome::NotRecorded("it has no price".to_owned(), None),
        };
        let (to, note) = match &outcome {
            ReportOutcome::Recorded => (ReportState::Reported, String::new()),
            ReportOutcome::NotRecorded(why, _) => (ReportState::Due, why.clone()),
            ReportOutcome::Refused(why) => (ReportState::Rejected, why.clone()),
            ReportOutcome::Unknown(why) => (ReportState::Unknown, why.clone()),
        };
        let loan = report.loan;
        match to {
            ReportState::Reported => tracing::debug!(%loan, "Bokbasen recorded a usage report"),
            ReportState::Due => tracing::warn!(%loan, why = note, "a usage report was not sent"),
            _ => tracing::error!(
                %loan,
                why = note,
                state = to.name(),
                "a person must look at a usage report"
            ),
        }
        self.record(loan, attempt, to, note).await;
        outcome
    }

    /// Writes a result, and retries until the ledger accepts it. If the process ends before, the
    /// report stays in `sending`, and goes to a person.
    async fn record(&self, loan: LoanId, attempt: &Attempt, to: ReportState, note: String) {
        let ledger = &self.circulation.inner.ledger;
        let mut wait = FIRST_RETRY;
        loop {
            let error = match ledger.record_report(attempt, to, note.clone()).await {
                Ok(true) => return,
                Ok(false) => {
                    return tracing::warn!(%loan, to = to.name(), "a report was resolved before");
                }
                Err(error) => error,
            };
            let is_final = matches!(
                error,
                LedgerError::Closed | LedgerError::Unwritable(_) | LedgerError::Damaged { .. }
            );
            log_ledger_failure("writing the result of a usage report", &error);
            if is_final || !self.circulation.pause(wait).await {
                return;
            }
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }
}
