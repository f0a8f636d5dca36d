//! Verification of the audit trail, and the comparison of loans with their last steps.
//!
//! The command line calls [`verify`] and [`check_loans`], also while a gate is running. Pruning
//! compares loans before it removes them.

use std::path::Path;
use std::sync::LazyLock;

use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::chain::stored_head;
use super::maintenance;
use crate::ledger::audit::{
    Anchor, AuditKey, ExpectedEnd, Head, StoredStep, Verified, Walk, head_file,
};
use crate::ledger::findings;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::ledger::{LedgerError, RowsRead};

/// Selects every loan with its last step, for [`row_matches`]. A condition may be appended.
pub(super) static LOANS_WITH_LAST_STEP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, number, version, salt, loan_mac FROM loans LEFT JOIN history \
         ON number = (SELECT max(number) FROM history WHERE loan = loans.id)"
    )
});

/// Walks the chain of a ledger and compares every loan with its last step. A running gate does not
/// disturb it.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn verify(
    ledger: &Path,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Verified, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    const ANCHORS: &str = "SELECT first, last, mac, seal FROM anchors ORDER BY first";
    const STEPS: &str = "SELECT * FROM history ORDER BY number";
    const TOTAL: &str = "SELECT (SELECT count(*) FROM history) + (SELECT count(*) FROM loans)";
    // Read first: the ledger may grow between the two reads.
    let stored_head = stored_head(ledger)?.link();
    let can_miss_steps = stored_head.is_none();
    let mut connection = maintenance::open(ledger).await?;
    let mut reading = connection.begin().await.map_err(failed)?;
    // A damaged index must not keep the rest from being read.
    let total = sqlx::query_scalar(TOTAL).fetch_one(&mut *reading).await;
    rows.expect(total.unwrap_or(0));
    let anchors: Vec<Anchor> =
        sqlx::query_as(ANCHORS).fetch_all(&mut *reading).await.map_err(failed)?;
    let mut walk = Walk::new(key, Head::default());
    walk.expect(stored_head.map(|head| ExpectedEnd { head, place: "the head file".into() }));
    walk.add_anchors(anchors);
    if can_miss_steps {
        let file = head_file::path(ledger);
        walk.report(format!(
            "{} is missing or has no link, so removed last steps cannot be detected",
            file.display()
        ));
    }
    let mut steps = sqlx::query_as::<_, StoredStep>(STEPS).fetch(&mut *reading);
    while let Some(step) = steps.try_next().await.map_err(failed)? {
        walk.step(step);
        rows.add(1);
    }
    drop(steps);
    let mut verified = walk.end();
    compare_loans(&mut reading, key, &mut verified, rows).await.map_err(failed)?;
    Ok(verified)
}

/// Compares every loan with the hash in its last step, and returns the problems as sentences.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn check_loans(
    ledger: &Path,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Vec<String>, LedgerError> {
    let mut connection = maintenance::open(ledger).await?;
    let mut verified = Verified::default();
    let compared = compare_loans(&mut connection, key, &mut verified, rows).await;
    compared.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })?;
    Ok(verified.findings)
}

async fn compare_loans(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    verified: &mut Verified,
    read: &RowsRead,
) -> Result<(), sqlx::Error> {
    let mut rows = sqlx::query(LOANS_WITH_LAST_STEP.as_str()).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        read.add(1);
        match row_matches(&row, key) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => verified.uncovered += 1,
            Ok(None) => {
                let id: String = row.try_get("id")?;
                verified.report(findings::changed_loan(&id));
            }
            Err(error) => verified.report(error.to_string()),
        }
    }
    Ok(())
}

/// Compares the row of a loan, joined with its last step, with the hash in that step. Returns none
/// if they differ, and false if the step is of version 1 and has no such hash.
pub(super) fn row_matches(row: &SqliteRow, key: &AuditKey) -> Result<Option<bool>, LedgerError> {
    let loan = loan_of(row)?;
    let column = |error: sqlx::Error| LedgerError::damaged(&loan.id.to_string(), &error);
    match row.try_get::<Option<i64>, _>("version").map_err(column)? {
        None => Ok(None),
        Some(1) => Ok(Some(false)),
        Some(_) => {
            let salt: Option<Vec<u8>> = row.try_get("salt").map_err(column)?;
            let mac: Option<Vec<u8>> = row.try_get("loan_mac").map_err(column)?;
            let is_same = salt.is_some_and(|salt| Some(key.loan_mac(&salt, &loan)) == mac);
            Ok(is_same.then_some(true))
        }
    }
}
