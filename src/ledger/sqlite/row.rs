//! Statements that write loans and steps, and that read loans by their ids.

use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite};

use super::sql::KeyColumns;
use crate::ledger::audit::NewStep;
use crate::ledger::stored_row::COLUMNS;
use crate::loan::{EndReason, Loan, LoanId, Progress};

/// Returns a query for the loans with these ids.
pub(super) fn by_ids(ids: &[LoanId]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS}, owner FROM loans WHERE id IN ("));
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id.to_string());
    }
    query.push(")");
    query
}

/// Updates the columns that a step can change. Owner and progress have their own commands.
const CHANGES: &str = " ON CONFLICT (id) DO UPDATE SET lending_id = excluded.lending_id, \
     state = excluded.state, accepted = excluded.accepted, due = excluded.due, \
     licence_id = excluded.licence_id, licence_type = excluded.licence_type, \
     ended = excluded.ended, end_reason = excluded.end_reason, \
     refusal_code = excluded.refusal_code, refusal_message = excluded.refusal_message, \
     refusal_retry = excluded.refusal_retry, changed = excluded.changed";

/// Appends the statement that inserts or updates these loans to a query. There must be at least one
/// loan.
pub(super) fn push_loans(query: &mut QueryBuilder<Sqlite>, loans: &[&Loan], owner: &str) {
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
    query.push(format!("INSERT INTO loans ({COLUMNS}, owner) "));
    query.push_values(loans, |mut row, loan| {
        let (terms, refusal) = (loan.terms.as_ref(), loan.refusal.as_ref());
        let KeyColumns { library, borrower, isbn } = (&loan.key).into();
        row.push_bind(loan.id.to_string());
        row.push_bind(library);
        row.push_bind(borrower);
        row.push_bind(isbn);
        row.push_bind(loan.reference.as_str());
        row.push_bind(loan.lending_id.as_deref());
        row.push_bind(loan.state.name());
        row.push_bind(loan.begun.as_millisecond());
        row.push_bind(millis(loan.accepted));
        row.push_bind(millis(terms.map(|terms| terms.due)));
        row.push_bind(terms.and_then(|terms| terms.licence_id.as_deref()));
        row.push_bind(terms.and_then(|terms| terms.licence_type.as_deref()));
        row.push_bind(millis(loan.ended));
        row.push_bind(loan.end_reason.map(EndReason::name));
        row.push_bind(refusal.map(|refusal| refusal.code.as_str()));
        row.push_bind(refusal.map(|refusal| refusal.message.as_str()));
        row.push_bind(millis(refusal.and_then(|refusal| refusal.retry_at)));
        row.push_bind(loan.progress.map(Progress::hundredths));
        row.push_bind(millis(loan.forgotten));
        row.push_bind(loan.changed.as_millisecond());
        row.push_bind(owner);
    });
    query.push(CHANGES);
}

/// The version of the steps that this program writes.
const STEP_VERSION: i64 = 2;

/// Appends the statement that inserts these steps to a query. There must be at least one step.
pub(super) fn push_steps(query: &mut QueryBuilder<Sqlite>, steps: &[NewStep]) {
    query.push(
        "INSERT INTO history \
         (number, loan, at, from_state, to_state, cause, detail, mac, version, salt, loan_mac) ",
    );
    query.push_values(steps, |mut row, step| {
        row.push_bind(step.link.number);
        row.push_bind(step.loan.as_str());
        row.push_bind(step.at);
        row.push_bind(step.from);
        row.push_bind(step.to);
        row.push_bind(step.cause.by);
        row.push_bind(step.cause.detail.as_deref());
        row.push_bind(step.link.mac.as_slice());
        row.push_bind(STEP_VERSION);
        row.push_bind(step.salt.as_ref().map(<[u8; 16]>::as_slice));
        row.push_bind(step.loan_mac.as_deref());
    });
}
