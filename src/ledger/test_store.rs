//! The databases on which the tests of the ledger's contract run.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use super::postgres::test_support::settings;
use super::postgres::test_support::support::{Database, Postgres};
use super::test_support::{KEY, audit_key};
use super::{Brake, Ledger, LedgerError, Settings, StoreSettings, check, verify};
use crate::clock::Clock;
use crate::telemetry::Metrics;

const PATIENCE: Duration = Duration::from_secs(60);

/// An empty store, which several ledgers may open.
pub(super) enum TestStore {
    Sqlite(TempDir),
    Postgres { database: Box<Database>, heads: TempDir },
}

impl TestStore {
    pub(super) fn sqlite() -> TestStore {
        TestStore::Sqlite(tempfile::tempdir().unwrap())
    }

    /// Returns none where PostgreSQL is not installed.
    pub(super) async fn postgres() -> Option<TestStore> {
        let database = Box::new(Postgres::shared().await?.database().await);
        Some(TestStore::Postgres { database, heads: tempfile::tempdir().unwrap() })
    }

    /// Returns another empty store in the same kind of database.
    pub(super) async fn another(&self) -> TestStore {
        match self {
            TestStore::Sqlite(_) => TestStore::sqlite(),
            TestStore::Postgres { .. } => TestStore::postgres().await.unwrap(),
        }
    }

    pub(super) async fn open(&self) -> Ledger {
        self.open_with(Brake::default()).await
    }

    pub(super) async fn open_with(&self, brake: Brake) -> Ledger {
        self.try_open(&KEY, brake).await.unwrap()
    }

    /// Opens a ledger with the pseudonym key of this fingerprint.
    pub(super) async fn try_open(
        &self,
        fingerprint: &[u8; 32],
        brake: Brake,
    ) -> Result<Ledger, LedgerError> {
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let settings = Settings { store: self.settings(), brake };
        let mut ledger = Ledger::open(&settings, fingerprint, audit_key(), clock, metrics).await?;
        // A machine that is busy with other tests takes longer than a reader waits.
        ledger.deadlines.reader_write = ledger.deadlines.reader_write.map(|_| PATIENCE);
        Ok(ledger)
    }

    /// Lets the owner of this name count as dead. In SQLite its process must have ended.
    pub(super) async fn declare_dead(&self, name: &str) {
        let fence = format!("UPDATE members SET fenced = 1 WHERE member = '{name}'");
        self.execute("SELECT 1", &fence).await;
    }

    /// Executes a statement, which each database has in its own words.
    pub(super) async fn execute(&self, sqlite: &str, postgres: &str) {
        match self {
            TestStore::Sqlite(directory) => {
                let options = SqliteConnectOptions::new().filename(file(directory));
                let mut connection = options.connect().await.unwrap();
                let sql = AssertSqlSafe(sqlite.to_owned());
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            TestStore::Postgres { database, .. } => {
                let mut connection = database.connect().await;
                let sql = AssertSqlSafe(postgres.to_owned());
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Checks the rows and the audit trail.
    pub(super) async fn assert_sound(&self) {
        let store = self.settings();
        assert_eq!(
            check(&store, &audit_key(), &crate::ledger::RowsRead::default()).await.unwrap(),
            Vec::<String>::new()
        );
        let verified =
            verify(&store, &audit_key(), &crate::ledger::RowsRead::default()).await.unwrap();
        assert_eq!(verified.findings, Vec::<String>::new());
    }

    /// Returns the file of SQLite.
    pub(super) fn file(&self) -> Option<PathBuf> {
        match self {
            TestStore::Sqlite(directory) => Some(file(directory)),
            TestStore::Postgres { .. } => None,
        }
    }

    pub(super) fn settings(&self) -> StoreSettings {
        match self {
            TestStore::Sqlite(directory) => StoreSettings::Sqlite(file(directory)),
            TestStore::Postgres { database, heads } => {
                let mut settings = settings(&database.url());
                settings.connections = 8;
                settings.heads = heads.path().to_owned();
                StoreSettings::Postgres(Box::new(settings))
            }
        }
    }
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("data/loans.db")
}

/// Defines a test for each store from each of these functions of a [`TestStore`].
macro_rules! on_each_store {
    ($($name:ident)+) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::TestStore::sqlite()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(store) = super::TestStore::postgres().await else { return };
                super::$name(&store).await;
            })+
        }
    };
}
pub(super) use on_each_store;
