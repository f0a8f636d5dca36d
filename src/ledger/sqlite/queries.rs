//! Queries for requests and for single loans, and what all queries share.
//!
//! A query sees everything that was committed before it started.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Row, SqliteConnection, SqlitePool};
use uuid::Uuid;

use super::connection::write_options;
use super::row::by_ids;
use super::sql::{KEY_IS, SqliteQuery, bind_key};
use crate::ledger::damaged_rows::DamagedRows;
use crate::ledger::states::LIVE;
use crate::ledger::stored_row::{COLUMNS, history_of, loan_of};
use crate::ledger::{HistoryRow, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Reference};

/// The deadline of [`Queries::check`].
const CHECK_DEADLINE: Duration = Duration::from_secs(2);
/// The number of connections for readers' requests, and how long a query waits for one.
const READ_CONNECTIONS: u32 = 4;
const ACQUIRE_DEADLINE: Duration = Duration::from_secs(5);
/// The number of connections for support queries, which may scan many rows. It is below the number
/// of cores of most machines.
const SUPPORT_CONNECTIONS: u32 = 2;

/// Reads a ledger file over a pool of connections. Clones share the pool.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Queries {
    file: Arc<PathBuf>,
    pool: SqlitePool,
    pub(super) damaged: DamagedRows,
}

/// Ids follow the clock, which may have been set back, so the live loan is ordered first.
static NEWEST: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    loans(&format!("{KEY_IS} ORDER BY state IN ({live}) DESC, id DESC LIMIT 1"))
});
static LAST_END: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT max(ended) FROM loans WHERE {KEY_IS} \
         AND accepted IS NOT NULL AND ended IS NOT NULL"
    )
});
static BY_ID: LazyLock<String> = LazyLock::new(|| loans("id = ?"));
static BY_REFERENCE: LazyLock<String> =
    LazyLock::new(|| loans("reference = ? AND (?2 IS NULL OR library = ?2)"));
static BY_LENDING_ID: LazyLock<String> =
    LazyLock::new(|| loans("lending_id = ? AND id <> ? LIMIT 1"));

/// Returns a query for the loans with this condition.
pub(super) fn loans(condition: &str) -> String {
    format!("SELECT {COLUMNS} FROM loans WHERE {condition}")
}

/// Opens all connections of the pool for support. Each has a thread, with the priority of the one
/// that opens it: one that a look at the console opens could be preempted while it holds a lock of
/// SQLite that loans wait for. If it fails, the first query tries again.
async fn open_support(pool: &SqlitePool) {
    let opening = (0..SUPPORT_CONNECTIONS).map(|_| pool.acquire());
    drop(futures_util::future::join_all(opening).await);
}

impl Queries {
    /// Opens the connections for readers' requests, and a separate pool for support.
    pub(super) async fn open(
        file: &Path,
        damaged: DamagedRows,
    ) -> Result<(Queries, Queries), sqlx::Error> {
        let options = write_options(file).read_only(true);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                // A file never disconnects, and the test costs a round trip to the connection's
                // thread.
                .test_before_acquire(false)
                .acquire_timeout(ACQUIRE_DEADLINE)
        };
        let readers = pool(READ_CONNECTIONS).connect_with(options.clone()).await?;
        let support = pool(SUPPORT_CONNECTIONS).idle_timeout(None).max_lifetime(None);
        let support = support.connect_lazy_with(options);
        open_support(&support).await;
        let file = Arc::new(file.to_owned());
        let queries = Queries { file, pool: readers, damaged };
        Ok((queries.clone(), Queries { pool: support, ..queries }))
    }

    /// Returns the pool, for tests that occupy its connections.
    #[cfg(test)]
    pub(in crate::ledger) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Opens a connection for what support writes. Its failures are none of a loan's, it does not
    /// keep loans waiting for long, and a power failure may undo it.
    pub(super) async fn connect_to_write(&self) -> Result<SqliteConnection, sqlx::Error> {
        let options = write_options(&self.file).busy_timeout(ACQUIRE_DEADLINE);
        options.synchronous(SqliteSynchronous::Normal).connect().await
    }

    pub(in crate::ledger) async fn close(&self) {
        self.pool.close().await;
    }

    pub(in crate::ledger) fn damaged_rows(&self) -> usize {
        self.damaged.count()
    }

    pub(in crate::ledger) async fn newest(
        &self,
        key: &LoanKey,
    ) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(bind_key(sqlx::query(NEWEST.as_str()), key)).await
    }

    pub(in crate::ledger) async fn last_end(
        &self,
        key: &LoanKey,
    ) -> Result<Option<Timestamp>, LedgerError> {
        self.time(bind_key(sqlx::query(LAST_END.as_str()), key)).await
    }

    pub(in crate::ledger) async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(sqlx::query(BY_ID.as_str()).bind(id.to_string())).await
    }

    /// Returns the loan with this UUID, of any library.
    pub(in crate::ledger) async fn find(&self, uuid: Uuid) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(sqlx::query(BY_ID.as_str()).bind(uuid.to_string())).await
    }

    pub(in crate::ledger) async fn by_reference(
        &self,
        library: Option<LibraryId>,
        reference: &Reference,
    ) -> Result<Option<Loan>, LedgerError> {
        let query = sqlx::query(BY_REFERENCE.as_str()).bind(reference.as_str());
        self.one_loan(query.bind(library.map(|library| library.as_str().to_owned()))).await
    }

    pub(in crate::ledger) async fn by_lending_id(
        &self,
        lending_id: &str,
        except: Option<LoanId>,
    ) -> Result<Option<Loan>, LedgerError> {
        let except = except.map(|id| id.to_string()).unwrap_or_default();
        self.one_loan(sqlx::query(BY_LENDING_ID.as_str()).bind(lending_id).bind(except)).await
    }

    pub(in crate::ledger) async fn loans(&self, ids: &[LoanId]) -> Result<Vec<Loan>, LedgerError> {
        let mut query = by_ids(ids);
        self.readable_loans(query.build().persistent(false)).await
    }

    /// Returns whether an accepted loan is marked as opened.
    pub(in crate::ledger) async fn is_opened(&self, id: LoanId) -> Result<bool, LedgerError> {
        const OPENED: &str =
            "SELECT 1 FROM loans WHERE id = ? AND state = 'accepted' AND opened IS NOT NULL";
        Ok(self.row(sqlx::query(OPENED).bind(id.to_string())).await?.is_some())
    }

    /// Returns the name of the process that began a loan or took it over.
    pub(in crate::ledger) async fn owner(&self, id: LoanId) -> Result<Option<String>, LedgerError> {
        let owner = sqlx::query("SELECT owner FROM loans WHERE id = ?").bind(id.to_string());
        self.first(owner).await
    }

    pub(in crate::ledger) async fn history(
        &self,
        id: LoanId,
    ) -> Result<Vec<HistoryRow>, LedgerError> {
        let steps = sqlx::query("SELECT * FROM history WHERE loan = ? ORDER BY number");
        let rows = self.rows(steps.bind(id.to_string())).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(history_of(id, row))).collect())
    }

    pub(in crate::ledger) async fn libraries(&self) -> Result<Vec<LibraryId>, LedgerError> {
        // Finds the next library by the index, however many loans each has.
        const NAMES: &str = "WITH RECURSIVE names (library) AS ( \
             SELECT min(library) FROM loans UNION ALL \
             SELECT (SELECT min(library) FROM loans WHERE library > names.library) FROM names \
             WHERE names.library IS NOT NULL) \
             SELECT library FROM names WHERE library IS NOT NULL";
        let names = sqlx::query(NAMES);
        let read = |row: &SqliteRow| -> Result<LibraryId, LedgerError> {
            let name: String = row.try_get(0).map_err(|error| LedgerError::damaged("?", &error))?;
            name.parse().map_err(|_| LedgerError::damaged(&name, &"its library is not valid"))
        };
        let rows = self.rows(names).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(read(row))).collect())
    }

    /// Tests that the ledger can be read, within two seconds.
    pub(in crate::ledger) async fn check(&self) -> Result<(), LedgerError> {
        let one = sqlx::query("SELECT value FROM meta LIMIT 1").fetch_one(&self.pool);
        let one = tokio::time::timeout(CHECK_DEADLINE, one).await;
        let one = one.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        one.map(drop).map_err(|source| self.failed(source))
    }

    /// Returns all rows of a query.
    pub(super) async fn rows(&self, query: SqliteQuery<'_>) -> Result<Vec<SqliteRow>, LedgerError> {
        query.fetch_all(&self.pool).await.map_err(|source| self.failed(source))
    }

    /// Returns the first row of a query.
    pub(super) async fn row(
        &self,
        query: SqliteQuery<'_>,
    ) -> Result<Option<SqliteRow>, LedgerError> {
        query.fetch_optional(&self.pool).await.map_err(|source| self.failed(source))
    }

    /// Returns the loan that a query selects.
    async fn one_loan(&self, query: SqliteQuery<'_>) -> Result<Option<Loan>, LedgerError> {
        self.row(query).await?.as_ref().map(loan_of).transpose()
    }

    /// Returns the loans that a query selects, without damaged ones.
    pub(super) async fn readable_loans(
        &self,
        query: SqliteQuery<'_>,
    ) -> Result<Vec<Loan>, LedgerError> {
        let rows = self.rows(query).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect())
    }

    /// Returns the ids in this column of a query, without damaged ones.
    pub(super) async fn ids(
        &self,
        query: SqliteQuery<'_>,
        column: &str,
    ) -> Result<Vec<LoanId>, LedgerError> {
        let rows = self.rows(query).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(id_of(row, column))).collect())
    }

    /// Returns the first column of the first row; none if there is no row or the column is null.
    pub(super) async fn first<T>(&self, query: SqliteQuery<'_>) -> Result<Option<T>, LedgerError>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        let Some(row) = self.row(query).await? else { return Ok(None) };
        row.try_get(0).map_err(|source| self.failed(source))
    }

    /// Returns the count that a query selects.
    pub(super) async fn count(&self, query: SqliteQuery<'_>) -> Result<u64, LedgerError> {
        Ok(self.first(query).await?.map_or(0, i64::unsigned_abs))
    }

    /// Returns the time that a query selects, in milliseconds.
    pub(super) async fn time(
        &self,
        query: SqliteQuery<'_>,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let millis = self.first(query).await?;
        Ok(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
    }

    pub(super) fn failed(&self, source: sqlx::Error) -> LedgerError {
        LedgerError::Database { file: self.file.as_ref().clone(), source }
    }
}

/// Reads the id of a loan from a row: its UUID from this column, and its library.
pub(super) fn id_of(row: &SqliteRow, column: &str) -> Result<LoanId, LedgerError> {
    let uuid: String = row.try_get(column).map_err(|error| LedgerError::damaged("?", &error))?;
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(&uuid, error);
    let library: String = row.try_get("library").map_err(|error| wrong(&error))?;
    let library = library.parse().map_err(|error| wrong(&error))?;
    Ok(LoanId::new(library, uuid.parse().map_err(|_| wrong(&"its id is not valid"))?))
}
