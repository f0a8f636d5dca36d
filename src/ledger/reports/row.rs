//! Conversion of the rows of reports, for both stores.

use std::fmt;

use jiff::Timestamp;
use uuid::Uuid;

use super::types::{Measure, Report, ReportModel, ReportPosition};
use crate::ledger::LedgerError;
use crate::ledger::states::timestamp;
use crate::ledger::stored_row::StoredRow;
use crate::loan::{LoanId, Progress};

/// The columns of a report, without the bucket of PostgreSQL.
pub(in crate::ledger) const COLUMNS: &str = "library, model, subject, loan, isbn, licence_id, \
     licence_type, date, evidence, progress, covered, size, measured, price, state, owner, \
     attempts, sent, note, changed, due_since";

/// Converts a row to a report.
pub(in crate::ledger) fn report_of(row: &impl StoredRow) -> Result<Report, LedgerError> {
    let id = row.id("loan").map_err(|error| LedgerError::damaged("?", &error))?;
    read(row, &id).map_err(|why| LedgerError::damaged(&format!("{id} (its report)"), &why))
}

/// Returns what is wrong with a row, as a sentence.
pub(in crate::ledger) fn check_row(row: &impl StoredRow) -> Option<String> {
    let report = match report_of(row) {
        Ok(report) => report,
        Err(error) => return Some(error.to_string()),
    };
    let id = report.loan.to_string();
    let expected = match (report.model, &report.licence_id) {
        (ReportModel::Package, Some(licence)) => licence,
        (ReportModel::Package, None) | (ReportModel::PayPerLoan, _) => &id,
    };
    (report.subject != *expected)
        .then(|| format!("the report of loan {id} is in the books as that of {}", report.subject))
}

/// Returns the position after a page of a listing; none after the last page. A damaged row counts
/// too, unless its position itself cannot be read.
pub(in crate::ledger) fn end_of_page(
    rows: &[impl StoredRow],
    limit: u32,
) -> Option<ReportPosition> {
    is_full(rows, limit).then(|| rows.iter().rev().find_map(position)).flatten()
}

/// Returns the id in this column of the last row of a page; none after the last page.
pub(in crate::ledger) fn next_of(
    rows: &[impl StoredRow],
    column: &str,
    limit: u32,
) -> Option<Uuid> {
    let last = rows.last().filter(|_| is_full(rows, limit))?;
    last.id(column).ok()?.parse().ok()
}

fn is_full<T>(rows: &[T], limit: u32) -> bool {
    rows.len() as u64 >= u64::from(limit)
}

fn position(row: &impl StoredRow) -> Option<ReportPosition> {
    Some(ReportPosition {
        date: row.text("date").ok()?.parse().ok()?,
        library: row.text("library").ok()?.parse().ok()?,
        loan: row.id("loan").ok()?.parse().ok()?,
    })
}

/// Reads the columns, or returns why one of them cannot be read.
fn read(row: &impl StoredRow, id: &str) -> Result<Report, String> {
    let text = |column: &str| row.text(column).map_err(said);
    let library = text("library")?.parse().map_err(said)?;
    let uuid = id.parse().map_err(said)?;
    let isbn = row.number("isbn").map_err(said)?.to_string().parse().map_err(said)?;
    let attempts = row.number("attempts").map_err(said)?.unsigned_abs();
    let measured = time(row, "measured")?.ok_or("the time of its measure is missing")?;
    Ok(Report {
        loan: LoanId::new(library, uuid),
        model: text("model")?.parse().map_err(said)?,
        subject: text("subject")?,
        isbn,
        licence_id: row.optional_text("licence_id").map_err(said)?,
        licence_type: text("licence_type")?,
        date: text("date")?.parse().map_err(said)?,
        measure: Measure {
            evidence: text("evidence")?.parse().map_err(said)?,
            progress: progress(row)?,
            covered: count(row, "covered")?,
            size: count(row, "size")?,
            at: measured,
        },
        // A gate of an older version wrote no other.
        due_since: time(row, "due_since")?.unwrap_or(measured),
        price: count(row, "price")?,
        state: text("state")?.parse().map_err(said)?,
        owner: row.optional_id("owner").map_err(said)?.map(Into::into),
        attempts,
        sent: time(row, "sent")?,
        note: row.optional_text("note").map_err(said)?,
        changed: time(row, "changed")?.ok_or("the time of its last change is missing")?,
    })
}

fn progress(row: &impl StoredRow) -> Result<Option<Progress>, String> {
    let stored = row.small_number("progress").map_err(said)?;
    let progress = |hundredths: i64| {
        Progress::of_hundredths(u16::try_from(hundredths).map_err(said)?).map_err(said)
    };
    stored.map(progress).transpose()
}

fn count(row: &impl StoredRow, column: &str) -> Result<Option<u64>, String> {
    let stored = row.optional_number(column).map_err(said)?;
    stored.map(|number| u64::try_from(number).map_err(said)).transpose()
}

fn time(row: &impl StoredRow, column: &str) -> Result<Option<Timestamp>, String> {
    let millis = row.optional_number(column).map_err(said)?;
    millis.map(|millis| timestamp(millis).map_err(said)).transpose()
}

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}
