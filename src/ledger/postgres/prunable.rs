//! The search for loans that may be pruned, in pages.
//!
//! A page reads a bounded number of rows in the order of an index, whether they may be pruned or
//! not. So each statement is short, also in a ledger with few such loans.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::pool::{BEGIN_READ_ONLY, Pool, TRANSACTION};
use crate::ledger::Prunable;
use crate::ledger::states::{is_refusal_active, prunable, prunable_age};
use crate::loan::LibraryId;

/// The number of loans of a page.
const PAGE_ROWS: i64 = 2000;

/// A position in the order in which candidates are searched: a time in milliseconds, and the loan.
pub(super) type Position = (i64, String, Uuid);
/// Loans by their library.
pub(super) type Candidates = BTreeMap<LibraryId, Vec<Uuid>>;

/// Returns the statement that searches a page of loans for candidates, in the order of an index
/// which has those of this kind among its first ones.
pub(super) fn search_statement(which: Prunable) -> String {
    let (condition, (age, _)) = (prunable(which), prunable_age(which));
    let (order, indexed) = match which {
        Prunable::NeverLent { .. } => ("changed", "(state = 'refused' OR end_reason = 'rejected')"),
        // No loan ends before it begins.
        Prunable::Ended { .. } => ("begun", "state = 'ended'"),
    };
    format!(
        "SELECT library, id, refusal_retry, {order} AS position, \
         {condition} AND {age} < $1 AND ($2::smallint[] IS NULL OR bucket = ANY($2)) AS is_old \
         FROM loans WHERE {indexed} AND {order} < $1 AND ({order}, library, id) > ($3, $4, $5) \
         ORDER BY {order}, library, id LIMIT $6"
    )
}

/// Returns the number of loans of this kind.
pub(super) async fn count(pool: &Pool, which: Prunable) -> Result<i64, sqlx::Error> {
    let (condition, (age, before)) = (prunable(which), prunable_age(which));
    let sql = format!("SELECT count(*) FROM loans WHERE {condition} AND {age} < $1");
    let counted = pool.transaction(BEGIN_READ_ONLY, TRANSACTION, async |connection| {
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(before.as_millisecond());
        query.persistent(false).fetch_one(connection).await
    });
    Box::pin(counted).await
}

/// Returns the candidates of a page, and where the next page begins. The transaction that removes
/// them checks them again.
pub(super) async fn search(
    pool: &Pool,
    which: Prunable,
    buckets: Option<&[i16]>,
    after: Position,
) -> Result<(Candidates, Option<Position>), sqlx::Error> {
    let sql = search_statement(which);
    let (_, before) = prunable_age(which);
    let rows = pool.transaction(BEGIN_READ_ONLY, TRANSACTION, async |connection| {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before.as_millisecond()).bind(buckets);
        let query = query.bind(after.0).bind(after.1).bind(after.2).bind(PAGE_ROWS);
        query.persistent(false).fetch_all(connection).await
    });
    let rows = Box::pin(rows).await?;
    let mut candidates = Candidates::new();
    for row in &rows {
        let is_old: Option<bool> = row.try_get("is_old")?;
        // Rows of a damaged library stay; `ledger check` reports them.
        let library = row.try_get::<String, _>("library")?.parse::<LibraryId>();
        let Ok(library) = library else { continue };
        if is_old == Some(true) && !is_refusal_active(which, row.try_get("refusal_retry")?) {
            candidates.entry(library).or_default().push(row.try_get("id")?);
        }
    }
    let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= PAGE_ROWS);
    let next = rows.last().filter(|_| is_full).map(|last| {
        Ok::<_, sqlx::Error>((
            last.try_get("position")?,
            last.try_get("library")?,
            last.try_get("id")?,
        ))
    });
    Ok((candidates, next.transpose()?))
}
