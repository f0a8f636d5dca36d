//! Builds large indexes in the background, after the start of a gate.
//!
//! `open` starts it if an index of the migrations is missing. A build may take hours and no start
//! waits for it, so no program may rely on such an index before it is valid.
//!
//! The catalog of the database records whether an index is valid. One gate at a time builds: it
//! writes its name as a member into the row `index builder` of `meta`, and another one takes over
//! when that member has ended. Since the server continues the statement of a gate that was killed,
//! a gate also waits for builds that it did not start. Two builds of one table would wait for each
//! other's snapshot.
//!
//! A build that failed leaves an invalid index, which is dropped before the next attempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connect::{Connector, Purpose};
use super::migrations::Migration;
use super::standing::Standing;
use crate::supervise::supervise;
use crate::telemetry::{Metrics, Task};

/// For one statement. A build waits for old transactions, but no statement of a gate waits for it.
/// If it fails after this time, its work is lost.
const LIMITS: &str = "SET statement_timeout = 0; SET lock_timeout = '60s'";
/// The wait after a failed attempt, and the limit of its doubling.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(600);
/// How often a gate looks whether the builds of another one are complete.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// An index of the migrations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Index {
    pub(super) name: &'static str,
    sql: &'static str,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Attempt {
    /// All indexes are valid.
    Complete,
    /// Another process builds, or this one is no member at the moment.
    Elsewhere,
}

/// Returns the indexes of these migrations that are not valid. Queries nothing if there are none.
pub(super) async fn missing(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Vec<Index>, sqlx::Error> {
    let indexes = migrations.iter().filter_map(|migration| match *migration {
        Migration::Index { name, sql } => Some(Index { name, sql }),
        Migration::Expansion { .. } | Migration::Contraction { .. } => None,
    });
    invalid(connection, &indexes.collect::<Vec<_>>()).await
}

/// Returns those of these indexes that are not valid.
async fn invalid(
    connection: &mut PgConnection,
    indexes: &[Index],
) -> Result<Vec<Index>, sqlx::Error> {
    const IS_VALID: &str = "SELECT EXISTS (SELECT 1 FROM pg_index \
         WHERE indexrelid = to_regclass($1) AND indisvalid)";
    let mut invalid = Vec::new();
    for index in indexes {
        let is_valid = sqlx::query_scalar(IS_VALID).bind(index.name).persistent(false);
        if !is_valid.fetch_one(&mut *connection).await? {
            invalid.push(*index);
        }
    }
    Ok(invalid)
}

/// Builds these indexes in the background, until this process leaves the members.
pub(super) fn start(
    connector: Connector,
    standing: Arc<Standing>,
    indexes: Vec<Index>,
    metrics: &Metrics,
) {
    if indexes.is_empty() {
        return;
    }
    let (metrics, complete) = (metrics.clone(), CancellationToken::new());
    tokio::spawn(async move {
        let build = || {
            let (connector, standing) = (connector.clone(), standing.clone());
            let (indexes, complete) = (indexes.clone(), complete.clone());
            async move {
                build_all(&connector, &standing, &indexes).await;
                complete.cancel();
            }
        };
        tokio::select! {
            () = standing.left() => {}
            () = supervise(Task::BuildIndexes, metrics, complete.clone(), build) => {}
        }
    });
}

async fn build_all(connector: &Connector, standing: &Standing, indexes: &[Index]) {
    let mut retry = FIRST_RETRY;
    loop {
        let wait = match attempt(connector, standing, indexes).await {
            Ok(Attempt::Complete) => return,
            Ok(Attempt::Elsewhere) => CHECK_INTERVAL,
            Err(error) => {
                tracing::warn!(%error, ?retry, "could not build an index of the ledger; retrying");
                let wait = retry;
                retry = (retry * 2).min(LONGEST_RETRY);
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Builds all missing indexes, unless another process does.
async fn attempt(
    connector: &Connector,
    standing: &Standing,
    indexes: &[Index],
) -> Result<Attempt, sqlx::Error> {
    let Some(member) = standing.renewed().map(|renewed| renewed.id) else {
        return Ok(Attempt::Elsewhere);
    };
    let mut connection = connector.connect(Purpose::Migrations).await?;
    let attempt = build_missing(&mut connection, member, indexes).await;
    let _ = connection.close().await;
    attempt
}

async fn build_missing(
    connection: &mut PgConnection,
    member: Uuid,
    indexes: &[Index],
) -> Result<Attempt, sqlx::Error> {
    let missing = invalid(connection, indexes).await?;
    if missing.is_empty() {
        return Ok(Attempt::Complete);
    }
    if !claim(connection, member).await? {
        return Ok(Attempt::Elsewhere);
    }
    let built = match server_builds(connection).await {
        Ok(true) => Ok(Attempt::Elsewhere),
        Ok(false) => build(connection, &missing).await.map(|()| Attempt::Complete),
        Err(error) => Err(error),
    };
    // After a failure, this process may claim again.
    release(connection, member).await.and(built)
}

async fn build(connection: &mut PgConnection, missing: &[Index]) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(LIMITS).execute(&mut *connection).await?;
    for Index { name, sql } in missing {
        let began = Instant::now();
        tracing::info!(index = name, "building an index of the ledger");
        // It is invalid: a builder was killed.
        let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {name}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
        sqlx::raw_sql(*sql).execute(&mut *connection).await?;
        tracing::info!(index = name, took = ?began.elapsed(), "built an index of the ledger");
    }
    Ok(())
}

/// Records that this member builds. Returns whether no other one does.
async fn claim(connection: &mut PgConnection, member: Uuid) -> Result<bool, sqlx::Error> {
    const CLAIM: &str = "INSERT INTO meta (name, value) VALUES ('index builder', uuid_send($1)) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value \
         WHERE meta.value = excluded.value OR NOT EXISTS (SELECT 1 FROM members \
         WHERE uuid_send(member) = meta.value AND fenced IS NULL) RETURNING name";
    let claim = sqlx::query(CLAIM).bind(member).persistent(false);
    Ok(claim.fetch_optional(connection).await?.is_some())
}

async fn release(connection: &mut PgConnection, member: Uuid) -> Result<(), sqlx::Error> {
    const RELEASE: &str = "DELETE FROM meta WHERE name = 'index builder' AND value = uuid_send($1)";
    sqlx::query(RELEASE).bind(member).persistent(false).execute(connection).await.map(drop)
}

/// Returns whether the server builds an index of this database.
async fn server_builds(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const BUILDS: &str = "SELECT EXISTS (SELECT 1 FROM pg_stat_progress_create_index \
         WHERE datname = current_database())";
    sqlx::query_scalar(BUILDS).persistent(false).fetch_one(connection).await
}

#[cfg(test)]
#[path = "index_builds_tests.rs"]
mod tests;
