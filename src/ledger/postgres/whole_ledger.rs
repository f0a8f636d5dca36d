//! Reads a whole ledger in short pages, for the commands that verify and check it.
//!
//! A walk over all steps takes minutes. A snapshot of that length would keep vacuum from cleaning
//! the hot rows of running gates, and neither a pooler nor a distributed engine can share one among
//! connections. So each page is a snapshot of its own, and everything that is compared is read in
//! one page. Gates may write, forget and prune between two pages.

use std::sync::LazyLock;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt, stream};
use sqlx::{PgConnection, Row};
use tokio::time::sleep;
use uuid::Uuid;

use super::connect::{Connector, Purpose};
use super::migrations::{self, Schema};
use super::pool::Pool;
use super::server_error::is_of_connection;
use super::settings::PostgresSettings;
use super::sql::statement;
use crate::ledger::{LedgerError, RowsRead};
use crate::loan::LibraryId;

/// The number of chains that are walked at the same time.
pub(super) const WALKS: usize = 4;
/// The walks, the list of chains, and the comparison of loans. A page needs one connection.
const CONNECTIONS: u32 = 6;
/// The number of rows of a page.
const PAGE_ROWS: i64 = 2000;
/// The deadline of a page. The server ends a statement earlier.
const PAGE_DEADLINE: Duration = Duration::from_secs(40);
/// The attempts to read a page, and the pause between two of them.
const ATTEMPTS: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const BEGIN_PAGE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL statement_timeout = 30000; \
    SET LOCAL lock_timeout = 3000; \
    SET LOCAL idle_in_transaction_session_timeout = 5000";

/// Estimates the rows of the tables $1. An engine that has no estimate returns zero.
const ESTIMATE: &str = "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class \
     WHERE oid IN (SELECT to_regclass(name)::oid FROM unnest($1::text[]) AS name)";

/// Finds the first library in any table, by the indexes. A damaged row may have an empty name.
pub(super) const FIRST_LIBRARY: &str = "SELECT least( \
     (SELECT min(library) FROM loans), \
     (SELECT min(library) FROM chains), \
     (SELECT min(library) FROM history), \
     (SELECT min(library) FROM anchors), \
     (SELECT min(library) FROM delivered))";

/// Finds the next library in any table, by the indexes.
pub(super) const NEXT_LIBRARY: &str = "SELECT least( \
     (SELECT min(library) FROM loans WHERE library > $1), \
     (SELECT min(library) FROM chains WHERE library > $1), \
     (SELECT min(library) FROM history WHERE library > $1), \
     (SELECT min(library) FROM anchors WHERE library > $1), \
     (SELECT min(library) FROM delivered WHERE library > $1))";

/// Finds the chains of a library from this name on, by the indexes. A chain is also found if only
/// its steps or its anchors are left.
pub(super) static CHAINS: LazyLock<String> = LazyLock::new(|| {
    let next = |is_next: &str| {
        let in_table = |table| {
            format!(
                "(SELECT chain FROM {table} WHERE library = $1 AND {is_next} \
                 ORDER BY chain LIMIT 1)"
            )
        };
        format!("least({})", ["chains", "history", "anchors"].map(in_table).join(", "))
    };
    let (first, later) = (next("chain >= $2"), next("chain > found.chain"));
    format!(
        "WITH RECURSIVE found AS (SELECT 1 AS position, {first} AS chain \
         UNION ALL SELECT position + 1, {later} FROM found \
         WHERE position < $3 AND found.chain IS NOT NULL) \
         SELECT chain FROM found WHERE chain IS NOT NULL ORDER BY chain"
    )
});

/// A ledger that is read page by page.
#[derive(Debug)]
pub(super) struct WholeLedger {
    pub(super) pool: Pool,
    /// The id of the ledger, which the names of head files contain.
    pub(super) id: Uuid,
    /// The number of rows of a page.
    pub(super) page: i64,
    /// The rows that were read.
    pub(super) rows: RowsRead,
}

impl WholeLedger {
    /// Connects to a ledger. Creates and changes nothing.
    ///
    /// # Errors
    /// [`LedgerError`] if the database has no ledger, or one of a newer program.
    pub(super) async fn open(settings: &PostgresSettings) -> Result<WholeLedger, LedgerError> {
        const ID: &str = "SELECT value FROM meta WHERE name = 'ledger'";
        let pool = Pool::new(Connector::new(settings), Purpose::Support, CONNECTIONS);
        let mut ledger =
            WholeLedger { pool, id: Uuid::nil(), page: PAGE_ROWS, rows: RowsRead::default() };
        let opened = ledger.snapshot(async |connection| {
            let schema = migrations::read_version(connection).await?;
            let id: Vec<u8> =
                sqlx::query_scalar(ID).persistent(false).fetch_one(connection).await?;
            Ok((schema, id))
        });
        let (schema, id) = opened.await?;
        if schema.usability(settings.migrations) == Schema::TooNew {
            return Err(LedgerError::NewerSchema);
        }
        ledger.id = Uuid::from_slice(&id)
            .map_err(|error| LedgerError::damaged("? (the id of the ledger)", &error))?;
        Ok(ledger)
    }

    /// Counts the rows that are read from now on here, of these tables. How many there are is what
    /// the server estimates, if it does: counting would take as long as reading.
    pub(super) async fn count_rows(&mut self, rows: &RowsRead, tables: &[&str]) {
        let estimated = self.snapshot(async |connection| {
            let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
            let query = sqlx::query_scalar(ESTIMATE).bind(tables).persistent(false);
            query.fetch_one(connection).await
        });
        rows.expect(estimated.await.unwrap_or(0));
        self.rows = rows.clone();
    }

    /// Runs the queries of one page. They read one snapshot. A page whose connection fails is read
    /// again: a walk of a large ledger should survive that.
    ///
    /// # Errors
    /// [`LedgerError::Server`].
    pub(super) async fn snapshot<T>(
        &self,
        work: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        let mut attempts = 0;
        loop {
            let page = self.pool.transaction(BEGIN_PAGE, PAGE_DEADLINE, &work);
            attempts += 1;
            // Boxed: connecting takes much memory, which a caller's future would reserve.
            match Box::pin(page).await {
                Err(error) if is_of_connection(&error) && attempts < ATTEMPTS => {
                    sleep(RETRY_PAUSE).await;
                }
                read => return read.map_err(LedgerError::Server),
            }
        }
    }

    /// Returns every name of a library in the tables. A damaged row may have any.
    pub(super) async fn libraries(&self) -> Result<Vec<String>, LedgerError> {
        let mut libraries: Vec<String> = Vec::new();
        loop {
            let last = libraries.last().cloned();
            let next = self.snapshot(async |connection| {
                let query = match last.clone() {
                    None => statement(FIRST_LIBRARY),
                    Some(last) => statement(NEXT_LIBRARY).bind(last),
                };
                query.fetch_one(connection).await?.try_get::<Option<String>, _>(0)
            });
            match next.await? {
                Some(library) => libraries.push(library),
                None => return Ok(libraries),
            }
        }
    }

    /// Returns the names of a library's chains.
    pub(super) fn chains(
        &self,
        library: LibraryId,
    ) -> impl Stream<Item = Result<Uuid, LedgerError>> {
        let pages = stream::try_unfold(Some(Uuid::nil()), move |from| async move {
            let Some(from) = from else { return Ok::<_, LedgerError>(None) };
            let page = self.snapshot(async |connection| {
                let query = sqlx::query_scalar(CHAINS.as_str()).bind(library.as_str()).bind(from);
                query.bind(self.page).persistent(false).fetch_all(connection).await
            });
            let page: Vec<Uuid> = page.await?;
            let next = self.next_page(&page, |chain| *chain);
            Ok(Some((stream::iter(page.into_iter().map(Ok)), next)))
        });
        pages.try_flatten()
    }

    /// Returns where the next page of rows that are ordered by a UUID begins; none after the last.
    pub(super) fn next_page<T>(&self, rows: &[T], id: impl Fn(&T) -> Uuid) -> Option<Uuid> {
        let last = rows.last().filter(|_| self.is_full(rows)).map(id)?;
        last.as_u128().checked_add(1).map(Uuid::from_u128)
    }

    /// Returns whether there may be rows after those of a page.
    pub(super) fn is_full<T>(&self, rows: &[T]) -> bool {
        i64::try_from(rows.len()).is_ok_and(|count| count >= self.page)
    }
}
