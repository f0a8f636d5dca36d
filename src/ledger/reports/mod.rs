//! The books of usage reports to Bokbasen: what is due, what was sent, and what a person must
//! decide.
//!
//! Bokbasen documents no idempotency key, so a report is sent at most once. Its row is unique in
//! what it reports: a package in its library and licence, a loan that is paid by use in its loan. A
//! process claims the row durably before it sends the report. A row whose report may have arrived
//! is never claimed again: a person resolves it. So are those that became due before the ledger
//! lost its newest steps (`reconcile`).
//!
//! Each change is also a step of the loan in the audit trail. [`Ledger`] has the methods for
//! circulation and for support; the stores implement them in their `reports` modules.

mod reconcile;
mod row;
mod types;

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::command::{Command, ReportWrite};
use super::membership::Lease;
use super::{Ledger, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId};

pub(super) use reconcile::{PASS_ON, RECONCILED, RECORD, reconciled_at};
pub(super) use row::{COLUMNS, check_row, end_of_page, next_of, report_of};
pub use types::{
    Attempt, Evidence, Measure, Report, ReportFilter, ReportModel, ReportPosition, ReportState,
    ReportStep,
};

/// A loan is accepted at most this long after its id was made, by a wide margin.
pub const LONGEST_BEGIN: Duration = Duration::from_secs(86_400);
/// The states of a report that was or may have been sent by a process that has ended.
const SENDING: &[ReportState] = &[ReportState::Sending];
/// The states from which the process that sent a report may record its result. Another process may
/// have declared this one dead, and so the report unknown.
const SENT: &[ReportState] = &[ReportState::Sending, ReportState::Unknown];

impl Ledger {
    /// Writes reports of one library, and marks the loans as assessed. What is already in the books
    /// is skipped. A package is not reported if a loan under its licence was accepted before
    /// `since`, also if another process has not assessed that loan yet. Returns the number of new
    /// reports.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written, or if the row of a loan is damaged.
    pub async fn add_reports(
        &self,
        library: LibraryId,
        reports: Vec<Report>,
        assessed: Vec<LoanId>,
        since: Timestamp,
    ) -> Result<u64, LedgerError> {
        self.write_report(ReportWrite::Add { library, reports, assessed, since }).await
    }

    /// Claims a due report for this process, before it sends the report. Returns none if another
    /// process has claimed it since it was read, or if it became due before the ledger was
    /// reconciled.
    ///
    /// # Errors
    /// [`LedgerError`]; the report must not be sent. If the claim is durable all the same, the
    /// report goes to a person.
    pub async fn claim_report(
        &self,
        report: &Report,
        lease: &Lease,
    ) -> Result<Option<Attempt>, LedgerError> {
        let (loan, owner) = (report.loan, lease.name());
        let step = ReportStep {
            claims: true,
            owner: Some(owner.clone()),
            attempts: Some(report.attempts),
            ..ReportStep::new(loan, &[ReportState::Due], ReportState::Sending, "report")
        };
        let attempt = Attempt { loan, number: report.attempts.saturating_add(1), owner };
        Ok(self.step_report(step).await?.then_some(attempt))
    }

    /// Records the result of an attempt, with what there is to say of it. Returns false if a person
    /// has resolved the report, or if there was a later attempt.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn record_report(
        &self,
        attempt: &Attempt,
        to: ReportState,
        note: String,
    ) -> Result<bool, LedgerError> {
        let from = if to == ReportState::Reported { SENT } else { SENDING };
        let step = ReportStep {
            owner: Some(attempt.owner.clone()),
            attempts: Some(attempt.number),
            note: Some(note).filter(|note| !note.is_empty()),
            ..ReportStep::new(attempt.loan, from, to, "report")
        };
        self.step_report(step).await
    }

    /// Passes a report that its process left in `sending` to a person. Returns false if its result
    /// was recorded meanwhile.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn lose_report(&self, report: &Report, note: String) -> Result<bool, LedgerError> {
        let step = ReportStep {
            owner: report.owner.clone(),
            attempts: Some(report.attempts),
            note: Some(note),
            ..ReportStep::new(report.loan, SENDING, ReportState::Unknown, "report")
        };
        self.step_report(step).await
    }

    /// Changes the state of a report. Returns false if it is not in one of the states of the step.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written, or if the row of the loan is damaged.
    pub async fn step_report(&self, step: ReportStep) -> Result<bool, LedgerError> {
        Ok(self.write_report(ReportWrite::Step(Box::new(step))).await? > 0)
    }

    async fn write_report(&self, write: ReportWrite) -> Result<u64, LedgerError> {
        self.run(|reply| Command::Report(write, reply)).await
    }

    /// Returns the next accepted loans of this licence type that were not assessed, in the order of
    /// their ids, of this process's share. Damaged rows are skipped. None are left if the position
    /// is none.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn loans_to_assess(
        &self,
        licence_type: &str,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Loan>, Option<Uuid>), LedgerError> {
        self.queries.loans_to_assess(licence_type, after, limit).await
    }

    /// Returns the next reports in this state, in the order of their loans, of this process's
    /// share. Damaged rows are skipped. None are left if the position is none.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn reports_in_state(
        &self,
        state: ReportState,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Report>, Option<Uuid>), LedgerError> {
        self.queries.reports_in_state(state, after, limit).await
    }

    /// Returns whether the process that claimed this report is dead.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn is_report_abandoned(&self, report: &Report) -> Result<bool, LedgerError> {
        match &report.owner {
            Some(owner) => self.queries.is_process_dead(self.membership.as_ref(), owner).await,
            None => Ok(true),
        }
    }

    /// Returns whether this process has claimed the report.
    pub fn owns_report(&self, report: &Report) -> bool {
        report.owner.as_deref() == Some(self.membership.name().as_ref())
    }

    /// Returns a page of reports, in the order of their dates, and the position after it. Damaged
    /// rows are skipped. None are left if the position is none.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn reports(
        &self,
        filter: &ReportFilter,
    ) -> Result<(Vec<Report>, Option<ReportPosition>), LedgerError> {
        self.queries.reports(filter).await
    }

    /// Returns the report that this loan made due. It searches all libraries.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn report_of_loan(&self, loan: Uuid) -> Result<Option<Report>, LedgerError> {
        self.queries.report_of_loan(loan).await
    }

    /// Returns the number of reports in each state, without those that are settled.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_reports(&self) -> Result<Vec<(ReportState, u64)>, LedgerError> {
        self.queries.count_reports().await
    }

    /// Returns the number of due reports whose fact occurred before this time, and which were not
    /// sent. Those that waited for something else until later do not count before an attempt.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_late_reports(&self, before: Timestamp) -> Result<u64, LedgerError> {
        self.queries.count_late_reports(before).await
    }

    /// Returns when an operator last reconciled the ledger after it had lost its newest steps. What
    /// became due before may have been reported in the lost time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn reconciled(&self) -> Result<Option<Timestamp>, LedgerError> {
        self.queries.reconciled().await
    }
}

/// Returns the first id that a loan could have got at this time: ids begin with their time.
pub fn first_loan_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.as_millisecond()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
}

/// Returns the number of milliseconds, for a column.
pub(super) fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

/// Converts a number for a column. None of them exceeds the range in practice.
pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns the names of states, as the list of an IN.
pub(super) fn list(states: &[ReportState]) -> String {
    states.iter().map(|state| format!("'{state}'")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests;
