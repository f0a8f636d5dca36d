//! Removing old loans: with their steps and deliveries, in short transactions beside a running
//! gate.
//!
//! Circulation prunes what Bokbasen never accepted; the command line prunes what has ended. Both
//! use a connection of their own, so that a failure here fails no other command. In the audit trail
//! an anchor takes the place of the steps: a seal that only the key makes, so that
//! [`super::verify`] crosses the gap, and nobody else can make one. Steps are verified before they
//! are removed, so pruning never hides that one was changed. The newest step is never pruned: the
//! trail goes on from it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, Row, Sqlite, SqliteConnection,
};

use super::audit::{self, Anchor, AuditKey, Head};
use super::open::write_options;
use super::row::COLUMNS;
use super::{Ledger, LedgerError, maintenance};

/// How many loans one transaction removes, and how long the gate has the ledger to itself before
/// the next.
const BATCH: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(50);
/// The maximum number of loans that are named because they were left.
const MAX_REPORTED: usize = 20;

/// Which loans are pruned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prunable {
    /// Those that Bokbasen never accepted, last changed before this time, whose refusal no longer
    /// holds at `now`.
    NeverLent {
        /// Only loans older than this.
        before: Timestamp,
        /// The current time.
        now: Timestamp,
    },
    /// Those that ended before this time, whose end Bokbasen has acknowledged and whose borrower is
    /// forgotten.
    Ended {
        /// Only loans older than this.
        before: Timestamp,
    },
}

/// What was pruned.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// How many loans.
    pub loans: u64,
    /// Loans that were left because their row is damaged or was changed, as sentences.
    pub left: Vec<String>,
}

impl Ledger {
    /// Removes loans. See [`prune`].
    ///
    /// # Errors
    /// [`LedgerError`]; what was removed until then stays removed.
    pub async fn prune(&self, which: Prunable) -> Result<Pruned, LedgerError> {
        prune(&self.file, &self.audit_key, which).await
    }
}

/// Removes loans, also beside a running gate.
///
/// # Errors
/// [`LedgerError`], also where the audit trail does not verify at a step that would be removed;
/// what was removed until then stays removed.
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
        tokio::time::sleep(BETWEEN).await;
        candidates = self::candidates(&mut reading, which, &last).await.map_err(failed)?;
    }
    connection.close().await.map_err(failed)?;
    Ok(pruned)
}

impl Prunable {
    /// The condition on a row, with one time that is bound.
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

    /// Whether a refusal still holds, so that another begin must not be sent.
    fn holds(self, row: &SqliteRow) -> Result<bool, sqlx::Error> {
        let Prunable::NeverLent { now, .. } = self else { return Ok(false) };
        let retry: Option<i64> = row.try_get("refusal_retry")?;
        Ok(retry.is_some_and(|retry| retry > now.as_millisecond()))
    }
}

/// The next loans in the order of their ids. They are read outside of the transaction, which checks
/// them again.
async fn candidates(
    connection: &mut SqliteConnection,
    which: Prunable,
    after: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let (condition, before) = which.condition();
    // What ended is searched from the oldest on; what was never lent is rare, and has an index.
    let index =
        if let Prunable::NeverLent { .. } = which { "INDEXED BY loans_never_lent" } else { "" };
    let sql = format!(
        "SELECT id FROM loans {index} WHERE {condition} AND id > ? ORDER BY id LIMIT {BATCH}"
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
    let failed = super::batch::database;
    let newest = Head::read(&mut *connection).await.map_err(failed)?.number;
    let mut loans = Vec::new();
    for row in rows(&mut *connection, which, candidates).await.map_err(failed)? {
        let last: Option<i64> = row.try_get("number").map_err(failed)?;
        if last == Some(newest) || which.holds(&row).map_err(failed)? {
            continue;
        }
        let id: String = row.try_get("id").map_err(failed)?;
        match audit::row_matches(&row, key) {
            Ok(Some(_)) => loans.push(id),
            Ok(None) => pruned.leave(format!("loan {id} is not as its last step left it")),
            Err(error) => pruned.leave(error.to_string()),
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

/// The rows of those candidates that are still prunable, with the last step of each.
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

/// Removes the steps of these loans, and puts an anchor in the place of each run of them.
async fn anchor_steps(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    loans: &[String],
) -> Result<(), LedgerError> {
    let failed = super::batch::database;
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
        let next = audit::linked(&head, step, key).map_err(failed)?;
        if step.try_get::<Option<Vec<u8>>, _>("mac").map_err(failed)?.as_ref() != Some(&next.mac) {
            return Err(broken(number));
        }
        run = Some((first, before, next));
    }
    if let Some((first, before, last)) = run {
        replace_run(connection, key, first, &before, last).await?;
    }
    Ok(())
}

/// Replaces a run of steps by an anchor, which takes in those beside it.
async fn replace_run(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    first: i64,
    before: &[u8],
    last: Head,
) -> Result<(), LedgerError> {
    let failed = super::batch::database;
    let delete = sqlx::query("DELETE FROM history WHERE number BETWEEN ? AND ?");
    delete.bind(first).bind(last.number).execute(&mut *connection).await.map_err(failed)?;
    let (mut first, mut before, mut end) = (first, before.to_vec(), last);
    if let Some(left) = anchor_where(&mut *connection, "last", first - 1).await? {
        let before_left = mac_before(&mut *connection, left.first).await?;
        if !left.is_genuine(&before_left, key) {
            return Err(broken(left.first));
        }
        (first, before) = (left.first, before_left);
    }
    if let Some(right) = anchor_where(&mut *connection, "first", end.number + 1).await? {
        if !right.is_genuine(&end.mac, key) {
            return Err(broken(right.first));
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
    anchor.map_err(super::batch::database)
}

/// The hash of the step before this one; empty for the first.
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
        .map_err(super::batch::database)?;
    if let Some(mac) = step {
        return Ok(mac);
    }
    let anchor = anchor_where(connection, "last", number - 1).await?;
    anchor.map(|anchor| anchor.mac).ok_or_else(|| broken(number))
}

fn broken(step: i64) -> LedgerError {
    LedgerError::Damaged {
        id: "?".to_owned(),
        why: format!(
            "the audit trail does not verify at step {step}, which is not removed; run `loangate audit verify`"
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
    fn leave(&mut self, sentence: String) {
        if self.left.len() < MAX_REPORTED {
            self.left.push(sentence);
        }
    }
}
