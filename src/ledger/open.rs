//! Opens the ledger in its database and starts the executors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::audit::{AuditKey, HeadRecorder, HeadWriter};
use super::executor::ExecutorContext;
use super::lanes::{Deadlines, Lanes};
use super::membership::Membership;
use super::postgres::PostgresSettings;
use super::write_check::WriteTest;
use super::{Brake, Ledger, LedgerError, Queries, Settings, StoreSettings, postgres, sqlite};
use crate::clock::Clock;
use crate::reload::Current;
use crate::telemetry::Metrics;

/// The deadlines of a database that is reached over a network. A reader's request must be answered
/// within the first, and a process must end within the second.
const NETWORK_DEADLINES: Deadlines =
    Deadlines { reader_write: Some(Duration::from_secs(2)), close: Some(Duration::from_secs(10)) };

/// What both databases need.
struct Opening<'a> {
    key_fingerprint: &'a [u8; 32],
    audit_key: AuditKey,
    brake: Current<Brake>,
    clock: Clock,
    metrics: Metrics,
}

impl Ledger {
    /// Opens the ledger. Creates a missing file or the tables of an empty database, and migrates an
    /// older schema.
    ///
    /// The first opening stores `key_fingerprint`, and each later one compares it. `audit_key` is
    /// the key of the audit trail.
    ///
    /// # Errors
    /// [`LedgerError`], a sentence that names the file or the database. The gate must not start
    /// then.
    pub async fn open(
        settings: &Settings,
        key_fingerprint: &[u8; 32],
        audit_key: AuditKey,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Ledger, LedgerError> {
        let brake = Current::new(settings.brake);
        let opening = Opening { key_fingerprint, audit_key, brake, clock, metrics };
        // Boxed: connecting takes much memory, which the future of the caller would reserve.
        match &settings.store {
            StoreSettings::Sqlite(file) => Box::pin(opening.sqlite(file.as_path().into())).await,
            StoreSettings::Postgres(postgres) => Box::pin(opening.postgres(postgres)).await,
        }
    }
}

impl Opening<'_> {
    async fn sqlite(self, file: Arc<Path>) -> Result<Ledger, LedgerError> {
        let sqlite::Opened { store, connection, queries, support, membership, head } =
            sqlite::open(&file, self.key_fingerprint, &self.audit_key, &self.metrics).await?;
        let opened_at = head.number;
        let context = self.context(membership.clone(), file.display().to_string());
        let head = HeadRecorder::File(HeadWriter::new(&file, &membership.name(), head));
        Ok(Ledger {
            file: Some(file),
            lanes: Lanes::start(&context, [(store, connection, head)]),
            deadlines: Deadlines::default(),
            queries: Queries::Sqlite(queries),
            support: Queries::Sqlite(support),
            membership,
            write_test: WriteTest::new(self.metrics),
            opened_at,
            brake: self.brake,
            audit_key: self.audit_key,
        })
    }

    async fn postgres(self, settings: &PostgresSettings) -> Result<Ledger, LedgerError> {
        let Opening { key_fingerprint, audit_key, clock, metrics, .. } = &self;
        let postgres::Opened { lanes, queries, support, membership, heads } =
            Box::pin(postgres::open(settings, key_fingerprint, audit_key, clock, metrics)).await?;
        let context = self.context(membership.clone(), "PostgreSQL".to_owned());
        let with_heads =
            |(store, connection)| (store, connection, HeadRecorder::Chains(heads.clone()));
        Ok(Ledger {
            file: None,
            lanes: Lanes::start(&context, lanes.into_iter().map(with_heads)),
            deadlines: NETWORK_DEADLINES,
            queries: Queries::Postgres(queries),
            support: Queries::Postgres(support),
            membership,
            write_test: WriteTest::new(self.metrics),
            opened_at: 0,
            brake: self.brake,
            audit_key: self.audit_key,
        })
    }

    fn context(&self, membership: Arc<dyn Membership>, ledger: String) -> Arc<ExecutorContext> {
        self.metrics.ledger_writable(true);
        Arc::new(ExecutorContext {
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            membership,
            brake: self.brake.clone(),
            audit_key: self.audit_key.clone(),
            ledger,
        })
    }
}
