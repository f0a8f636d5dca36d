//! Conversion of rows to loans, their history and the audit trail, for both stores.
//!
//! The stores name their columns alike. [`StoredRow`] reads a column of either, so a row means the
//! same in both.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::audit::{Anchor, StoredStep};
use super::states::timestamp;
use super::{HistoryRow, LedgerError};
use crate::loan::{
    Borrower, Loan, LoanId, LoanKey, LoanRecord, Progress, Ranges, Reference, Refusal, Tally, Terms,
};

/// The columns of a loan, in the order in which the statement of SQLite binds them. [`loan_of`]
/// reads them by name.
pub(super) const COLUMNS: &str = "id, library, borrower, isbn, reference, lending_id, state, \
     begun, accepted, due, licence_id, licence_type, ended, end_reason, refusal_code, \
     refusal_message, refusal_retry, progress, forgotten, changed";

/// Reads the columns of a row by their names.
pub(super) trait StoredRow {
    /// Returns the UUID of a loan as a text. In SQLite it may be any text.
    fn id(&self, column: &str) -> Result<String, sqlx::Error>;
    /// Returns the name of a process, if there is one.
    fn optional_id(&self, column: &str) -> Result<Option<String>, sqlx::Error>;
    fn small_number(&self, column: &str) -> Result<Option<i64>, sqlx::Error>;
    fn text(&self, column: &str) -> Result<String, sqlx::Error>;
    fn optional_text(&self, column: &str) -> Result<Option<String>, sqlx::Error>;
    fn number(&self, column: &str) -> Result<i64, sqlx::Error>;
    fn optional_number(&self, column: &str) -> Result<Option<i64>, sqlx::Error>;
    fn bytes(&self, column: &str) -> Result<Vec<u8>, sqlx::Error>;
    fn optional_bytes(&self, column: &str) -> Result<Option<Vec<u8>>, sqlx::Error>;
}

/// The methods of the columns that have the same type in both databases.
macro_rules! read_columns {
    ($($name:ident: $type:ty),+ $(,)?) => {
        $(fn $name(&self, column: &str) -> Result<$type, sqlx::Error> {
            self.try_get(column)
        })+
    };
    () => {
        read_columns! {
            text: String, optional_text: Option<String>, number: i64,
            optional_number: Option<i64>, bytes: Vec<u8>, optional_bytes: Option<Vec<u8>>,
        }
    };
}

impl StoredRow for SqliteRow {
    fn id(&self, column: &str) -> Result<String, sqlx::Error> {
        self.try_get(column)
    }

    fn optional_id(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column)
    }

    fn small_number(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }

    read_columns!();
}

impl StoredRow for PgRow {
    fn id(&self, column: &str) -> Result<String, sqlx::Error> {
        self.try_get(column).map(|id: Uuid| id.to_string())
    }

    fn optional_id(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column).map(|id: Option<Uuid>| id.map(|id| id.to_string()))
    }

    fn small_number(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column).map(|number: Option<i16>| number.map(i64::from))
    }

    read_columns!();
}

/// Converts a row to a loan.
pub(super) fn loan_of(row: &impl StoredRow) -> Result<Loan, LedgerError> {
    let id = row.id("id").map_err(|error| LedgerError::damaged("?", &error))?;
    let record = record_of(row, &id)?;
    Loan::restore(record).map_err(|error| LedgerError::damaged(&id, &error))
}

/// Reads the key of a loan's row.
///
/// # Errors
/// [`LedgerError::Damaged`] for the row with this id.
pub(super) fn key_of(row: &impl StoredRow, id: &str) -> Result<LoanKey, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(id, error);
    let library = row.text("library").map_err(|error| wrong(&error))?;
    let borrower = row.bytes("borrower").map_err(|error| wrong(&error))?;
    let isbn = row.number("isbn").map_err(|error| wrong(&error))?;
    Ok(LoanKey {
        library: library.parse().map_err(|error| wrong(&error))?,
        borrower: Borrower::from_bytes(
            borrower.try_into().map_err(|_| wrong(&"the borrower is not 16 bytes"))?,
        ),
        isbn: isbn.to_string().parse().map_err(|error| wrong(&error))?,
    })
}

fn record_of(row: &impl StoredRow, id: &str) -> Result<LoanRecord, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(id, error);
    let text = |column: &str| row.text(column).map_err(|error| wrong(&error));
    let optional = |column: &str| row.optional_text(column).map_err(|error| wrong(&error));
    let time = |column: &str| -> Result<Option<Timestamp>, LedgerError> {
        let millis = row.optional_number(column).map_err(|error| wrong(&error))?;
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
    row: &impl StoredRow,
    wrong: &dyn Fn(&dyn std::fmt::Display) -> LedgerError,
) -> Result<Option<Progress>, LedgerError> {
    let progress = |hundredths: i64| {
        let hundredths = u16::try_from(hundredths).map_err(|error| wrong(&error))?;
        Progress::of_hundredths(hundredths).map_err(|error| wrong(&error))
    };
    row.small_number("progress").map_err(|error| wrong(&error))?.map(progress).transpose()
}

/// Converts a row of the history of `loan`.
pub(super) fn history_of(loan: LoanId, row: &impl StoredRow) -> Result<HistoryRow, LedgerError> {
    let wrong = |error: &dyn std::fmt::Display| {
        LedgerError::damaged(&format!("{loan} (its history)"), error)
    };
    let at = row.number("at").map_err(|error| wrong(&error))?;
    let from = row.optional_text("from_state").map_err(|error| wrong(&error))?;
    let to = row.text("to_state").map_err(|error| wrong(&error))?;
    Ok(HistoryRow {
        at: timestamp(at).map_err(|error| wrong(&error))?,
        from: from.map(|from| from.parse().map_err(|error| wrong(&error))).transpose()?,
        to: to.parse().map_err(|error| wrong(&error))?,
        cause: row.text("cause").map_err(|error| wrong(&error))?,
        detail: row.optional_text("detail").map_err(|error| wrong(&error))?,
    })
}

/// Converts a row to the tally of a file under a loan: the UUID, the file and the tally.
pub(super) fn tally_of(row: &impl StoredRow) -> Result<(String, String, Tally), LedgerError> {
    let loan = row.id("loan").map_err(|error| LedgerError::damaged("?", &error))?;
    let wrong = |error: sqlx::Error| LedgerError::damaged(&loan, &error);
    let (file, bytes) = (row.text("file").map_err(wrong)?, row.number("bytes").map_err(wrong)?);
    let ranges = row.bytes("ranges").map_err(wrong)?;
    let ranges = Ranges::from_bytes(&ranges)
        .ok_or_else(|| LedgerError::damaged(&loan, &"the tally of a file cannot be read"))?;
    Ok((loan, file, Tally { bytes: bytes.unsigned_abs(), ranges }))
}

/// Converts a row to a step of the audit trail.
pub(super) fn step_of(row: &impl StoredRow) -> Result<StoredStep, sqlx::Error> {
    Ok(StoredStep {
        number: row.number("number")?,
        loan: row.id("loan")?,
        at: row.number("at")?,
        from_state: row.optional_text("from_state")?,
        to_state: row.text("to_state")?,
        cause: row.text("cause")?,
        detail: row.optional_text("detail")?,
        mac: row.optional_bytes("mac")?,
        version: row.number("version")?,
        loan_mac: row.optional_bytes("loan_mac")?,
    })
}

/// Converts a row to an anchor of the audit trail.
pub(super) fn anchor_of(row: &impl StoredRow) -> Result<Anchor, sqlx::Error> {
    Ok(Anchor {
        first: row.number("first")?,
        last: row.number("last")?,
        mac: row.bytes("mac")?,
        seal: row.bytes("seal")?,
    })
}
