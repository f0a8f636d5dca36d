//! Conversion between loans and rows.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::states::timestamp;
use crate::ledger::{HistoryRow, LedgerError};
use crate::loan::{
    Borrower, Loan, LoanId, LoanKey, LoanRecord, Progress, Reference, Refusal, Terms,
};

/// The columns of a loan. [`loan_of`] reads them by name.
pub(super) const COLUMNS: &str = "id, library, borrower, isbn, reference, lending_id, state, \
     begun, accepted, due, licence_id, licence_type, ended, end_reason, refusal_code, \
     refusal_message, refusal_retry, progress, forgotten, changed";

/// Converts a row to a loan.
pub(super) fn loan_of(row: &PgRow) -> Result<Loan, LedgerError> {
    let id: Uuid = row.try_get("id").map_err(|error| LedgerError::damaged("?", &error))?;
    let id = id.to_string();
    let record = record_of(row, &id)?;
    Loan::restore(record).map_err(|error| LedgerError::damaged(&id, &error))
}

/// Reads the key of a loan's row.
///
/// # Errors
/// [`LedgerError::Damaged`] for the row with this id.
pub(super) fn key_of(row: &PgRow, id: &str) -> Result<LoanKey, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(id, error);
    let library: String = row.try_get("library").map_err(|error| wrong(&error))?;
    let borrower: Vec<u8> = row.try_get("borrower").map_err(|error| wrong(&error))?;
    let isbn: i64 = row.try_get("isbn").map_err(|error| wrong(&error))?;
    Ok(LoanKey {
        library: library.parse().map_err(|error| wrong(&error))?,
        borrower: Borrower::from_bytes(
            borrower.try_into().map_err(|_| wrong(&"the borrower is not 16 bytes"))?,
        ),
        isbn: isbn.to_string().parse().map_err(|error| wrong(&error))?,
    })
}

fn record_of(row: &PgRow, id: &str) -> Result<LoanRecord, LedgerError> {
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
    Ok(LoanRecord {
        id: LoanId::new(key.library, row.try_get("id").map_err(|error| wrong(&error))?),
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
    row: &PgRow,
    wrong: &dyn Fn(&dyn std::fmt::Display) -> LedgerError,
) -> Result<Option<Progress>, LedgerError> {
    let hundredths: Option<i16> = row.try_get("progress").map_err(|error| wrong(&error))?;
    let progress = |hundredths: i16| {
        let hundredths = u16::try_from(hundredths).map_err(|error| wrong(&error))?;
        Progress::of_hundredths(hundredths).map_err(|error| wrong(&error))
    };
    hundredths.map(progress).transpose()
}

/// Converts a row of the history of `loan`.
pub(super) fn history_of(loan: LoanId, row: &PgRow) -> Result<HistoryRow, LedgerError> {
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
