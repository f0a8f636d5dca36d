//! The steps of accesses: their listing, and their removal.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{ConnectOptions, Connection, QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::anchors::anchor_steps;
use super::chain::read_head;
use super::connection::{BEGIN, write_options};
use super::copy_marks;
use super::queries::Queries;
use crate::ledger::audit::{AuditKey, StoredStep};
use crate::ledger::store::WorkError;
use crate::ledger::{AccessFilter, AccessPosition, LedgerError, RecordedAccess};
use crate::loan::LibraryId;

/// The number of steps that one transaction removes, and the pause before the next transaction, in
/// which the gate can write.
const BATCH_SIZE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);

impl Queries {
    pub(in crate::ledger) async fn accesses(
        &self,
        filter: &AccessFilter,
    ) -> Result<Vec<RecordedAccess>, LedgerError> {
        let (since, before) = filter.bounds();
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT at, number, detail FROM history INDEXED BY history_accesses \
             WHERE to_state = 'access' AND at >= ",
        );
        query.push_bind(since).push(" AND at < ").push_bind(before);
        if let Some(library) = filter.library {
            query.push(
                " AND CASE WHEN json_valid(detail) THEN json_extract(detail, '$.library') END = ",
            );
            query.push_bind(library.as_str().to_owned());
        }
        if let Some(after) = &filter.after {
            query.push(" AND (at, number) < (").push_bind(after.at);
            query.push(", ").push_bind(after.number).push(")");
        }
        query.push(" ORDER BY at DESC, number DESC LIMIT ").push_bind(i64::from(filter.limit));
        let mut accesses = Vec::new();
        for row in self.rows(query.build()).await? {
            let (position, detail) = access_of(&row).map_err(|source| self.failed(source))?;
            accesses.extend(RecordedAccess::parse(position, detail.as_deref()));
        }
        Ok(accesses)
    }

    /// Returns whether an access is in the chain of its library: the file has one chain.
    pub(in crate::ledger) async fn has_chain_of_loans(
        &self,
        _library: LibraryId,
    ) -> Result<bool, LedgerError> {
        Ok(true)
    }
}

/// Returns the position and the detail of a step.
fn access_of(row: &SqliteRow) -> Result<(AccessPosition, Option<String>), sqlx::Error> {
    let (at, number) = (row.try_get("at")?, row.try_get("number")?);
    let position = AccessPosition { at, library: String::new(), chain: Uuid::nil(), number };
    Ok((position, row.try_get("detail")?))
}

/// Removes accesses, also while a gate is running.
///
/// # Errors
/// [`LedgerError`], also if a step to be removed does not verify. Steps that were already removed
/// stay removed.
pub(in crate::ledger) async fn prune_accesses(
    ledger: &Path,
    key: &AuditKey,
    before: Timestamp,
) -> Result<u64, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let mut connection = write_options(ledger).connect().await.map_err(failed)?;
    let mut total = 0;
    loop {
        // A read first: most runs find nothing, and a transaction would wait for the writer.
        if old_steps(&mut connection, before).await.map_err(failed)?.is_empty() {
            break;
        }
        let mut transaction = connection.begin_with(BEGIN).await.map_err(failed)?;
        let removed = remove(&mut transaction, key, before).await;
        let removed = WorkError::split(removed).map_err(failed)??;
        transaction.commit().await.map_err(failed)?;
        total += removed;
        if removed == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    connection.close().await.map_err(failed)?;
    Ok(total)
}

async fn remove(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    before: Timestamp,
) -> Result<u64, WorkError> {
    copy_marks::read(&mut *connection).await?.allow_pruning()?;
    let newest = read_head(&mut *connection).await?.number;
    let mut steps = old_steps(&mut *connection, before).await?;
    // The next step continues from the newest one.
    steps.retain(|step| step.number != newest);
    let count = steps.len() as u64;
    if count > 0 {
        steps.sort_by_key(|step| step.number);
        anchor_steps(connection, key, steps).await?;
    }
    Ok(count)
}

async fn old_steps(
    connection: &mut SqliteConnection,
    before: Timestamp,
) -> Result<Vec<StoredStep>, sqlx::Error> {
    const OLD: &str = "SELECT * FROM history INDEXED BY history_accesses \
         WHERE to_state = 'access' AND at < ? ORDER BY at LIMIT ?";
    let query = sqlx::query_as(OLD).bind(before.as_millisecond()).bind(BATCH_SIZE);
    query.fetch_all(connection).await
}
