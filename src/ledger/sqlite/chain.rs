//! The audit trail in the file: its newest link, and the checks at the opening.

use std::path::Path;

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection};

use super::anchors::is_pruned;
use crate::ledger::LedgerError;
use crate::ledger::audit::head_file::{self, StoredHead};
use crate::ledger::audit::{AuditKey, Head, StoredStep};
use crate::ledger::stored_row::step_of;

impl FromRow<'_, SqliteRow> for StoredStep {
    fn from_row(row: &SqliteRow) -> Result<StoredStep, sqlx::Error> {
        step_of(row)
    }
}

/// Reads the newest link of a ledger.
pub(in crate::ledger) async fn read_head(
    connection: &mut SqliteConnection,
) -> Result<Head, sqlx::Error> {
    let row = sqlx::query("SELECT number, mac FROM history ORDER BY number DESC LIMIT 1");
    match row.fetch_optional(connection).await? {
        Some(row) => Ok(Head { number: row.try_get("number")?, mac: row.try_get("mac")? }),
        None => Ok(Head::default()),
    }
}

/// Reads the head file of a ledger.
///
/// # Errors
/// [`LedgerError::File`] if it cannot be read. It may name a newer ledger.
pub(super) fn stored_head(ledger: &Path) -> Result<StoredHead, LedgerError> {
    head_file::read(ledger)
        .map_err(|source| LedgerError::File { file: head_file::path(ledger), source })
}

/// Returns whether the head file has a link, or the ledger no step. Otherwise nothing shows that
/// the ledger is the newest.
pub(super) async fn has_head_file(
    connection: &mut SqliteConnection,
    ledger: &Path,
) -> Result<bool, LedgerError> {
    let head = read_head(connection).await;
    let head = head.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })?;
    Ok(head.number == 0 || stored_head(ledger)?.link().is_some())
}

/// Checks that the link in the head file is in the chain, and returns the newest link.
///
/// If it is not, the last steps were removed, or an older copy replaced the ledger. Opening such a
/// ledger would overwrite the head file and hide that.
pub(super) async fn check_head_file(
    connection: &mut SqliteConnection,
    ledger: &Path,
) -> Result<Head, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let head = read_head(connection).await.map_err(failed)?;
    let Some(stored_head) = stored_head(ledger)?.link() else { return Ok(head) };
    let query =
        sqlx::query_scalar("SELECT mac FROM history WHERE number = ?").bind(stored_head.number);
    let mac: Option<Vec<u8>> = query.fetch_optional(&mut *connection).await.map_err(failed)?;
    if mac.as_ref() == Some(&stored_head.mac)
        || is_pruned(connection, &stored_head).await.map_err(failed)?
    {
        return Ok(head);
    }
    Err(LedgerError::HeadMissing { file: ledger.to_owned(), head_file: head_file::path(ledger) })
}

/// Computes the hashes of steps from versions without a chain. No such version has written steps
/// after a step of version 2, so those are damaged or forged: they get no hash, and no process
/// opens the ledger.
pub(super) async fn fill_in_hashes(
    connection: &mut SqliteConnection,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    const UNLINKED: &str = "SELECT * FROM history WHERE mac IS NULL ORDER BY number";
    const IS_NEWER: &str = "SELECT EXISTS (SELECT 1 FROM history WHERE version >= 2)";
    let steps: Vec<StoredStep> = sqlx::query_as(UNLINKED).fetch_all(&mut *connection).await?;
    let Some(first) = steps.first() else { return Ok(()) };
    if sqlx::query_scalar(IS_NEWER).fetch_one(&mut *connection).await? {
        let number = first.number;
        return Err(sqlx::Error::Decode(format!("step {number} of the trail has no hash").into()));
    }
    let before = sqlx::query("SELECT number, mac FROM history WHERE number = ?");
    let before = before.bind(first.number - 1).fetch_optional(&mut *connection).await?;
    let mut head = match before {
        Some(row) => Head { number: row.try_get("number")?, mac: row.try_get("mac")? },
        None => Head::default(),
    };
    for step in &steps {
        head = step.link_after(&head, key);
        let update = sqlx::query("UPDATE history SET mac = ? WHERE number = ?");
        update.bind(&head.mac).bind(head.number).execute(&mut *connection).await?;
    }
    Ok(())
}
