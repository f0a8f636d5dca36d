//! Conversion of stored rows, for both stores.

use uuid::Uuid;

use super::rows::{DeliveredRow, DoubtRow, LoanRow, ReportRow, Row, StepRow, Table};
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;
use crate::ledger::stored_row::{StoredRow, loan_of};
use crate::loan::{IdentifierError, LibraryId};

impl Row {
    /// Converts a row of `table`.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] with the id of the loan.
    pub(super) fn read(
        table: Table,
        row: &impl StoredRow,
        key: &AuditKey,
    ) -> Result<Row, LedgerError> {
        let column = if table == Table::Loans { "id" } else { "loan" };
        let id = row.id(column).map_err(|error| LedgerError::damaged("?", &error))?;
        // A UUID has several spellings, but a hash covers one.
        let loan: Uuid = id
            .parse()
            .ok()
            .filter(|uuid: &Uuid| uuid.to_string() == id)
            .ok_or_else(|| LedgerError::damaged(&id, &"a loan's id is a UUID"))?;
        let wrong = |error: sqlx::Error| LedgerError::damaged(&id, &error);
        let library = row.text("library").map_err(wrong)?;
        let library =
            library.parse().map_err(|error: IdentifierError| LedgerError::damaged(&id, &error))?;
        let read = match table {
            Table::Loans => loan_row(row, library, loan).map(|row| Row::Loan(Box::new(row))),
            Table::Steps => {
                let step = step_row(row, library, loan).map_err(wrong)?;
                return with_loan_mac(step, row, key).map(|step| Row::Step(Box::new(step)));
            }
            Table::Accesses => step_row(row, library, loan).and_then(|step| {
                let chain = row.id("chain")?.parse().ok();
                Ok(Row::Step(Box::new(StepRow { chain, ..step })))
            }),
            Table::Delivered => delivered_row(row, library, loan).map(Row::Delivered),
            Table::Doubts => doubt_row(row, library, loan).map(Row::Doubt),
            Table::Reports => report_row(row, library, loan).map(|row| Row::Report(Box::new(row))),
        };
        read.map_err(wrong)
    }
}

fn loan_row(row: &impl StoredRow, library: LibraryId, id: Uuid) -> Result<LoanRow, sqlx::Error> {
    let owner = row.id("owner")?;
    Ok(LoanRow {
        library,
        id,
        borrower: row.bytes("borrower")?,
        isbn: row.number("isbn")?,
        reference: row.text("reference")?,
        lending_id: row.optional_text("lending_id")?,
        state: row.text("state")?,
        begun: row.number("begun")?,
        accepted: row.optional_number("accepted")?,
        due: row.optional_number("due")?,
        licence_id: row.optional_text("licence_id")?,
        licence_type: row.optional_text("licence_type")?,
        ended: row.optional_number("ended")?,
        end_reason: row.optional_text("end_reason")?,
        refusal_code: row.optional_text("refusal_code")?,
        refusal_message: row.optional_text("refusal_message")?,
        refusal_retry: row.optional_number("refusal_retry")?,
        progress: row.small_number("progress")?,
        forgotten: row.optional_number("forgotten")?,
        opened: row.optional_number("opened")?,
        assessed: row.optional_number("assessed")?,
        examine: row.optional_number("examine")?,
        changed: row.number("changed")?,
        owner: owner.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
    })
}

fn step_row(row: &impl StoredRow, library: LibraryId, loan: Uuid) -> Result<StepRow, sqlx::Error> {
    Ok(StepRow {
        library,
        loan,
        at: row.number("at")?,
        from_state: row.optional_text("from_state")?,
        to_state: row.text("to_state")?,
        cause: row.text("cause")?,
        detail: row.optional_text("detail")?,
        version: row.number("version")?,
        salt: row.optional_bytes("salt")?,
        loan_mac: row.optional_bytes("loan_mac")?,
        place: row.number("number")?,
        chain: None,
    })
}

/// Adds the hash of the loan's row to its last step, if the step is of version 1. PostgreSQL has no
/// loan without such a hash. The row of SQLite then also has the columns of the loan.
fn with_loan_mac(
    step: StepRow,
    row: &impl StoredRow,
    key: &AuditKey,
) -> Result<StepRow, LedgerError> {
    let is_uncovered = row.number("is_uncovered");
    let is_uncovered =
        is_uncovered.map_err(|error| LedgerError::damaged(&step.loan.to_string(), &error))?;
    if is_uncovered == 0 {
        return Ok(step);
    }
    let salt = *Uuid::new_v4().as_bytes();
    let loan_mac = Some(key.loan_mac(&salt, &loan_of(row)?));
    Ok(StepRow { version: 2, salt: Some(salt.to_vec()), loan_mac, ..step })
}

fn delivered_row(
    row: &impl StoredRow,
    library: LibraryId,
    loan: Uuid,
) -> Result<DeliveredRow, sqlx::Error> {
    let (file, bytes) = (row.text("file")?, row.number("bytes")?);
    Ok(DeliveredRow { library, loan, file, bytes, ranges: row.bytes("ranges")? })
}

fn doubt_row(
    row: &impl StoredRow,
    library: LibraryId,
    loan: Uuid,
) -> Result<DoubtRow, sqlx::Error> {
    Ok(DoubtRow { library, loan, since: row.number("since")?, run: row.number("run")? })
}

fn report_row(
    row: &impl StoredRow,
    library: LibraryId,
    loan: Uuid,
) -> Result<ReportRow, sqlx::Error> {
    let owner = row.optional_id("owner")?.map(|owner| owner.parse()).transpose();
    Ok(ReportRow {
        library,
        loan,
        model: row.text("model")?,
        subject: row.text("subject")?,
        isbn: row.number("isbn")?,
        licence_id: row.optional_text("licence_id")?,
        licence_type: row.text("licence_type")?,
        date: row.text("date")?,
        evidence: row.text("evidence")?,
        progress: row.small_number("progress")?,
        covered: row.optional_number("covered")?,
        size: row.optional_number("size")?,
        measured: row.number("measured")?,
        due_since: row.optional_number("due_since")?,
        price: row.optional_number("price")?,
        state: row.text("state")?,
        owner: owner.map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        attempts: row.number("attempts")?,
        sent: row.optional_number("sent")?,
        note: row.optional_text("note")?,
        changed: row.number("changed")?,
    })
}
