//! The schema: its migrations, and the test whether this program can use it.
//!
//! Several processes may start at once. Each locks the row of `schema_version` while it migrates,
//! so the others wait. It needs a direct connection, since a migration is one long transaction.
//!
//! A migration only adds to the schema, so that older programs keep working while nodes are
//! upgraded one by one. `min_program` rises only with a migration that removes something.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

/// A migration. Its position in [`MIGRATIONS`] is its version.
pub(super) struct Migration {
    sql: &'static str,
    /// The version that a program must know to use the schema after this migration.
    min_program: i64,
}

/// All migrations that this program knows.
pub(super) const MIGRATIONS: &[Migration] =
    &[Migration { sql: include_str!("migrations/0001_ledger.sql"), min_program: 1 }];

/// The lock of the version waits for another process that migrates. Statements take as long as the
/// tables are large.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = 0; \
    SET LOCAL lock_timeout = '120s'; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'";
/// After the version is locked. A lock of a table that waits makes all statements of running gates
/// on it wait, too.
const MIGRATION_LOCKS: &str = "SET LOCAL lock_timeout = '1s'";
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

/// Applies the missing migrations of these, each in a transaction of its own.
///
/// # Errors
/// The error of the database; migrations that were applied stay.
pub(super) async fn run(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Schema, sqlx::Error> {
    create_version_table(connection).await?;
    let mut attempts = 0;
    loop {
        match apply_missing(connection, migrations).await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) && attempts < ATTEMPTS =>
            {
                attempts += 1;
                tracing::warn!("a table of the ledger is in use; its migration is tried again");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            applied => return applied,
        }
    }
}

/// Returns whether a program with these migrations can use the schema; none if one of them is
/// missing. Waits for no other process.
pub(super) async fn current(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Option<Schema>, sqlx::Error> {
    create_version_table(connection).await?;
    let schema = examine(connection, migrations).await?;
    let row = sqlx::raw_sql("SELECT version FROM schema_version").fetch_one(connection).await?;
    let version: i64 = row.try_get(0)?;
    let has_all = usize::try_from(version).is_ok_and(|version| version >= migrations.len());
    Ok((has_all || schema == Schema::TooNew).then_some(schema))
}

/// Returns whether a program with these migrations can use the schema. Changes nothing.
pub(super) async fn examine(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Schema, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT min_program FROM schema_version").fetch_one(connection).await?;
    let min_program: i64 = row.try_get(0)?;
    let is_known = usize::try_from(min_program).is_ok_and(|program| program <= migrations.len());
    Ok(if is_known { Schema::Usable } else { Schema::TooNew })
}

async fn apply_missing(
    connection: &mut PgConnection,
    migrations: &[Migration],
) -> Result<Schema, sqlx::Error> {
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    loop {
        let mut transaction = connection.begin_with(BEGIN).await?;
        let row = sqlx::raw_sql("SELECT version, min_program FROM schema_version FOR UPDATE")
            .fetch_one(&mut *transaction)
            .await?;
        let (version, min_program): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if min_program > known {
            return Ok(Schema::TooNew);
        }
        let next = usize::try_from(version).ok().and_then(|version| migrations.get(version));
        let Some(migration) = next else { return Ok(Schema::Usable) };
        sqlx::raw_sql(MIGRATION_LOCKS).execute(&mut *transaction).await?;
        sqlx::raw_sql(migration.sql).execute(&mut *transaction).await?;
        let record = sqlx::query("UPDATE schema_version SET version = $1, min_program = $2");
        let record = record.bind(version + 1).bind(migration.min_program.max(min_program));
        record.persistent(false).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
}

/// Creates the table with the version, unless it exists. Its only row has the version 0 first.
async fn create_version_table(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS schema_version ( \
         one boolean PRIMARY KEY DEFAULT true CHECK (one), \
         version bigint NOT NULL, min_program bigint NOT NULL); \
         INSERT INTO schema_version (version, min_program) VALUES (0, 0) ON CONFLICT DO NOTHING";
    loop {
        match sqlx::raw_sql(CREATE).execute(&mut *connection).await {
            Err(sqlx::Error::Database(error))
                if error.code().is_some_and(|code| CREATED_MEANWHILE.contains(&code.as_ref())) => {}
            created => return created.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::support::Postgres;
    use super::*;

    const EXPANSION: Migration =
        Migration { sql: "ALTER TABLE members ADD COLUMN address text", min_program: 1 };
    const CONTRACTION: Migration =
        Migration { sql: "ALTER TABLE members DROP COLUMN address", min_program: 3 };

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_first_migrations_all_succeed() {
        let Some(server) = Postgres::shared().await else { return };
        for _ in 0..5 {
            let database = server.database().await;
            let migrate = async || {
                let mut connection = database.connect().await;
                let migrated = run(&mut connection, MIGRATIONS).await;
                connection.close().await.unwrap();
                migrated
            };
            for migrated in futures_util::future::join_all((0..10).map(|_| migrate())).await {
                assert_eq!(migrated.unwrap(), Schema::Usable);
            }
        }
    }

    #[tokio::test]
    async fn only_a_contraction_refuses_older_programs() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut connection = database.connect().await;
        let [first] = MIGRATIONS else { panic!("this test knows one migration") };
        let first = || Migration { sql: first.sql, min_program: first.min_program };
        assert_eq!(run(&mut connection, &[first(), EXPANSION]).await.unwrap(), Schema::Usable);
        assert_eq!(run(&mut connection, MIGRATIONS).await.unwrap(), Schema::Usable);
        let all = [first(), EXPANSION, CONTRACTION];
        assert_eq!(run(&mut connection, &all).await.unwrap(), Schema::Usable);
        for older in [&all[..2], &all[..1]] {
            assert_eq!(run(&mut connection, older).await.unwrap(), Schema::TooNew);
        }
        assert_eq!(run(&mut connection, &all).await.unwrap(), Schema::Usable);
        connection.close().await.unwrap();
    }

    #[tokio::test]
    async fn migration_that_waits_for_a_table_lets_running_gates_work() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut connection = database.connect().await;
        run(&mut connection, MIGRATIONS).await.unwrap();
        let (mut reader, mut gate) = (database.connect().await, database.connect().await);
        sqlx::raw_sql("BEGIN; SELECT count(*) FROM members").execute(&mut reader).await.unwrap();
        let migrating = tokio::spawn(async move {
            let [first] = MIGRATIONS else { panic!("this test knows one migration") };
            let first = Migration { sql: first.sql, min_program: first.min_program };
            run(&mut connection, &[first, EXPANSION]).await
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let query = sqlx::raw_sql("SELECT count(*) FROM members").execute(&mut gate);
        tokio::time::timeout(Duration::from_secs(4), query).await.unwrap().unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
        assert_eq!(migrating.await.unwrap().unwrap(), Schema::Usable);
    }

    #[tokio::test]
    async fn failed_migration_leaves_the_version() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut connection = database.connect().await;
        let broken = Migration { sql: "CREATE TABLE half (); SELECT 1 / 0", min_program: 1 };
        run(&mut connection, &[broken]).await.unwrap_err();
        assert_eq!(run(&mut connection, MIGRATIONS).await.unwrap(), Schema::Usable);
        let half: bool = sqlx::query_scalar("SELECT to_regclass('half') IS NOT NULL")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert!(!half);
        connection.close().await.unwrap();
    }
}
