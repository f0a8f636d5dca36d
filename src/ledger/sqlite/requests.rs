//! Stored requests.

use jiff::Timestamp;
use sqlx::{Connection, QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::queries::Queries;
use super::sql::SqliteQuery;
use super::{BEGIN, copy_marks};
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

    /// Inserts the requests that are not there, unless the ledger was moved.
    pub(in crate::ledger) async fn add_requests(
        &self,
        requests: &[StoredRequest],
    ) -> Result<(), LedgerError> {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO requests (id, at, until, detail) ");
        query.push_values(requests, |mut row, request| {
            row.push_bind(request.id.to_string());
            row.push_bind(request.at.as_millisecond());
            row.push_bind(request.until.as_millisecond());
            row.push_bind(request.detail.as_str());
        });
        query.push(" ON CONFLICT (id) DO NOTHING");
        self.change_requests(query.build()).await.map(drop)
    }

    /// Removes requests whose time is over.
    pub(in crate::ledger) async fn remove_requests(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, LedgerError> {
        const REMOVE: &str = "DELETE FROM requests WHERE id IN \
             (SELECT id FROM requests WHERE until <= ? ORDER BY until LIMIT ?)";
        self.change_requests(sqlx::query(REMOVE).bind(now.as_millisecond()).bind(limit)).await
    }

    /// Runs a statement over a connection of its own, unless the ledger was moved. Returns the
    /// number of changed rows.
    async fn change_requests(&self, statement: SqliteQuery<'_>) -> Result<u64, LedgerError> {
        let failed = |source| self.failed(source);
        let mut connection = self.connect_to_write().await.map_err(failed)?;
        let changed = async {
            let mut transaction = connection.begin_with(BEGIN).await?;
            if copy_marks::read(&mut transaction).await?.allow_gate().is_err() {
                return Ok(0);
            }
            let done = statement.persistent(false).execute(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(done.rows_affected())
        };
        let changed = changed.await.map_err(failed);
        connection.close().await.map_err(failed)?;
        changed
    }
}
