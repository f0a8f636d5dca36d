//! Writes copied rows to SQLite, in the transaction of the caller.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::rows::{DeliveredRow, DoubtRow, LoanRow, ReportRow, Row, StepRow};
use crate::ledger::audit::{AuditKey, Head};
use crate::ledger::stored_row::COLUMNS;

/// The maximum number of rows of one statement. A loan binds 23 of the 32766 parameters of SQLite.
const MAX_ROWS: usize = 1000;

/// Inserts rows of one table. `head` is the end of the chain, which steps extend.
///
/// # Errors
/// The error of the database, also if a row exists.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    rows: &[Row],
    head: &mut Head,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(MAX_ROWS) {
        let Some(first) = rows.first() else { continue };
        let mut query = match first {
            Row::Loan(_) => loans(rows),
            Row::Step(_) => steps(rows, head, key),
            Row::Delivered(_) => delivered(rows),
            Row::Doubt(_) => doubts(rows),
            Row::Report(_) => reports(rows),
        };
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

fn loans(rows: &[Row]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(format!(
        "INSERT INTO loans ({COLUMNS}, opened, assessed, examine, owner) "
    ));
    let loans = rows.iter().filter_map(|row| match row {
        Row::Loan(loan) => Some(loan),
        _ => None,
    });
    query.push_values(loans, |mut row, loan| {
        let loan: &LoanRow = loan;
        row.push_bind(loan.id.to_string());
        row.push_bind(loan.library.to_string());
        row.push_bind(loan.borrower.clone());
        row.push_bind(loan.isbn);
        row.push_bind(loan.reference.clone());
        row.push_bind(loan.lending_id.clone());
        row.push_bind(loan.state.clone());
        row.push_bind(loan.begun);
        row.push_bind(loan.accepted);
        row.push_bind(loan.due);
        row.push_bind(loan.licence_id.clone());
        row.push_bind(loan.licence_type.clone());
        row.push_bind(loan.ended);
        row.push_bind(loan.end_reason.clone());
        row.push_bind(loan.refusal_code.clone());
        row.push_bind(loan.refusal_message.clone());
        row.push_bind(loan.refusal_retry);
        row.push_bind(loan.progress);
        row.push_bind(loan.forgotten);
        row.push_bind(loan.changed);
        row.push_bind(loan.opened);
        row.push_bind(loan.assessed);
        row.push_bind(loan.examine);
        // As a process on a file names itself: without a lock on its file, it counts as dead.
        row.push_bind(loan.owner.simple().to_string());
    });
    query
}

fn steps(rows: &[Row], head: &mut Head, key: &AuditKey) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "INSERT INTO history \
         (number, loan, at, from_state, to_state, cause, detail, mac, version, salt, loan_mac) ",
    );
    let steps = rows.iter().filter_map(|row| match row {
        Row::Step(step) => Some(step),
        _ => None,
    });
    query.push_values(steps, |mut row, step| {
        let step: &StepRow = step;
        *head = step.link_after(head, key);
        row.push_bind(head.number);
        row.push_bind(step.loan.to_string());
        row.push_bind(step.at);
        row.push_bind(step.from_state.clone());
        row.push_bind(step.to_state.clone());
        row.push_bind(step.cause.clone());
        row.push_bind(step.detail.clone());
        row.push_bind(head.mac.clone());
        row.push_bind(step.version);
        row.push_bind(step.salt.clone());
        row.push_bind(step.loan_mac.clone());
    });
    query
}

fn delivered(rows: &[Row]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("INSERT INTO delivered (loan, file, bytes, ranges) ");
    let delivered = rows.iter().filter_map(|row| match row {
        Row::Delivered(delivered) => Some(delivered),
        _ => None,
    });
    query.push_values(delivered, |mut row, delivered| {
        let DeliveredRow { loan, file, bytes, ranges, .. } = delivered;
        row.push_bind(loan.to_string()).push_bind(file.clone());
        row.push_bind(*bytes).push_bind(ranges.clone());
    });
    query
}

fn doubts(rows: &[Row]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("INSERT INTO doubts (loan, library, since, run) ");
    let doubts = rows.iter().filter_map(|row| match row {
        Row::Doubt(doubt) => Some(doubt),
        _ => None,
    });
    query.push_values(doubts, |mut row, doubt| {
        let DoubtRow { library, loan, since, run } = doubt;
        row.push_bind(loan.to_string()).push_bind(library.to_string());
        row.push_bind(*since).push_bind(*run);
    });
    query
}

fn reports(rows: &[Row]) -> QueryBuilder<Sqlite> {
    let columns = crate::ledger::reports::COLUMNS;
    let mut query = QueryBuilder::new(format!("INSERT INTO reports ({columns}) "));
    let reports = rows.iter().filter_map(|row| match row {
        Row::Report(report) => Some(report),
        _ => None,
    });
    query.push_values(reports, |mut row, report| {
        let report: &ReportRow = report;
        row.push_bind(report.library.to_string());
        row.push_bind(report.model.clone()).push_bind(report.subject.clone());
        row.push_bind(report.loan.to_string()).push_bind(report.isbn);
        row.push_bind(report.licence_id.clone()).push_bind(report.licence_type.clone());
        row.push_bind(report.date.clone()).push_bind(report.evidence.clone());
        row.push_bind(report.progress).push_bind(report.covered).push_bind(report.size);
        row.push_bind(report.measured).push_bind(report.price).push_bind(report.state.clone());
        // As a process on a file names itself: it counts as dead.
        row.push_bind(report.owner.map(|owner| owner.simple().to_string()));
        row.push_bind(report.attempts).push_bind(report.sent);
        row.push_bind(report.note.clone()).push_bind(report.changed);
        row.push_bind(report.due_since);
    });
    query
}
