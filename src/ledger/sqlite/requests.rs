//! Stored requests.

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::queries::Queries;
use crate::ledger::{LedgerError, StoredRequest};

impl Queries {
    pub(in crate::ledger) async fn request(
        &self,
        id: Uuid,
    ) -> Result<Option<StoredRequest>, LedgerError> {
        const FIND: &str = "SELECT at, until, detail FROM requests WHERE id = ?";
        let Some(row) = self.row(sqlx::query(FIND).bind(id.to_string())).await? else {
            return Ok(None);
        };
        let millis = |column: &str| row.try_get(column).map_err(|source| self.failed(source));
        let (at, until) = (millis("at")?, millis("until")?);
        let detail = row.try_get("detail").map_err(|source| self.failed(source))?;
        Ok(StoredRequest::of_columns(id, at, until, detail))
    }

    pub(in crate::ledger) async fn has_old_requests(
        &self,
        now: Timestamp,
    ) -> Result<bool, LedgerError> {
        const OLD: &str = "SELECT 1 FROM requests WHERE until <= ? LIMIT 1";
        Ok(self.row(sqlx::query(OLD).bind(now.as_millisecond())).await?.is_some())
    }
}

/// Inserts the requests that are not there. There must be at least one.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    requests: &[StoredRequest],
) -> Result<u64, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO requests (id, at, until, detail) ");
    query.push_values(requests, |mut row, request| {
        row.push_bind(request.id.to_string());
        row.push_bind(request.at.as_millisecond());
        row.push_bind(request.until.as_millisecond());
        row.push_bind(request.detail.as_str());
    });
    query.push(" ON CONFLICT (id) DO NOTHING");
    Ok(query.build().persistent(false).execute(connection).await?.rows_affected())
}

/// Removes requests whose time is over.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    const REMOVE: &str = "DELETE FROM requests WHERE id IN \
         (SELECT id FROM requests WHERE until <= ? ORDER BY until LIMIT ?)";
    let remove = sqlx::query(REMOVE).bind(now.as_millisecond()).bind(limit);
    Ok(remove.execute(connection).await?.rows_affected())
}
