//! A loan as a row, and back.

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{HistoryRow, LedgerError};
use crate::loan::{Borrower, Loan, LoanRecord, Progress, Reference, Refusal, Terms};

/// The columns of a loan, in the order in which [`loan_of`] wants them by name.
pub(super) const COLUMNS: &str = "id, library, borrower, isbn, reference, lending_id, state, begun, accepted, due, \
     licence_id, licence_type, ended, end_reason, refusal_code, refusal_message, refusal_retry, progress, forgotten, changed";

/// The loan of a row.
pub(super) fn loan_of(row: &SqliteRow) -> Result<Loan, LedgerError> {
    let id: String = row.try_get("id").map_err(|error| damaged("?", &error))?;
    let record = record_of(row, &id)?;
    Loan::restore(record).map_err(|error| damaged(&id, &error))
}

fn damaged(id: &str, why: &dyn std::fmt::Display) -> LedgerError {
    LedgerError::Damaged { id: id.to_owned(), why: why.to_string() }
}

fn record_of(row: &SqliteRow, id: &str) -> Result<LoanRecord, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| damaged(id, error);
    let text = |column: &str| row.try_get::<String, _>(column).map_err(|error| wrong(&error));
    let optional = |column: &str| row.try_get::<Option<String>, _>(column).map_err(|error| wrong(&error));
    let time = |column: &str| -> Result<Option<Timestamp>, LedgerError> {
        let millis: Option<i64> = row.try_get(column).map_err(|error| wrong(&error))?;
        millis.map(|millis| Timestamp::from_millisecond(millis).map_err(|error| wrong(&error))).transpose()
    };
    let moment = |column: &str| time(column)?.ok_or_else(|| wrong(&"a time is missing"));
    let borrower: Vec<u8> = row.try_get("borrower").map_err(|error| wrong(&error))?;
    let isbn: i64 = row.try_get("isbn").map_err(|error| wrong(&error))?;
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
    Ok(LoanRecord {
        id: id.parse().map_err(|error| wrong(&error))?,
        key: crate::loan::LoanKey {
            library: text("library")?.parse().map_err(|error| wrong(&error))?,
            borrower: Borrower::from_bytes(borrower.try_into().map_err(|_| wrong(&"the borrower"))?),
            isbn: isbn.to_string().parse().map_err(|error| wrong(&error))?,
        },
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

/// The transition of a row.
pub(super) fn history_of(row: &SqliteRow) -> Result<HistoryRow, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| damaged("of a history", error);
    let at: i64 = row.try_get("at").map_err(|error| wrong(&error))?;
    let from: Option<String> = row.try_get("from_state").map_err(|error| wrong(&error))?;
    let to: String = row.try_get("to_state").map_err(|error| wrong(&error))?;
    Ok(HistoryRow {
        at: Timestamp::from_millisecond(at).map_err(|error| wrong(&error))?,
        from: from.map(|from| from.parse().map_err(|error| wrong(&error))).transpose()?,
        to: to.parse().map_err(|error| wrong(&error))?,
        cause: row.try_get("cause").map_err(|error| wrong(&error))?,
        detail: row.try_get("detail").map_err(|error| wrong(&error))?,
    })
}

const INSERT: &str = "INSERT INTO loans (id, library, borrower, isbn, reference, lending_id, state, begun, accepted, \
     due, licence_id, licence_type, ended, end_reason, refusal_code, refusal_message, refusal_retry, changed, owner) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) \
     ON CONFLICT (id) DO UPDATE SET lending_id = ?6, state = ?7, accepted = ?9, due = ?10, licence_id = ?11, \
     licence_type = ?12, ended = ?13, end_reason = ?14, refusal_code = ?15, refusal_message = ?16, \
     refusal_retry = ?17, changed = ?18";

/// Writes a loan as it is now: a new row, or the columns that can change. The owner stays who it was.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    loan: &Loan,
    owner: &str,
) -> Result<(), sqlx::Error> {
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
    let (terms, refusal) = (loan.terms.as_ref(), loan.refusal.as_ref());
    sqlx::query(INSERT)
        .bind(loan.id.to_string())
        .bind(loan.key.library.as_str())
        .bind(loan.key.borrower.as_bytes().as_slice())
        .bind(i64::try_from(loan.key.isbn.number()).unwrap_or_default())
        .bind(loan.reference.as_str())
        .bind(loan.lending_id.as_deref())
        .bind(loan.state.name())
        .bind(loan.begun.as_millisecond())
        .bind(millis(loan.accepted))
        .bind(millis(terms.map(|terms| terms.due)))
        .bind(terms.and_then(|terms| terms.licence_id.as_deref()))
        .bind(terms.and_then(|terms| terms.licence_type.as_deref()))
        .bind(millis(loan.ended))
        .bind(loan.end_reason.map(crate::loan::EndReason::name))
        .bind(refusal.map(|refusal| refusal.code.as_str()))
        .bind(refusal.map(|refusal| refusal.message.as_str()))
        .bind(millis(refusal.and_then(|refusal| refusal.retry_at)))
        .bind(loan.changed.as_millisecond())
        .bind(owner)
        .execute(connection)
        .await
        .map(drop)
}
