//! Conversion between loans and rows.

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::sql::{KeyColumns, key_of};
use crate::ledger::audit::NewStep;
use crate::ledger::states::timestamp;
use crate::ledger::{HistoryRow, LedgerError};
use crate::loan::{EndReason, Loan, LoanId, LoanRecord, Progress, Reference, Refusal, Terms};

/// The columns of a loan, in the order in which [`push_loans`] binds them. [`loan_of`] reads them
/// by name.
pub(super) const COLUMNS: &str = "id, library, borrower, isbn, reference, lending_id, state, \
     begun, accepted, due, licence_id, licence_type, ended, end_reason, refusal_code, \
     refusal_message, refusal_retry, progress, forgotten, changed";

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

/// Converts a row to a loan.
pub(super) fn loan_of(row: &SqliteRow) -> Result<Loan, LedgerError> {
    let id: String = row.try_get("id").map_err(|error| LedgerError::damaged("?", &error))?;
    let record = record_of(row, &id)?;
    Loan::restore(record).map_err(|error| LedgerError::damaged(&id, &error))
}

fn record_of(row: &SqliteRow, id: &str) -> Result<LoanRecord, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(id, error);
    let text = |column: &str| row.try_get::<String, _>(column).map_err(|error| wrong(&error));
    let optional =
        |column: &str| row.try_get::<Option<String>, _>(column).map_err(|error| wrong(&error));
    let time = |column: &str| -> Result<Option<Timestamp>, LedgerError> {
        let millis: Option<i64> = row.try_get(column).map_err(|error| wrong(&error))?;
        millis.map(|millis| timestamp(millis).map_err(|error| wrong(&error))).transpose()
    };
    let moment = |column: &str| time(column)?.ok_or_else(|| wrong(&"a time is missing"));
    let terms = time("due")?
        .map(|due| {
            Ok::<_, LedgerError>(Terms {
                due,
                licence_id: optional("licence_id")?,
                licence_type: optional("licence_type")?,
            })
        })
        .transpose()?;
    let refusal = optional("refusal_code")?
        .map(|code| {
            Ok::<_, LedgerError>(Refusal {
                code,
                message: optional("refusal_message")?.unwrap_or_default(),
                retry_at: time("refusal_retry")?,
            })
        })
        .transpose()?;
    let key = key_of(row, id)?;
    let uuid = id.parse().map_err(|_| wrong(&"a loan's id is a UUID"))?;
    Ok(LoanRecord {
        id: LoanId::new(key.library, uuid),
        key,
        reference: Reference::from_text(text("reference")?),
        lending_id: optional("lending_id")?,
        state: text("state")?.parse().map_err(|error| wrong(&error))?,
        begun: moment("begun")?,
        accepted: time("accepted")?,
        terms,
        ended: time("ended")?,
        end_reason: optional("end_reason")?
            .map(|reason| reason.parse().map_err(|error| wrong(&error)))
            .transpose()?,
        refusal,
        progress: progress_of(row, &wrong)?,
        forgotten: time("forgotten")?,
        changed: moment("changed")?,
    })
}

fn progress_of(
    row: &SqliteRow,
    wrong: &dyn Fn(&dyn std::fmt::Display) -> LedgerError,
) -> Result<Option<Progress>, LedgerError> {
    let hundredths: Option<u16> = row.try_get("progress").map_err(|error| wrong(&error))?;
    hundredths
        .map(|hundredths| Progress::of_hundredths(hundredths).map_err(|error| wrong(&error)))
        .transpose()
}

/// Converts a row of the history of `loan`.
pub(super) fn history_of(loan: LoanId, row: &SqliteRow) -> Result<HistoryRow, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| {
        LedgerError::damaged(&format!("{loan} (its history)"), error)
    };
    let at: i64 = row.try_get("at").map_err(|error| wrong(&error))?;
    let from: Option<String> = row.try_get("from_state").map_err(|error| wrong(&error))?;
    let to: String = row.try_get("to_state").map_err(|error| wrong(&error))?;
    Ok(HistoryRow {
        at: timestamp(at).map_err(|error| wrong(&error))?,
        from: from.map(|from| from.parse().map_err(|error| wrong(&error))).transpose()?,
        to: to.parse().map_err(|error| wrong(&error))?,
        cause: row.try_get("cause").map_err(|error| wrong(&error))?,
        detail: row.try_get("detail").map_err(|error| wrong(&error))?,
    })
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
        row.push_bind(step.salt.as_slice());
        row.push_bind(step.loan_mac.as_slice());
    });
}
