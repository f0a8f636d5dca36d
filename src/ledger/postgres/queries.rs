//! Queries for requests and for single loans, and what all queries share.
//!
//! A query sees everything that was committed before it started. Each is a transaction of its own,
//! because a pooler may send the next one to another server connection. A reader's query names the
//! library, so it concerns one partition.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::barrier::PollTracker;
use super::pool::{BEGIN_READ_ONLY, Pool};
use super::row::{first, library_of, time_of};
use super::session::prepares;
use super::sql::{KEY_IS, PgQuery, bind_id, bind_key, for_ids, loans, statement};
use crate::clock;
use crate::ledger::damaged_rows::DamagedRows;
use crate::ledger::states::LIVE;
use crate::ledger::stored_row::{history_of, loan_of};
use crate::ledger::{HistoryRow, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Reference};

/// The deadline of a query for a request, and of [`Queries::check`].
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);
/// The deadline of a query for background work, which may read many rows.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(5);
/// The deadline of a support query.
const SUPPORT_DEADLINE: Duration = Duration::from_secs(15);
/// Begins a support query, which may take longer than others.
const BEGIN_SUPPORT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; \
    SET LOCAL statement_timeout = 14000; \
    SET LOCAL lock_timeout = 3000; \
    SET LOCAL idle_in_transaction_session_timeout = 5000";

/// Reads a ledger over a pool of connections. Clones share the pool.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Queries {
    pub(super) pool: Arc<Pool>,
    /// The connection of the change feed.
    pub(super) feed_pool: Arc<Pool>,
    limits: &'static Limits,
    pub(super) damaged: DamagedRows,
    pub(super) owned: OwnedBuckets,
    pub(super) polls: Arc<PollTracker>,
    /// When these queries were opened, in time since the machine started.
    pub(super) opened: Duration,
}

/// The pools of [`Queries`], one for each purpose.
#[derive(Debug)]
pub(in crate::ledger) struct QueryPools {
    /// For readers' requests and background work.
    pub(in crate::ledger) reads: Pool,
    /// For support.
    pub(in crate::ledger) support: Pool,
    /// For the change feed.
    pub(in crate::ledger) feed: Pool,
}

/// How long queries may take.
#[derive(Debug)]
struct Limits {
    begin: &'static str,
    request: Duration,
    background: Duration,
}

const READER_LIMITS: Limits =
    Limits { begin: BEGIN_READ_ONLY, request: REQUEST_DEADLINE, background: BACKGROUND_DEADLINE };
const SUPPORT_LIMITS: Limits =
    Limits { begin: BEGIN_SUPPORT, request: SUPPORT_DEADLINE, background: SUPPORT_DEADLINE };

/// Returns the buckets whose background work this process does. They change with the members.
#[derive(Clone)]
pub(in crate::ledger) struct OwnedBuckets(Arc<dyn Fn() -> Arc<[i16]> + Send + Sync>);

impl OwnedBuckets {
    pub(in crate::ledger) fn new(
        buckets: impl Fn() -> Arc<[i16]> + Send + Sync + 'static,
    ) -> OwnedBuckets {
        OwnedBuckets(Arc::new(buckets))
    }

    pub(super) fn get(&self) -> Arc<[i16]> {
        (self.0)()
    }
}

impl fmt::Debug for OwnedBuckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedBuckets").field(&self.get().len()).finish()
    }
}

/// Ids follow the clock, which may have been set back, so the live loan is ordered first.
pub(super) static NEWEST: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    loans(&format!("{KEY_IS} ORDER BY state IN ({live}) DESC, id DESC LIMIT 1"))
});
pub(super) static LAST_END: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT max(ended) FROM loans WHERE {KEY_IS} \
         AND accepted IS NOT NULL AND ended IS NOT NULL"
    )
});
pub(super) static BY_ID: LazyLock<String> = LazyLock::new(|| loans("library = $1 AND id = $2"));
/// Searches all libraries.
pub(super) static BY_UUID: LazyLock<String> = LazyLock::new(|| loans("id = $1"));
pub(super) static BY_IDS: LazyLock<String> =
    LazyLock::new(|| loans("library = $1 AND id = ANY($2)"));
/// Reads loans of several libraries, each by its key.
pub(super) static BY_IDS_OF_LIBRARIES: LazyLock<String> = LazyLock::new(|| {
    let columns = crate::ledger::stored_row::COLUMNS;
    format!(
        "SELECT {columns} FROM unnest($1::text[], $2::uuid[]) AS wanted (library, id) \
         JOIN loans USING (library, id)"
    )
});
pub(super) static BY_REFERENCE: LazyLock<String> =
    LazyLock::new(|| loans("reference = $1 AND library = $2"));
/// Searches all libraries.
pub(super) static BY_ANY_REFERENCE: LazyLock<String> = LazyLock::new(|| loans("reference = $1"));
/// Searches all libraries.
pub(super) static BY_LENDING_ID: LazyLock<String> =
    LazyLock::new(|| loans("lending_id = $1 AND id <> $2 LIMIT 1"));
pub(super) const OPENED: &str = "SELECT 1 FROM loans \
     WHERE library = $1 AND id = $2 AND state = 'accepted' AND opened IS NOT NULL";
pub(super) const OWNER: &str = "SELECT owner FROM loans WHERE library = $1 AND id = $2";
/// A loan may have steps of several processes, in a chain each.
pub(super) const HISTORY: &str = "SELECT at, from_state, to_state, cause, detail FROM history \
     WHERE library = $1 AND loan = $2 ORDER BY at, chain, number";
/// Finds the next library by the index, however many loans each has.
pub(super) const NEXT_LIBRARY: &str = "SELECT min(library) FROM loans WHERE library > $1";
const CHECK: &str = "SELECT name FROM meta LIMIT 1";

impl Queries {
    /// Creates queries for readers' requests and background work, and others for support.
    pub(in crate::ledger) fn new(
        pools: QueryPools,
        owned: OwnedBuckets,
        damaged: DamagedRows,
    ) -> (Queries, Queries) {
        let queries = Queries {
            pool: Arc::new(pools.reads),
            feed_pool: Arc::new(pools.feed),
            limits: &READER_LIMITS,
            damaged,
            owned,
            polls: Arc::default(),
            opened: clock::since_boot(),
        };
        let support =
            Queries { pool: Arc::new(pools.support), limits: &SUPPORT_LIMITS, ..queries.clone() };
        (queries, support)
    }

    pub(in crate::ledger) async fn close(&self) {
        tokio::join!(self.pool.close(), self.feed_pool.close());
    }

    pub(in crate::ledger) fn damaged_rows(&self) -> usize {
        self.damaged.count()
    }

    pub(in crate::ledger) async fn newest(
        &self,
        key: &LoanKey,
    ) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(bind_key(statement(&NEWEST), key)).await
    }

    pub(in crate::ledger) async fn last_end(
        &self,
        key: &LoanKey,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let row = self.row(bind_key(statement(&LAST_END), key)).await?;
        time_of(row)
    }

    pub(in crate::ledger) async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(bind_id(statement(&BY_ID), id)).await
    }

    /// Returns the loan with this UUID, of any library.
    pub(in crate::ledger) async fn find(&self, uuid: Uuid) -> Result<Option<Loan>, LedgerError> {
        self.one_loan(statement(&BY_UUID).bind(uuid)).await
    }

    pub(in crate::ledger) async fn by_reference(
        &self,
        library: Option<LibraryId>,
        reference: &Reference,
    ) -> Result<Option<Loan>, LedgerError> {
        let reference = reference.as_str().to_owned();
        let query = match library {
            Some(library) => {
                statement(&BY_REFERENCE).bind(reference).bind(library.as_str().to_owned())
            }
            None => statement(&BY_ANY_REFERENCE).bind(reference),
        };
        self.one_loan(query).await
    }

    pub(in crate::ledger) async fn by_lending_id(
        &self,
        lending_id: &str,
        except: Option<LoanId>,
    ) -> Result<Option<Loan>, LedgerError> {
        let except = except.map_or(Uuid::nil(), LoanId::uuid);
        self.one_loan(statement(&BY_LENDING_ID).bind(lending_id.to_owned()).bind(except)).await
    }

    pub(in crate::ledger) async fn loans(&self, ids: &[LoanId]) -> Result<Vec<Loan>, LedgerError> {
        let rows = self.rows(for_ids(ids, &BY_IDS, &BY_IDS_OF_LIBRARIES)).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect())
    }

    /// Returns whether an accepted loan is marked as opened.
    pub(in crate::ledger) async fn is_opened(&self, id: LoanId) -> Result<bool, LedgerError> {
        Ok(self.row(bind_id(statement(OPENED), id)).await?.is_some())
    }

    /// Returns the name of the process that began a loan or took it over.
    pub(in crate::ledger) async fn owner(&self, id: LoanId) -> Result<Option<String>, LedgerError> {
        let row = self.row(bind_id(statement(OWNER), id)).await?;
        let owner: Option<Uuid> = first(row)?;
        Ok(owner.map(|owner| owner.to_string()))
    }

    pub(in crate::ledger) async fn history(
        &self,
        id: LoanId,
    ) -> Result<Vec<HistoryRow>, LedgerError> {
        let rows = self.rows(bind_id(statement(HISTORY), id)).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(history_of(id, row))).collect())
    }

    pub(in crate::ledger) async fn libraries(&self) -> Result<Vec<LibraryId>, LedgerError> {
        let mut libraries = Vec::new();
        let mut last = String::new();
        loop {
            let row = self.background_row(statement(NEXT_LIBRARY).bind(last)).await?;
            let Some(name) = first::<Option<String>>(row)?.flatten() else {
                return Ok(libraries);
            };
            let library = library_of(&name);
            libraries.extend(self.damaged.skip(library));
            last = name;
        }
    }

    /// Tests that the ledger can be read, within two seconds.
    pub(in crate::ledger) async fn check(&self) -> Result<(), LedgerError> {
        self.fetch(statement(CHECK), REQUEST_DEADLINE).await.map(drop)
    }

    /// Returns all rows of a query for a request.
    pub(super) async fn rows(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>, LedgerError> {
        self.fetch(query, self.limits.request).await
    }

    /// Returns the first row of a query for a request.
    pub(super) async fn row(&self, query: PgQuery<'_>) -> Result<Option<PgRow>, LedgerError> {
        Ok(self.rows(query).await?.into_iter().next())
    }

    /// Returns all rows of a query for background work.
    pub(super) async fn background_rows(
        &self,
        query: PgQuery<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        self.fetch(query, self.limits.background).await
    }

    /// Returns the first row of a query for background work.
    pub(super) async fn background_row(
        &self,
        query: PgQuery<'_>,
    ) -> Result<Option<PgRow>, LedgerError> {
        Ok(self.background_rows(query).await?.into_iter().next())
    }

    async fn fetch(
        &self,
        query: PgQuery<'_>,
        deadline: Duration,
    ) -> Result<Vec<PgRow>, LedgerError> {
        let rows = self.pool.transaction(self.limits.begin, deadline, async |connection| {
            query.persistent(prepares(connection)).fetch_all(connection).await
        });
        // Boxed: connecting takes much memory, which a caller's future would reserve.
        Box::pin(rows).await.map_err(LedgerError::Server)
    }

    /// Returns the loan that a query selects.
    async fn one_loan(&self, query: PgQuery<'_>) -> Result<Option<Loan>, LedgerError> {
        self.row(query).await?.as_ref().map(loan_of).transpose()
    }
}
