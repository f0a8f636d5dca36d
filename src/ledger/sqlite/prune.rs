//! Removes old loans with their steps and tallies, in short transactions, also while a gate is
//! running.
//!
//! Circulation prunes loans that Bokbasen never accepted, and the command line prunes ended loans.
//! Both use a separate connection, so a failure here does not fail other commands.
//!
//! In the audit trail, an anchor replaces the removed steps. Its seal needs the audit key, so an
//! anchor cannot be forged, and [`super::verify()`] can continue after it. Steps are verified
//! before they are removed, so pruning never hides a change. The newest step is never pruned,
//! because the next step continues from it.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteRow;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, Row, Sqlite, SqliteConnection,
};

use super::anchors::{anchor_steps, steps_of};
use super::chain::read_head;
use super::connection::{BEGIN, write_options};
use super::verify::{LOANS_WITH_LAST_STEP, row_matches};
use super::{copy_marks, maintenance};
use crate::ledger::audit::AuditKey;
use crate::ledger::findings;
use crate::ledger::states::{is_refusal_active, prunable, prunable_age};
use crate::ledger::store::WorkError;
use crate::ledger::{LedgerError, Prunable, Pruned, RowsRead};

/// The number of loans that one transaction removes, and the pause before the next transaction, in
/// which the gate can write.
const BATCH_SIZE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// How long loans are counted.
const LONGEST_COUNT: Duration = Duration::from_secs(4);
/// The number of SQLite's instructions between looks at the clock.
const INSTRUCTIONS: i32 = 10_000;

/// Removes loans, also while a gate is running.
///
/// # Errors
/// [`LedgerError`], also if a step to be removed does not verify. Loans that were already removed
/// stay removed.
pub(in crate::ledger) async fn prune(
    ledger: &Path,
    key: &AuditKey,
    which: Prunable,
    rows: &RowsRead,
) -> Result<Pruned, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let mut reading = maintenance::open(ledger).await?;
    copy_marks::read(&mut reading).await.map_err(failed)?.allow_pruning()?;
    let mut candidates = candidates(&mut reading, which, "").await.map_err(failed)?;
    let mut pruned = Pruned::default();
    if candidates.is_empty() {
        return Ok(pruned);
    }
    let mut connection = write_options(ledger).connect().await.map_err(failed)?;
    while let Some(last) = candidates.last().cloned() {
        let mut transaction = connection.begin_with(BEGIN).await.map_err(failed)?;
        let removed = prune_batch(&mut transaction, key, which, &candidates, &mut pruned).await;
        WorkError::split(removed).map_err(failed)??;
        transaction.commit().await.map_err(failed)?;
        rows.add(candidates.len());
        tokio::time::sleep(PAUSE).await;
        candidates = self::candidates(&mut reading, which, &last).await.map_err(failed)?;
    }
    connection.close().await.map_err(failed)?;
    Ok(pruned)
}

/// Sets how many loans [`prune`] will read, unless counting them takes long: it keeps the log of
/// the ledger from being emptied.
pub(in crate::ledger) async fn count_prunable(ledger: &Path, which: Prunable, rows: &RowsRead) {
    let (condition, before) = condition(which);
    let sql = format!("SELECT count(*) FROM {condition}");
    let count = async {
        let mut reading = maintenance::open(ledger).await.ok()?;
        let until = Instant::now() + LONGEST_COUNT;
        let is_in_time = move || Instant::now() < until;
        reading.lock_handle().await.ok()?.set_progress_handler(INSTRUCTIONS, is_in_time);
        let count = sqlx::query_scalar(AssertSqlSafe(sql)).bind(before);
        let count = count.fetch_one(&mut reading).await.ok();
        let _ = reading.close().await;
        count
    };
    rows.expect(count.await.unwrap_or(0));
}

/// Returns the next candidates in the order of their ids. They are read outside of the transaction,
/// which checks them again.
async fn candidates(
    connection: &mut SqliteConnection,
    which: Prunable,
    after: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let (condition, before) = condition(which);
    let sql = format!("SELECT id FROM {condition} AND id > ? ORDER BY id LIMIT {BATCH_SIZE}");
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(before).bind(after.to_owned());
    query.fetch_all(connection).await
}

/// Returns the table of the candidates with their condition, and the value of its parameter.
fn condition(which: Prunable) -> (String, i64) {
    let (condition, (age, before)) = (prunable(which), prunable_age(which));
    // Ended loans are scanned from the oldest on. Loans that were never lent are rare and have an
    // index.
    let index =
        if let Prunable::NeverLent { .. } = which { "INDEXED BY loans_never_lent" } else { "" };
    (format!("loans {index} WHERE {condition} AND {age} < ?"), before.as_millisecond())
}

async fn prune_batch(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    which: Prunable,
    candidates: &[String],
    pruned: &mut Pruned,
) -> Result<(), WorkError> {
    // Again: a copy may have begun, and this transaction has the lock of writers.
    copy_marks::read(&mut *connection).await?.allow_pruning()?;
    let newest = read_head(&mut *connection).await?.number;
    let mut loans = Vec::new();
    for row in rows(&mut *connection, which, candidates).await? {
        let last: Option<i64> = row.try_get("number")?;
        if last == Some(newest) || is_refusal_active(which, row.try_get("refusal_retry")?) {
            continue;
        }
        let id: String = row.try_get("id")?;
        match row_matches(&row, key) {
            Ok(Some(_)) => loans.push(id),
            Ok(None) => pruned.report_left(findings::changed_loan(&id)),
            Err(error) => pruned.report_left(error.to_string()),
        }
    }
    if loans.is_empty() {
        return Ok(());
    }
    let steps = steps_of(&mut *connection, &loans).await?;
    anchor_steps(&mut *connection, key, steps).await?;
    for table in ["delivered WHERE loan", "loans WHERE id"] {
        let mut delete = QueryBuilder::<Sqlite>::new(format!("DELETE FROM {table} IN ("));
        push_ids(&mut delete, &loans);
        delete.build().persistent(false).execute(&mut *connection).await?;
    }
    pruned.loans += loans.len() as u64;
    Ok(())
}

/// Returns the rows of the candidates that are still prunable, each with its last step.
async fn rows(
    connection: &mut SqliteConnection,
    which: Prunable,
    candidates: &[String],
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let (condition, (age, before)) = (prunable(which), prunable_age(which));
    let mut query = QueryBuilder::<Sqlite>::new(LOANS_WITH_LAST_STEP.as_str());
    query.push(format!(" WHERE {condition} AND {age} < "));
    query.push_bind(before.as_millisecond()).push(" AND id IN (");
    push_ids(&mut query, candidates);
    query.build().persistent(false).fetch_all(connection).await
}

/// Appends ids to the list of an IN, and closes the list.
pub(super) fn push_ids(query: &mut QueryBuilder<Sqlite>, ids: &[String]) {
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
}
