//! The schema: its migrations, and the test whether this program can use it.
//!
//! Several processes may start at once. Each locks the row of `schema_version` while it migrates,
//! so the others wait. It needs a direct connection, since a migration is one long transaction.
//!
//! The schema expands first and contracts later, so that gates are upgraded one by one. A gate that
//! starts applies what adds to the schema, and older programs keep working. It only records that an
//! index is wanted, which `index_builds` builds in the background. It never removes anything:
//! `loangate ledger contract` does, by `contraction`, and then older programs refuse to start.
//!
//! `version` counts the migrations that gates have applied or passed over. `min_program` is the
//! version of the newest contraction that was applied. So a contraction is pending if its version
//! is higher, and a program that lists it works with and without what it removes.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

/// A migration. Its position in a list, from 1, is its version.
///
/// The order of a list never changes. When a program no longer needs an index, an empty expansion
/// replaces its migration, and a contraction drops it.
#[derive(Clone, Copy, Debug)]
pub enum Migration {
    /// Adds to the schema, in one transaction.
    Expansion {
        /// The statements.
        sql: &'static str,
    },
    /// Adds an index to a table that may be large. No program may rely on its existence.
    Index {
        /// The name of the index.
        name: &'static str,
        /// `CREATE INDEX CONCURRENTLY IF NOT EXISTS` with this name, as one statement.
        sql: &'static str,
    },
    /// Removes what no program since this version uses, in one transaction.
    Contraction {
        /// What it removes, as a phrase for the operator.
        removes: &'static str,
        /// The statements.
        sql: &'static str,
    },
}

/// All migrations that this program knows.
pub const MIGRATIONS: &[Migration] = &[
    Migration::Expansion { sql: include_str!("migrations/0001_ledger.sql") },
    Migration::Expansion { sql: include_str!("migrations/0002_reports.sql") },
    Migration::Index { name: "loans_to_report", sql: LOANS_TO_REPORT },
    Migration::Expansion { sql: include_str!("migrations/0003_examinations.sql") },
    Migration::Index { name: "loans_to_examine", sql: LOANS_TO_EXAMINE },
    Migration::Expansion { sql: include_str!("migrations/0004_bulletins.sql") },
    Migration::Expansion { sql: include_str!("migrations/0005_report_facts.sql") },
    Migration::Expansion { sql: include_str!("migrations/0006_requests.sql") },
];

/// Finds loans that may have to be reported, of a licence type, in the order of their ids.
pub(super) const LOANS_TO_REPORT: &str = "\
     CREATE INDEX CONCURRENTLY IF NOT EXISTS loans_to_report ON loans (licence_type, id) \
     WHERE assessed IS NULL AND accepted IS NOT NULL";

/// Finds the few loans of a library that wait for an examination.
pub(super) const LOANS_TO_EXAMINE: &str = "\
     CREATE INDEX CONCURRENTLY IF NOT EXISTS loans_to_examine ON loans (library, id) \
     WHERE examine IS NOT NULL";

/// The lock of the version waits for another process that migrates. Statements take as long as the
/// tables are large.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = 0; \
    SET LOCAL lock_timeout = '120s'; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'";
/// After the version is locked. A lock of a table that waits makes all statements of running gates
/// on it wait, too.
pub(super) const MIGRATION_LOCKS: &str = "SET LOCAL lock_timeout = '500ms'";
/// The attempts to lock the tables of one migration, and the wait between two of them.
const ATTEMPTS: u32 = 60;
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A lock timeout.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// Another process has created the same table, or its type, at the same time.
const CREATED_MEANWHILE: [&str; 3] = ["23505", "42710", "42P07"];

/// Whether a program can use the schema.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Schema {
    Usable,
    /// It requires a newer program.
    TooNew,
}

/// The schema requires a newer program.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the schema of the ledger requires a newer program; upgrade this gate")]
pub(super) struct SchemaTooNew;

/// The row of `schema_version`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SchemaVersion {
    pub(super) version: i64,
    pub(super) min_program: i64,
}

impl SchemaVersion {
    /// Returns whether a program with these migrations can use the schema.
    pub(super) fn usability(self, migrations: &[Migration]) -> Schema {
        let is_known = self.min_program <= program_version(migrations);
        if is_known { Schema::Usable } else { Schema::TooNew }
    }
}

/// Returns the schema version of a program with these migrations.
pub(super) fn program_version(migrations: &[Migration]) -> i64 {
    i64::try_from(migrations.len()).unwrap_or(i64::MAX)
}

/// Applies the missing expansions of these, each in a transaction of its own.
///
/// # Errors
/// The error of the database; migrations that were applied stay.
pub(super) async fn run(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Schema, sqlx::Error> {
    create_version_table(connection).await?;
    let mut retries = LockRetries::default();
    loop {
        match apply_missing(connection, migrations).await {
            Err(error) if retries.permit(&error).await => {}
            applied => return applied,
        }
    }
}

/// Returns whether a program with these migrations can use the schema; none if one of them is
/// missing that a start applies. Waits for no other process.
pub(super) async fn current(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Option<Schema>, sqlx::Error> {
    create_version_table(connection).await?;
    let schema = read_version(connection).await?;
    let usability = schema.usability(migrations);
    let has_all = schema.version >= program_version(migrations);
    Ok((has_all || usability == Schema::TooNew).then_some(usability))
}

/// Repeats a migration whose tables are in use.
#[derive(Debug, Default)]
pub(super) struct LockRetries(u32);

impl LockRetries {
    /// Returns whether to try again after this error, after a wait.
    pub(super) async fn permit(&mut self, error: &sqlx::Error) -> bool {
        let is_locked = error
            .as_database_error()
            .is_some_and(|error| error.code().as_deref() == Some(LOCK_NOT_AVAILABLE));
        if !is_locked || self.0 >= ATTEMPTS {
            return false;
        }
        self.0 += 1;
        tracing::warn!("a table of the ledger is in use; its migration is tried again");
        tokio::time::sleep(RETRY_INTERVAL).await;
        true
    }
}

/// Reads the version of the schema, and the oldest program that may use it.
pub(super) async fn read_version(
    connection: &mut PgConnection,
) -> Result<SchemaVersion, sqlx::Error> {
    version_of(connection, "SELECT version, min_program FROM schema_version").await
}

/// Reads the version, and locks its row until the end of the transaction.
pub(super) async fn lock_version(
    connection: &mut PgConnection,
) -> Result<SchemaVersion, sqlx::Error> {
    version_of(connection, "SELECT version, min_program FROM schema_version FOR UPDATE").await
}

async fn version_of(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<SchemaVersion, sqlx::Error> {
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    Ok(SchemaVersion { version: row.try_get(0)?, min_program: row.try_get(1)? })
}

async fn apply_missing(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Schema, sqlx::Error> {
    loop {
        let mut transaction = connection.begin_with(BEGIN).await?;
        let schema = lock_version(&mut transaction).await?;
        let usability = schema.usability(migrations);
        let next = usize::try_from(schema.version).ok().and_then(|version| migrations.get(version));
        let Some(migration) = next.filter(|_| usability == Schema::Usable) else {
            // At once: a dropped transaction ends with the next statement, and others wait for it.
            transaction.rollback().await?;
            return Ok(usability);
        };
        if let Migration::Expansion { sql } = migration {
            sqlx::raw_sql(MIGRATION_LOCKS).execute(&mut *transaction).await?;
            sqlx::raw_sql(*sql).execute(&mut *transaction).await?;
        }
        sqlx::raw_sql("UPDATE schema_version SET version = version + 1")
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
}

/// Creates the table with the version, unless it exists. Its only row has the version 0 first.
async fn create_version_table(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS schema_version ( \
         one boolean PRIMARY KEY DEFAULT true CHECK (one), \
         version bigint NOT NULL, min_program bigint NOT NULL); \
         INSERT INTO schema_version (version, min_program) VALUES (0, 1) ON CONFLICT DO NOTHING";
    loop {
        match sqlx::raw_sql(CREATE).execute(&mut *connection).await {
            Err(sqlx::Error::Database(error))
                if error.code().is_some_and(|code| CREATED_MEANWHILE.contains(&code.as_ref())) => {}
            created => return created.map(drop),
        }
    }
}

#[cfg(test)]
#[path = "migrations_tests.rs"]
mod tests;
