//! The work of the commands on the books of usage reports.

use super::{CommandRunner, later_than};
use crate::ledger::command::ReportWrite;
use crate::ledger::store::{StoreTransaction, WorkError};
use crate::ledger::{Cause, LedgerError, Report};
use crate::loan::{Loan, LoanId};

impl<T: StoreTransaction> CommandRunner<'_, T> {
    /// Returns the number of changed reports.
    pub(super) async fn report(&mut self, write: &ReportWrite) -> Result<u64, WorkError> {
        let now = self.now;
        // All loans are read first: a damaged one rejects the command before it has changed a row.
        let mut ids = Vec::new();
        write.push_loans(&mut ids);
        for id in ids {
            self.loan_of_report(id).await?;
        }
        let mut changed = 0;
        match write {
            ReportWrite::Add { reports, assessed, since, .. } => {
                for report in reports {
                    let known;
                    let transaction = self.batch.transaction().await?;
                    let report = match transaction.is_package_known(report, *since).await? {
                        true => {
                            known = report.clone().of_known_package();
                            &known
                        }
                        false => report,
                    };
                    if transaction.add_report(report, now).await? {
                        self.record_report(report, "report").await?;
                        changed += 1;
                    }
                }
                self.batch.transaction().await?.assess(assessed, now).await?;
            }
            ReportWrite::Step(step) => {
                let stepped = self.batch.transaction().await?.step_report(step, now).await?;
                if let Some(report) = &stepped {
                    self.record_report(report, step.by).await?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }

    /// Returns the loan of a report; none if it was pruned.
    async fn loan_of_report(&mut self, id: LoanId) -> Result<Option<Loan>, WorkError> {
        match self.batch.loan(id).await {
            Ok(loan) => Ok(Some(loan)),
            Err(WorkError::Rejected(LedgerError::NoSuchLoan(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records a step of the report's loan, whose row does not change.
    async fn record_report(&mut self, report: &Report, by: &'static str) -> Result<(), WorkError> {
        if let Some(loan) = self.loan_of_report(report.loan).await? {
            let at = if T::LOCKS_ROWS { later_than(loan.changed, self.now) } else { self.now };
            let cause = Cause { by, detail: Some(report.describe()) };
            self.batch.record_written_row(&loan, at, &cause);
        }
        Ok(())
    }
}
