//! Removes old loans with their steps and tallies, in short transactions, also while a gate is
//! running.
//!
//! Circulation prunes loans that Bokbasen never accepted, and the command line prunes ended loans.
//! Both use a separate connection, so a failure here does not fail other commands.
//!
//! In the audit trail, an anchor replaces the removed steps. Its seal needs the audit key, so an
//! anchor cannot be forged, and [`crate::ledger::verify`] can continue after it. Steps are verified before
//! they are removed, so pruning never hides a change. The newest step is never pruned, because the
//! next step continues from it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, Row, Sqlite, SqliteConnection,
};

use super::maintenance;
use super::open::write_options;
use super::row::COLUMNS;
use crate::ledger::audit::{self, Anchor, AuditKey, Head};
use crate::ledger::{Ledger, LedgerError};

/// The number of loans that one transaction removes, and the pause before the next transaction, in
/// which the gate can write.
const BATCH_SIZE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// The maximum number of retained loans that are reported.
const MAX_REPORTED: usize = 20;

/// The kinds of loans that [`prune`] removes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prunable {
    /// Loans that Bokbasen never accepted and whose refusal is no longer active at `now`.
    NeverLent {
        /// Only loans that last changed before this time.
        before: Timestamp,
        /// The time at which a refusal must be over.
        now: Timestamp,
    },
    /// Ended loans whose end Bokbasen has acknowledged and whose borrower is forgotten.
    Ended {
        /// Only loans that ended before this time.
        before: Timestamp,
    },
}

/// The result of [`prune`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// The number of removed loans.
    pub loans: u64,
    /// The loans that were retained because their row is damaged or was changed, as sentences.
    pub left: Vec<String>,
}

impl Ledger {
    /// Removes loans with [`prune`].
    ///
    /// # Errors
    /// [`LedgerError`]; loans that were already removed stay removed.
    pub async fn prune(&self, which: Prunable) -> Result<Pruned, LedgerError> {
        prune(&self.file, &self.audit_key, which).await
    }
}

/// Removes loans, also while a gate is running.
///
/// # Errors
/// [`LedgerError`], also if a step to be removed does not verify. Loans that were already removed
/// stay removed.
pub async fn prune(ledger: &Path, key: &AuditKey, which: Prunable) -> Result<Pruned, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let mut reading = maintenance::open(ledger).await?;
    let mut candidates = candidates(&mut reading, which, "").await.map_err(failed)?;
    let mut pruned = Pruned::default();
    if candidates.is_empty() {
        return Ok(pruned);
    }
    let mut connection = write_options(ledger).connect().await.map_err(failed)?;
    while let Some(last) = candidates.last().cloned() {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        prune_batch(&mut transaction, key, which, &candidates, &mut pruned).await.map_err(
            |error| match error {
                LedgerError::Database { source, .. } => failed(source),
                other => other,
            },
        )?;
        transaction.commit().await.map_err(failed)?;
        tokio::time::sleep(PAUSE).await;
        candidates = self::candidates(&mut reading, which, &last).await.map_err(failed)?;
    }
    connection.close().await.map_err(failed)?;
    Ok(pruned)
}

impl Prunable {
    /// Returns the condition on a row, and the time to bind to it.
    fn condition(self) -> (&'static str, Timestamp) {
        match self {
            Prunable::NeverLent { before, .. } => (
                "(state = 'refused' OR end_reason = 'rejected') AND accepted IS NULL \
                 AND state IN ('refused', 'ended') AND changed < ?",
                before,
            ),
            Prunable::Ended { before } => (
                "state = 'ended' AND forgotten IS NOT NULL AND coalesce(ended, changed) < ?",
                before,
            ),
        }
    }

    /// Returns whether a refusal is still active. It is needed to prevent another begin.
    fn is_refusal_active(self, row: &SqliteRow) -> Result<bool, sqlx::Error> {
        let Prunable::NeverLent { now, .. } = self else { return Ok(false) };
        let retry: Option<i64> = row.try_get("refusal_retry")?;
        Ok(retry.is_some_and(|retry| retry > now.as_millisecond()))
    }
}

/// Returns the next candidates in the order of their ids. They are read outside of the transaction,
/// which checks them again.
async fn candidates(
    connection: &mut SqliteConnection,
    which: Prunable,
    after: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let (condition, before) = which.condition();
    // Ended loans are scanned from the oldest on. Loans that were never lent are rare and have an
    // index.
    let index =
        if let Prunable::NeverLent { .. } = which { "INDEXED BY loans_never_lent" } else { "" };
    let sql = format!(
        "SELECT id FROM loans {index} WHERE {condition} AND id > ? ORDER BY id LIMIT {BATCH_SIZE}"
    );
    let query =
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(before.as_millisecond()).bind(after.to_owned());
    query.fetch_all(connection).await
}

async fn prune_batch(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    which: Prunable,
    candidates: &[String],
    pruned: &mut Pruned,
) -> Result<(), LedgerError> {
    let failed = crate::ledger::batch::database;
    let newest = Head::read(&mut *connection).await.map_err(failed)?.number;
    let mut loans = Vec::new();
    for row in rows(&mut *connection, which, candidates).await.map_err(failed)? {
        let last: Option<i64> = row.try_get("number").map_err(failed)?;
        if last == Some(newest) || which.is_refusal_active(&row).map_err(failed)? {
            continue;
        }
        let id: String = row.try_get("id").map_err(failed)?;
        match audit::row_matches(&row, key) {
            Ok(Some(_)) => loans.push(id),
            Ok(None) => pruned.report_left(format!("loan {id} is not as its last step left it")),
            Err(error) => pruned.report_left(error.to_string()),
        }
    }
    if loans.is_empty() {
        return Ok(());
    }
    anchor_steps(&mut *connection, key, &loans).await?;
    for table in ["delivered WHERE loan", "loans WHERE id"] {
        let mut delete = QueryBuilder::<Sqlite>::new(format!("DELETE FROM {table} IN ("));
        push_ids(&mut delete, &loans);
        delete.build().persistent(false).execute(&mut *connection).await.map_err(failed)?;
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
    let (condition, before) = which.condition();
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {COLUMNS}, number, version, salt, loan_mac FROM loans LEFT JOIN history \
         ON number = (SELECT max(number) FROM history WHERE loan = loans.id) WHERE "
    ));
    let (start, end) = condition.split_once('?').unwrap_or((condition, ""));
    query.push(start).push_bind(before.as_millisecond()).push(end).push(" AND id IN (");
    push_ids(&mut query, candidates);
    query.build().persistent(false).fetch_all(connection).await
}

/// Replaces each run of consecutive steps of these loans with an anchor.
async fn anchor_steps(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    loans: &[String],
) -> Result<(), LedgerError> {
    let failed = crate::ledger::batch::database;
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM history WHERE loan IN (");
    push_ids(&mut query, loans);
    query.push(" ORDER BY number");
    let steps =
        query.build().persistent(false).fetch_all(&mut *connection).await.map_err(failed)?;
    let mut run: Option<(i64, Vec<u8>, Head)> = None;
    for step in &steps {
        let number: i64 = step.try_get("number").map_err(failed)?;
        let (first, before, head) = match run.take() {
            Some(run) if run.2.number + 1 == number => run,
            other => {
                if let Some((first, before, last)) = other {
                    replace_run(&mut *connection, key, first, &before, last).await?;
                }
                let before = mac_before(&mut *connection, number).await?;
                (number, before.clone(), Head { number: number - 1, mac: before })
            }
        };
        let next = audit::next_link(&head, step, key).map_err(failed)?;
        if step.try_get::<Option<Vec<u8>>, _>("mac").map_err(failed)?.as_ref() != Some(&next.mac) {
            return Err(unverified(number));
        }
        run = Some((first, before, next));
    }
    if let Some((first, before, last)) = run {
        replace_run(connection, key, first, &before, last).await?;
    }
    Ok(())
}

/// Replaces a run of steps with an anchor, merged with adjacent anchors.
async fn replace_run(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    first: i64,
    before: &[u8],
    last: Head,
) -> Result<(), LedgerError> {
    let failed = crate::ledger::batch::database;
    let delete = sqlx::query("DELETE FROM history WHERE number BETWEEN ? AND ?");
    delete.bind(first).bind(last.number).execute(&mut *connection).await.map_err(failed)?;
    let (mut first, mut before, mut end) = (first, before.to_vec(), last);
    if let Some(left) = anchor_where(&mut *connection, "last", first - 1).await? {
        let before_left = mac_before(&mut *connection, left.first).await?;
        if !left.is_genuine(&before_left, key) {
            return Err(unverified(left.first));
        }
        (first, before) = (left.first, before_left);
    }
    if let Some(right) = anchor_where(&mut *connection, "first", end.number + 1).await? {
        if !right.is_genuine(&end.mac, key) {
            return Err(unverified(right.first));
        }
        end = right.end();
    }
    let delete = sqlx::query("DELETE FROM anchors WHERE first >= ? AND last <= ?");
    delete.bind(first).bind(end.number).execute(&mut *connection).await.map_err(failed)?;
    let insert = sqlx::query("INSERT INTO anchors (first, last, mac, seal) VALUES (?, ?, ?, ?)");
    let insert =
        insert.bind(first).bind(end.number).bind(&end.mac).bind(key.seal(first, &before, &end));
    insert.execute(connection).await.map(drop).map_err(failed)
}

async fn anchor_where(
    connection: &mut SqliteConnection,
    column: &'static str,
    number: i64,
) -> Result<Option<Anchor>, LedgerError> {
    let sql = format!("SELECT first, last, mac, seal FROM anchors WHERE {column} = ?");
    let anchor = sqlx::query_as(AssertSqlSafe(sql)).bind(number).fetch_optional(connection).await;
    anchor.map_err(crate::ledger::batch::database)
}

/// Returns the hash of the previous step; empty for the first.
async fn mac_before(
    connection: &mut SqliteConnection,
    number: i64,
) -> Result<Vec<u8>, LedgerError> {
    if number <= 1 {
        return Ok(Vec::new());
    }
    let step = sqlx::query_scalar("SELECT mac FROM history WHERE number = ? AND mac IS NOT NULL");
    let step = step
        .bind(number - 1)
        .fetch_optional(&mut *connection)
        .await
        .map_err(crate::ledger::batch::database)?;
    if let Some(mac) = step {
        return Ok(mac);
    }
    let anchor = anchor_where(connection, "last", number - 1).await?;
    anchor.map(|anchor| anchor.mac).ok_or_else(|| unverified(number))
}

fn unverified(step: i64) -> LedgerError {
    LedgerError::Damaged {
        id: "?".to_owned(),
        why: format!(
            "the audit trail does not verify at step {step}, which is not removed; \
             run `loangate audit verify`"
        ),
    }
}

fn push_ids(query: &mut QueryBuilder<Sqlite>, ids: &[String]) {
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
}

impl Pruned {
    fn report_left(&mut self, sentence: String) {
        if self.left.len() < MAX_REPORTED {
            self.left.push(sentence);
        }
    }
}
