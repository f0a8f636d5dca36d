//! Removes from the schema what no gate uses any more, for `loangate ledger contract`.
//!
//! A contraction requires that all live members know its version, and that all indexes before it
//! are valid. It reads the members while it has locked the row of `schema_version`. A member that
//! joins locks the row, too, so it either is found here or finds the new `min_program`.

use std::fmt;

use jiff::Timestamp;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::connect::{Connector, Purpose};
use super::index_builds;
use super::migrations::{
    BEGIN, LockRetries, MIGRATION_LOCKS, Migration, Schema, SchemaVersion, lock_version,
    program_version, read_version,
};
use super::settings::PostgresSettings;
use crate::ledger::LedgerError;

/// What [`contract`] would do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContractionPlan {
    /// What it removes, as phrases.
    pub removals: Vec<&'static str>,
    /// The schema version that a program must know afterwards.
    pub min_program: i64,
    /// Why it refuses at the moment.
    pub obstacles: Vec<Obstacle>,
}

/// Why a contraction must wait.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Obstacle {
    /// No gate of this program has started.
    NotExpanded {
        /// The version of the schema.
        version: i64,
        /// The version that this program knows.
        program: i64,
    },
    /// An index is not built yet.
    MissingIndex(&'static str),
    /// A gate of an older program runs.
    OlderGate {
        /// Its name as a member.
        member: Uuid,
        /// When it joined.
        joined: Timestamp,
        /// The schema version that it knows.
        program: i64,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotExpanded { version, program } => write!(
                f,
                "the schema has version {version}, and this program knows {program}; start a gate \
                 of this program first"
            ),
            Obstacle::MissingIndex(name) => write!(
                f,
                "the index {name} is not built yet; wait until a gate logs that it built it"
            ),
            Obstacle::OlderGate { member, joined, program } => write!(
                f,
                "a gate of an older program runs: member {member}, which joined at {joined} and \
                 knows schema version {program}; upgrade or stop it. If it was killed, the others \
                 notice that within a lease and a fifth"
            ),
        }
    }
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// Something is in the way.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Obstacles(Vec<Obstacle>),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<sqlx::Error> for ContractError {
    fn from(error: sqlx::Error) -> ContractError {
        ContractError::Ledger(LedgerError::Server(error))
    }
}

/// Returns what [`contract`] would do, or none if there is nothing to remove. Changes nothing.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read or has the schema of a newer program.
pub async fn plan_contraction(
    settings: &PostgresSettings,
) -> Result<Option<ContractionPlan>, LedgerError> {
    let mut connection = connect(settings).await?;
    let plan = plan(&mut connection, settings.migrations).await;
    let _ = connection.close().await;
    plan
}

async fn plan(
    connection: &mut PgConnection,
    migrations: &'static [Migration],
) -> Result<Option<ContractionPlan>, LedgerError> {
    let schema = read_version(connection).await.map_err(LedgerError::Server)?;
    let pending = pending(migrations, schema)?;
    let Some(last) = pending.last() else { return Ok(None) };
    let removals = pending.iter().map(|contraction| contraction.removes).collect();
    let obstacles = obstacles(connection, migrations, schema, last.version).await;
    let obstacles = obstacles.map_err(LedgerError::Server)?;
    Ok(Some(ContractionPlan { removals, min_program: last.version, obstacles }))
}

/// Applies all pending contractions, each in a transaction of its own. Returns what they removed.
/// Retries for a minute if a table is in use.
///
/// # Errors
/// [`ContractError`]; contractions that were applied stay.
pub async fn contract(settings: &PostgresSettings) -> Result<Vec<&'static str>, ContractError> {
    let mut connection = connect(settings).await?;
    let removed = apply_all(&mut connection, settings.migrations).await;
    let _ = connection.close().await;
    removed
}

async fn apply_all(
    connection: &mut PgConnection,
    migrations: &'static [Migration],
) -> Result<Vec<&'static str>, ContractError> {
    let (mut removed, mut retries) = (Vec::new(), LockRetries::default());
    loop {
        match apply_next(connection, migrations).await {
            Ok(Some(removes)) => removed.push(removes),
            Ok(None) => return Ok(removed),
            Err(ContractError::Ledger(LedgerError::Server(error)))
                if retries.permit(&error).await => {}
            Err(error) => return Err(error),
        }
    }
}

async fn connect(settings: &PostgresSettings) -> Result<PgConnection, LedgerError> {
    Connector::new(settings).connect(Purpose::Migrations).await.map_err(LedgerError::Server)
}

/// Applies the next contraction. Returns what it removed.
async fn apply_next(
    connection: &mut PgConnection,
    migrations: &'static [Migration],
) -> Result<Option<&'static str>, ContractError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    let schema = lock_version(&mut transaction).await?;
    let pending = pending(migrations, schema)?;
    let Some(Pending { version, removes, sql }) = pending.first().copied() else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let obstacles = obstacles(&mut transaction, migrations, schema, version).await?;
    if !obstacles.is_empty() {
        return Err(ContractError::Obstacles(obstacles));
    }
    sqlx::raw_sql(MIGRATION_LOCKS).execute(&mut *transaction).await?;
    sqlx::raw_sql(sql).execute(&mut *transaction).await?;
    let record = sqlx::query("UPDATE schema_version SET min_program = $1").bind(version);
    record.persistent(false).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some(removes))
}

/// A contraction that was not applied.
#[derive(Clone, Copy, Debug)]
struct Pending {
    version: i64,
    removes: &'static str,
    sql: &'static str,
}

fn pending(
    migrations: &'static [Migration],
    schema: SchemaVersion,
) -> Result<Vec<Pending>, LedgerError> {
    if schema.usability(migrations) == Schema::TooNew {
        return Err(LedgerError::NewerSchema);
    }
    let numbered = (1..).zip(migrations).filter_map(|(version, migration)| match *migration {
        Migration::Contraction { removes, sql } => Some(Pending { version, removes, sql }),
        Migration::Expansion { .. } | Migration::Index { .. } => None,
    });
    Ok(numbered.filter(|contraction| contraction.version > schema.min_program).collect())
}

/// Returns what prevents a contraction of this version.
async fn obstacles(
    connection: &mut PgConnection,
    migrations: &'static [Migration],
    schema: SchemaVersion,
    version: i64,
) -> Result<Vec<Obstacle>, sqlx::Error> {
    const OLDER: &str = "SELECT member, joined, program FROM members \
         WHERE fenced IS NULL AND program < $1 ORDER BY joined, member";
    let mut obstacles = Vec::new();
    let program = program_version(migrations);
    if schema.version < program {
        obstacles.push(Obstacle::NotExpanded { version: schema.version, program });
    }
    let before = migrations.get(..usize::try_from(version).unwrap_or(0)).unwrap_or(migrations);
    let missing = index_builds::missing(connection, before).await?;
    obstacles.extend(missing.iter().map(|index| Obstacle::MissingIndex(index.name)));
    let older = sqlx::query(OLDER).bind(version).persistent(false);
    for row in older.fetch_all(connection).await? {
        let joined = Timestamp::from_millisecond(row.try_get(1)?);
        let joined = joined.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let (member, program) = (row.try_get(0)?, row.try_get(2)?);
        obstacles.push(Obstacle::OlderGate { member, joined, program });
    }
    Ok(obstacles)
}

#[cfg(test)]
#[path = "contraction_tests.rs"]
mod tests;
