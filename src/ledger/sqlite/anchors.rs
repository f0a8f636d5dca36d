//! Anchors in the audit trail: each replaces a run of steps that were pruned.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, QueryBuilder, Sqlite, SqliteConnection};

use super::prune::push_ids;
use crate::ledger::LedgerError;
use crate::ledger::audit::{Anchor, AuditKey, Head, StoredStep};
use crate::ledger::store::WorkError;
use crate::ledger::stored_row::anchor_of;

impl FromRow<'_, SqliteRow> for Anchor {
    fn from_row(row: &SqliteRow) -> Result<Anchor, sqlx::Error> {
        anchor_of(row)
    }
}

/// Consecutive steps of pruned loans.
struct StepRun {
    /// The number of the first step.
    first: i64,
    /// The hash before the first step.
    before: Vec<u8>,
    /// The link of the last step.
    last: Head,
}

/// Replaces each run of consecutive steps of these loans with an anchor.
///
/// # Errors
/// Rejects a step that does not verify, so that pruning never hides a change.
pub(super) async fn anchor_steps(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    loans: &[String],
) -> Result<(), WorkError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM history WHERE loan IN (");
    push_ids(&mut query, loans);
    query.push(" ORDER BY number");
    let query = query.build_query_as().persistent(false);
    let steps: Vec<StoredStep> = query.fetch_all(&mut *connection).await?;
    let mut current: Option<StepRun> = None;
    for step in &steps {
        let run = match current.take() {
            Some(run) if run.last.number + 1 == step.number => run,
            finished => {
                if let Some(run) = finished {
                    replace_run(&mut *connection, key, run).await?;
                }
                let before = mac_before(&mut *connection, step.number).await?;
                let last = Head { number: step.number - 1, mac: before.clone() };
                StepRun { first: step.number, before, last }
            }
        };
        let last = step.link_after(&run.last, key);
        if step.mac.as_ref() != Some(&last.mac) {
            return Err(unverified(step.number));
        }
        current = Some(StepRun { last, ..run });
    }
    if let Some(run) = current {
        replace_run(connection, key, run).await?;
    }
    Ok(())
}

/// Replaces a run of steps with an anchor, merged with adjacent anchors.
async fn replace_run(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    run: StepRun,
) -> Result<(), WorkError> {
    let StepRun { mut first, mut before, mut last } = run;
    let delete = sqlx::query("DELETE FROM history WHERE number BETWEEN ? AND ?");
    delete.bind(first).bind(last.number).execute(&mut *connection).await?;
    if let Some(left) = anchor_where(&mut *connection, "last", first - 1).await? {
        before = mac_before(&mut *connection, left.first).await?;
        if !left.is_genuine(&before, key) {
            return Err(unverified(left.first));
        }
        first = left.first;
    }
    if let Some(right) = anchor_where(&mut *connection, "first", last.number + 1).await? {
        if !right.is_genuine(&last.mac, key) {
            return Err(unverified(right.first));
        }
        last = right.end();
    }
    let delete = sqlx::query("DELETE FROM anchors WHERE first >= ? AND last <= ?");
    delete.bind(first).bind(last.number).execute(&mut *connection).await?;
    let insert = sqlx::query("INSERT INTO anchors (first, last, mac, seal) VALUES (?, ?, ?, ?)");
    let insert = insert.bind(first).bind(last.number).bind(&last.mac);
    insert.bind(key.seal(first, &before, &last)).execute(connection).await?;
    Ok(())
}

/// Returns whether an anchor covers this step.
pub(super) async fn is_pruned(
    connection: &mut SqliteConnection,
    step: &Head,
) -> Result<bool, sqlx::Error> {
    let anchor = sqlx::query_as(
        "SELECT last, mac FROM anchors WHERE last >= ? AND first <= ? ORDER BY last LIMIT 1",
    );
    let anchor: Option<(i64, Vec<u8>)> =
        anchor.bind(step.number).bind(step.number).fetch_optional(connection).await?;
    Ok(anchor.is_some_and(|(last, mac)| last > step.number || mac == step.mac))
}

async fn anchor_where(
    connection: &mut SqliteConnection,
    column: &'static str,
    number: i64,
) -> Result<Option<Anchor>, sqlx::Error> {
    let sql = format!("SELECT first, last, mac, seal FROM anchors WHERE {column} = ?");
    sqlx::query_as(AssertSqlSafe(sql)).bind(number).fetch_optional(connection).await
}

/// Returns the hash of the previous step; empty for the first.
async fn mac_before(connection: &mut SqliteConnection, number: i64) -> Result<Vec<u8>, WorkError> {
    if number <= 1 {
        return Ok(Vec::new());
    }
    let step = sqlx::query_scalar("SELECT mac FROM history WHERE number = ? AND mac IS NOT NULL");
    if let Some(mac) = step.bind(number - 1).fetch_optional(&mut *connection).await? {
        return Ok(mac);
    }
    let anchor = anchor_where(connection, "last", number - 1).await?;
    anchor.map(|anchor| anchor.mac).ok_or_else(|| unverified(number))
}

fn unverified(step: i64) -> WorkError {
    let why = format!(
        "the audit trail does not verify at step {step}, which is not removed; \
         run `loangate audit verify`"
    );
    WorkError::Rejected(LedgerError::damaged("?", &why))
}
