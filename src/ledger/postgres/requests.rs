//! Stored requests.

use jiff::Timestamp;
use sqlx::postgres::PgQueryResult;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::copy_marks::IS_MOVED;
use super::pool::{BEGIN, TRANSACTION};
use super::queries::Queries;
use super::session::prepares;
use super::sql::{column, statement};
use crate::ledger::{LedgerError, StoredRequest};

const FIND: &str = "SELECT at, until, detail FROM requests WHERE id = $1";
const OLD: &str = "SELECT 1 FROM requests WHERE until <= $1 LIMIT 1";
/// Another process that removes the same rows is not waited for.
const REMOVE: &str = "DELETE FROM requests WHERE id = ANY(ARRAY( \
     SELECT id FROM requests WHERE until <= $1 ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// The order is that of all processes, so that they do not deadlock.
fn add() -> String {
    format!(
        "INSERT INTO requests (id, at, until, detail) \
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[]) \
         AS t (id, at, until, detail) WHERE NOT {IS_MOVED} ORDER BY id ON CONFLICT (id) DO NOTHING"
    )
}

impl Queries {
    pub(in crate::ledger) async fn request(
        &self,
        id: Uuid,
    ) -> Result<Option<StoredRequest>, LedgerError> {
        let Some(row) = self.background_row(statement(FIND).bind(id)).await? else {
            return Ok(None);
        };
        let millis = |name: &str| row.try_get(name).map_err(LedgerError::Server);
        let (at, until) = (millis("at")?, millis("until")?);
        let detail = row.try_get("detail").map_err(LedgerError::Server)?;
        Ok(StoredRequest::of_columns(id, at, until, detail))
    }

    pub(in crate::ledger) async fn has_old_requests(
        &self,
        now: Timestamp,
    ) -> Result<bool, LedgerError> {
        let query = statement(OLD).bind(now.as_millisecond());
        Ok(self.background_row(query).await?.is_some())
    }

    /// Inserts the requests that are not there, unless the ledger was moved.
    pub(in crate::ledger) async fn add_requests(
        &self,
        requests: &[StoredRequest],
    ) -> Result<(), LedgerError> {
        self.change_requests(async |connection| {
            let query = sqlx::query(AssertSqlSafe(add()))
                .bind(column(requests, |request| request.id))
                .bind(column(requests, |request| request.at.as_millisecond()))
                .bind(column(requests, |request| request.until.as_millisecond()))
                .bind(column(requests, |request| request.detail.as_str()));
            query.persistent(prepares(connection)).execute(connection).await
        })
        .await
        .map(drop)
    }

    /// Removes requests whose time is over.
    pub(in crate::ledger) async fn remove_requests(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, LedgerError> {
        self.change_requests(async |connection| {
            let query = sqlx::query(REMOVE).bind(now.as_millisecond()).bind(i64::from(limit));
            query.persistent(prepares(connection)).execute(connection).await
        })
        .await
    }

    async fn change_requests(
        &self,
        change: impl AsyncFn(&mut PgConnection) -> Result<PgQueryResult, sqlx::Error>,
    ) -> Result<u64, LedgerError> {
        // Boxed: connecting takes much memory, which a caller's future would reserve.
        let changed = Box::pin(self.pool.transaction(BEGIN, TRANSACTION, change)).await;
        Ok(changed.map_err(LedgerError::Server)?.rows_affected())
    }
}
