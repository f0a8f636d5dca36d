//! Opening a ledger file: the file, its schema, the fingerprint of the key, and the audit trail.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr, SqliteConnection};

use super::connection::{SqliteStore, WriteHandle, write_options};
use super::process::{OpeningLock, Process};
use super::queries::Queries;
use super::reconcile::reconcile_without_head;
use super::restore::require_whole_restore;
use super::{chain, copy_marks};
use crate::clock::Clock;
use crate::ledger::LedgerError;
use crate::ledger::audit::{AuditKey, Head, head_file};
use crate::ledger::damaged_rows::DamagedRows;
use crate::ledger::membership::Membership;
use crate::telemetry::Metrics;

/// The migrations: number, name and SQL. sqlx has a macro that lists them, but it would compile
/// SQLite a second time.
const MIGRATIONS: [(i64, &str, &str); 16] = [
    (1, "loans", include_str!("migrations/0001_loans.sql")),
    (2, "brake", include_str!("migrations/0002_brake.sql")),
    (3, "audit", include_str!("migrations/0003_audit.sql")),
    (4, "life", include_str!("migrations/0004_life.sql")),
    (5, "brake", include_str!("migrations/0005_brake.sql")),
    (6, "delivered", include_str!("migrations/0006_delivered.sql")),
    (7, "attempts", include_str!("migrations/0007_attempts.sql")),
    (8, "listings", include_str!("migrations/0008_listings.sql")),
    (9, "audit", include_str!("migrations/0009_audit.sql")),
    (10, "balance feed", include_str!("migrations/0010_balance_feed.sql")),
    (11, "accesses", include_str!("migrations/0011_accesses.sql")),
    (12, "reports", include_str!("migrations/0012_reports.sql")),
    (13, "examinations", include_str!("migrations/0013_examinations.sql")),
    (14, "report facts", include_str!("migrations/0014_report_facts.sql")),
    (15, "steps need no loan", include_str!("migrations/0015_steps_need_no_loan.sql")),
    (16, "requests", include_str!("migrations/0016_requests.sql")),
];

/// A ledger file that is ready to use.
pub(in crate::ledger) struct Opened {
    pub(in crate::ledger) store: SqliteStore,
    pub(in crate::ledger) connection: WriteHandle,
    pub(in crate::ledger) queries: Queries,
    /// Queries with connections of their own.
    pub(in crate::ledger) support: Queries,
    pub(in crate::ledger) membership: Arc<dyn Membership>,
    /// The newest link of the audit trail.
    pub(in crate::ledger) head: Head,
}

/// Opens a ledger file. Creates a missing one and migrates an older schema.
pub(in crate::ledger) async fn open(
    file: &Path,
    key_fingerprint: &[u8; 32],
    audit_key: &AuditKey,
    metrics: &Metrics,
) -> Result<Opened, LedgerError> {
    let unusable = |source| LedgerError::File { file: file.to_owned(), source };
    let failed = |source| LedgerError::Database { file: file.to_owned(), source };
    let (opening, mut connection) = prepare(file, key_fingerprint).await?;
    let marks = copy_marks::read(&mut connection).await.map_err(failed)?;
    marks.allow_gate()?;
    if marks.is_being_copied() {
        tracing::warn!("an unfinished copy of the ledger ends, since a gate opens the ledger");
        copy_marks::give_up_copy(&mut connection).await.map_err(failed)?;
    }
    chain::fill_in_hashes(&mut connection, audit_key).await.map_err(failed)?;
    let now = Clock::system().machine_now();
    reconcile_without_head(&mut connection, file, now).await?;
    let head = chain::check_head_file(&mut connection, file).await?;
    let damaged = DamagedRows::new(metrics.clone());
    let (queries, support) = Queries::open(file, damaged).await.map_err(failed)?;
    let process = Process::register(file).map_err(unusable)?;
    // Only now: a copy that takes the lock must find this process.
    drop(opening);
    head_file::remove_leftovers(file, |name| process.is_dead(name));
    Ok(Opened {
        store: SqliteStore::new(file),
        connection: WriteHandle::new(connection),
        queries,
        support,
        membership: Arc::new(process),
        head,
    })
}

/// Opens a connection to a ledger whose schema is current and whose key is this one. Nobody else
/// can open the ledger while the lock is held.
pub(super) async fn prepare(
    file: &Path,
    key_fingerprint: &[u8; 32],
) -> Result<(OpeningLock, SqliteConnection), LedgerError> {
    let unusable = |source| LedgerError::File { file: file.to_owned(), source };
    let failed = |source| LedgerError::Database { file: file.to_owned(), source };
    require_whole_restore(file)?;
    create_file(file).map_err(unusable)?;
    // Held until the schema is current: SQLite and sqlx do not serialize two first starts.
    let opening = OpeningLock::acquire(file).await.map_err(unusable)?;
    // Again: a restore may have held the lock.
    require_whole_restore(file)?;
    let options = write_options(file);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    migrate(&mut connection, &MIGRATIONS).await.map_err(|error| match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
            LedgerError::NewerSchema
        }
        other => failed(sqlx::Error::Migrate(Box::new(other))),
    })?;
    check_fingerprint(&mut connection, key_fingerprint)
        .await
        .map_err(failed)?
        .then_some(())
        .ok_or(LedgerError::OtherPseudonymKey)?;
    Ok((opening, connection))
}

/// Creates the file with access for its owner only, since it shows who reads what.
fn create_file(file: &Path) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(file).map(drop)
}

async fn migrate(
    connection: &mut SqliteConnection,
    migrations: &[(i64, &'static str, &'static str)],
) -> Result<(), MigrateError> {
    let migrations = migrations.iter().map(|&(version, name, sql)| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect()).run(connection).await
}

/// Compares the fingerprint of the pseudonym key with the stored one. A new ledger stores it.
async fn check_fingerprint(
    connection: &mut SqliteConnection,
    key: &[u8; 32],
) -> Result<bool, sqlx::Error> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('pseudonym key', ?) ON CONFLICT DO NOTHING",
    )
    .bind(key.as_slice())
    .execute(&mut *connection)
    .await?;
    let stored: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'pseudonym key'")
        .fetch_one(connection)
        .await?;
    Ok(stored == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_is_listed_in_order() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ledger/sqlite/migrations");
        let mut files: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let listed = MIGRATIONS
            .map(|(version, name, _)| format!("{version:04}_{}.sql", name.replace(' ', "_")));
        assert_eq!(files, listed);
    }

    #[tokio::test]
    async fn step_that_would_still_need_a_loan_fails_the_migration() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        migrate(&mut connection, &MIGRATIONS[..10]).await.unwrap();
        let other_words = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = \
                           replace(sql, ' REFERENCES loans (id)', ' REFERENCES loans(id)'); \
                           PRAGMA writable_schema = RESET";
        sqlx::raw_sql(other_words).execute(&mut connection).await.unwrap();
        let error = migrate(&mut connection, &MIGRATIONS).await.unwrap_err();
        assert!(format!("{error:?}").contains("history_still_refers_to_loans"), "{error:?}");
        let newest = "SELECT max(version) FROM _sqlx_migrations WHERE success";
        let newest: i64 = sqlx::query_scalar(newest).fetch_one(&mut connection).await.unwrap();
        assert_eq!(newest, 14);
    }
}
