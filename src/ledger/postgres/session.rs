//! A connection for short transactions, and whether its statements are prepared.
//!
//! A prepared statement is parsed and planned once, which is half of what a short statement costs
//! the database. But it belongs to one connection of the server, and a pooler may send each
//! transaction to another one, where a statement of the same name may be another program's. So a
//! connection sets a random mark, and each transaction begins by comparing it. If the mark differs,
//! a pooler is in between: nothing is prepared any more, and the transaction has run no statement.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

/// The error of [`Session::check`].
const DIVISION_BY_ZERO: &str = "22012";
/// A prepared statement is missing, or its name is taken: both only happen behind a pooler.
const OF_A_POOLER: [&str; 3] = [DIVISION_BY_ZERO, "26000", "42P05"];
/// The number of prepared statements of a connection. All statements together are fewer.
pub(super) const PREPARED_STATEMENTS: usize = 100;

/// Whether the connections of one URL prepare statements. Clones share the knowledge.
#[derive(Clone, Debug)]
pub(super) struct Preparation(Arc<AtomicBool>);

impl Preparation {
    pub(super) fn new(prepares: bool) -> Preparation {
        Preparation(Arc::new(AtomicBool::new(prepares)))
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends it if the error shows a pooler. Returns whether it does.
    fn end_after(&self, error: &sqlx::Error) -> bool {
        let sqlx::Error::Database(error) = error else { return false };
        let is_proof = error.code().is_some_and(|code| OF_A_POOLER.contains(&code.as_ref()));
        if is_proof && self.0.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "[ledger] url leads to a pooler of transactions, so no statement is prepared from \
                 now on; set direct_url to the database itself"
            );
        }
        is_proof
    }
}

/// A connection of a pool or of a lane.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    preparation: Preparation,
    /// Fails on a server connection without the mark of this one. None if nothing is prepared.
    check: Option<String>,
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Session {
    /// Marks a connection, if its statements are prepared.
    ///
    /// `plans_once` plans each statement once for all arguments. Without it the server plans those
    /// over arrays again each time, since it takes an unknown array for ten rows.
    pub(super) async fn new(
        mut connection: PgConnection,
        preparation: Preparation,
        plans_once: bool,
    ) -> Result<Session, sqlx::Error> {
        if !preparation.is_on() {
            return Ok(Session { connection, preparation, check: None });
        }
        let mark = Uuid::new_v4();
        let set = format!("SET loangate.connection = '{mark}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await?;
        // From now on `prepares` is true.
        let first = sqlx::query("SELECT 1").persistent(true).execute(&mut connection).await;
        first.inspect_err(|error| _ = preparation.end_after(error))?;
        let mode = if plans_once { "; SET LOCAL plan_cache_mode = force_generic_plan" } else { "" };
        let check = format!(
            "; SELECT 1 / CASE WHEN current_setting('loangate.connection', true) = '{mark}' \
             THEN 1 ELSE 0 END{mode}"
        );
        Ok(Session { connection, preparation, check: Some(check) })
    }

    /// Begins a transaction by this statement.
    ///
    /// # Errors
    /// That of the database. If a pooler was found, it is one of the connection: the statements of
    /// the caller are not to blame, and work on a new connection.
    pub(super) async fn begin_with(
        &mut self,
        begin: &'static str,
    ) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        let sql = self.with_check(begin);
        let Session { connection, preparation, .. } = self;
        let begun = connection.begin_with(sql).await;
        begun.map_err(|error| match preparation.end_after(&error) {
            true => sqlx::Error::Io(std::io::Error::other("a pooler is in between")),
            false => error,
        })
    }

    /// Begins a transaction that the caller ends by a statement.
    ///
    /// # Errors
    /// Returns also whether the transaction may be begun again on a new connection, since a pooler
    /// was found.
    pub(super) async fn begin(&mut self, begin: &'static str) -> Result<(), (sqlx::Error, bool)> {
        let sql = self.with_check(begin);
        let begun = sqlx::raw_sql(sql).execute(&mut self.connection).await;
        begun.map(drop).map_err(|error| {
            let is_pooler = self.preparation.end_after(&error);
            (error, is_pooler)
        })
    }

    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }

    fn with_check(&self, begin: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!("{begin}{}", self.check.as_deref().unwrap_or_default()))
    }
}

/// Returns whether this connection prepares its statements: whether it has prepared the first one.
pub(super) fn prepares(connection: &PgConnection) -> bool {
    connection.cached_statements_size() > 0
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
