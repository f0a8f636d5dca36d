//! Anchors in the audit trail: each replaces a run of steps that were pruned.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, QueryBuilder, Sqlite, SqliteConnection};

use super::prune::push_ids;
use crate::ledger::audit::{Anchor, AuditKey, Head, Removal, StoredStep, Surroundings};
use crate::ledger::store::WorkError;
use crate::ledger::stored_row::anchor_of;

impl FromRow<'_, SqliteRow> for Anchor {
    fn from_row(row: &SqliteRow) -> Result<Anchor, sqlx::Error> {
        anchor_of(row)
    }
}

/// Reads the steps of these loans, in the order of their numbers.
pub(super) async fn steps_of(
    connection: &mut SqliteConnection,
    loans: &[String],
) -> Result<Vec<StoredStep>, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM history WHERE loan IN (");
    push_ids(&mut query, loans);
    query.push(" ORDER BY number");
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// Replaces each run of consecutive steps with an anchor. They must be in the order of their
/// numbers.
///
/// # Errors
/// Rejects a step that does not verify, so that pruning never hides a change.
pub(super) async fn anchor_steps(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    steps: Vec<StoredStep>,
) -> Result<(), WorkError> {
    let removal = Removal::new(steps);
    let surroundings = surroundings(&mut *connection, &removal).await?;
    let anchors = removal.seal(&surroundings, key);
    let anchors = anchors.map_err(|unverified| WorkError::Rejected(unverified.in_chain("")))?;
    for (first, last) in removal.ranges() {
        let delete = sqlx::query("DELETE FROM history WHERE number BETWEEN ? AND ?");
        delete.bind(first).bind(last).execute(&mut *connection).await?;
    }
    for anchor in &surroundings.anchors {
        let delete = sqlx::query("DELETE FROM anchors WHERE first = ?").bind(anchor.first);
        delete.execute(&mut *connection).await?;
    }
    for Anchor { first, last, mac, seal } in anchors {
        let insert = "INSERT INTO anchors (first, last, mac, seal) VALUES (?, ?, ?, ?)";
        let insert = sqlx::query(insert).bind(first).bind(last).bind(mac).bind(seal);
        insert.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Reads what surrounds these steps.
async fn surroundings(
    connection: &mut SqliteConnection,
    removal: &Removal,
) -> Result<Surroundings, sqlx::Error> {
    let mut found = Surroundings::default();
    for (first, last) in removal.ranges() {
        let mut preceding = vec![first - 1];
        if let Some(left) = anchor_where(&mut *connection, "last", first - 1).await? {
            preceding.push(left.first - 1);
            found.anchors.push(left);
        }
        found.anchors.extend(anchor_where(&mut *connection, "first", last + 1).await?);
        for number in preceding {
            if let Some(mac) = mac_of(&mut *connection, number).await? {
                found.macs.insert(number, mac);
            }
        }
    }
    Ok(found)
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

/// Returns the hash of a step, or of the anchor that ends with it.
async fn mac_of(
    connection: &mut SqliteConnection,
    number: i64,
) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let step = sqlx::query_scalar("SELECT mac FROM history WHERE number = ? AND mac IS NOT NULL");
    if let Some(mac) = step.bind(number).fetch_optional(&mut *connection).await? {
        return Ok(Some(mac));
    }
    Ok(anchor_where(connection, "last", number).await?.map(|anchor| anchor.mac))
}
