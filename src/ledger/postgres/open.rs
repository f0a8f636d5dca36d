//! Opening a ledger in a database: its schema, the fingerprint of the key, the audit trail, and the
//! lanes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use uuid::Uuid;

use super::connect::{Connector, Purpose, no_response, within};
use super::copy_marks::{self, MarkedLedger};
use super::earlier_processes;
use super::epoch::EpochSeals;
use super::head_records::HeadRecords;
use super::index_builds;
use super::lane::Lane;
use super::loss_detector::LossDetector;
use super::members_table::JoiningProcess;
use super::membership;
use super::migrations::{self, Migration, Schema, SchemaTooNew, program_version};
use super::own_chains::OwnChains;
use super::pool::Pool;
use super::queries::{OwnedBuckets, Queries, QueryPools};
use super::renewals_file::RenewalsFile;
use super::settings::PostgresSettings;
use super::standing::Standing;
use super::store::{PostgresConnection, PostgresStore};
use super::transaction::PROBE_NAME;
use crate::clock::Clock;
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::ledger::copy_mark::Marks;
use crate::ledger::damaged_rows::DamagedRows;
use crate::ledger::membership::Membership;
use crate::ledger::store::LedgerStore;
use crate::telemetry::Metrics;

/// The deadline of each step of a start, which reads or writes a few rows. A stalled database must
/// not hang the start: the caller reports it, and tries again.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of the migrations, which may rewrite large tables.
const MIGRATIONS_DEADLINE: Duration = Duration::from_secs(3600);

/// A ledger that is ready to use.
pub(in crate::ledger) struct Opened {
    /// The store of each lane, with an open connection.
    pub(in crate::ledger) lanes: Vec<(PostgresStore, PostgresConnection)>,
    pub(in crate::ledger) queries: Queries,
    /// Queries with connections of their own.
    pub(in crate::ledger) support: Queries,
    pub(in crate::ledger) membership: Arc<dyn Membership>,
    pub(in crate::ledger) heads: Arc<ChainHeads>,
}

/// Opens a ledger. Creates its tables in an empty database and migrates an older schema.
pub(in crate::ledger) async fn open(
    settings: &PostgresSettings,
    key_fingerprint: &[u8; 32],
    audit_key: &AuditKey,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Opened, LedgerError> {
    let connector = Connector::new(settings);
    let chain = Uuid::new_v4();
    let keys = (key_fingerprint, audit_key);
    let (mut connection, seals) = prepare(&connector, settings.migrations, keys, chain).await?;
    let ledger = seals.ledger();
    let missing_indexes = step(index_builds::missing(&mut connection, settings.migrations)).await?;
    in_time(refuse_copied(&mut connection)).await?;
    let mut before =
        in_time(earlier_processes::compare(&mut connection, &settings.heads, &seals, clock))
            .await?;
    step(remove_probes(&mut connection)).await?;
    let unusable = |source| LedgerError::File { file: settings.heads.clone(), source };
    let heads =
        ChainHeads::start(&settings.heads, ledger, chain, before.epoch).map_err(unusable)?;
    let superseded = std::mem::take(&mut before.superseded);
    let file = RenewalsFile::start(&settings.heads, ledger, chain, superseded);
    let detector = LossDetector::new(before, Some(file), Some(heads.clone()));
    // Joined before anything is written: the owner of a loan must be a member.
    let clocks = (clock.clone(), metrics.clone());
    let PostgresSettings { lease, freshness, .. } = *settings;
    let program = program_version(settings.migrations);
    let process = JoiningProcess { id: chain, lease, freshness, program };
    let joined = membership::join(connector.clone(), process, detector, seals, clocks);
    let membership = Box::pin(joined).await.map_err(join_error)?;
    // Again after the join: a copy that begins later finds this member.
    let refused = in_time(give_up_copy(&mut connection)).await;
    let _ = step(connection.close()).await;
    if let Err(error) = refused {
        membership.leave(true).await;
        return Err(error);
    }
    let shares = settings.shares();
    let own = (chain, audit_key, &heads, &membership);
    let lanes = match connect_lanes(&connector, shares.writes, own, clock).await {
        Ok(lanes) => lanes,
        Err(error) => {
            membership.leave(true).await;
            return Err(error);
        }
    };
    index_builds::start(connector.clone(), membership.clone(), missing_indexes, metrics);
    let pools = QueryPools {
        reads: Pool::new(connector.clone(), Purpose::Reads, shares.reads),
        support: Pool::new(connector.clone(), Purpose::Support, shares.support),
        feed: Pool::new(connector, Purpose::Feed, 1),
    };
    let (queries, support) =
        Queries::new(pools, buckets_of(&membership), DamagedRows::new(metrics.clone()));
    let own = OwnChains { chain, ledger, directory: settings.heads.clone() };
    let records = HeadRecords::new(support.pool.clone(), own, audit_key.clone());
    records.start(Arc::downgrade(&heads));
    Ok(Opened { lanes, queries, support, membership, heads })
}

fn buckets_of(membership: &Arc<Standing>) -> OwnedBuckets {
    let membership = membership.clone();
    OwnedBuckets::new(move || membership.buckets())
}

/// Opens the first connections of the lanes that write.
async fn connect_lanes(
    connector: &Connector,
    count: u32,
    (chain, audit_key, heads, membership): (Uuid, &AuditKey, &Arc<ChainHeads>, &Arc<Standing>),
    clock: &Clock,
) -> Result<Vec<(PostgresStore, PostgresConnection)>, LedgerError> {
    let now = clock.now();
    let lanes = (0..count).map(|number| {
        let lane = Lane::new(number, chain, audit_key.clone(), heads.clone(), membership.clone());
        let store = PostgresStore::new(connector.clone(), lane);
        async move {
            let connected = step(Box::pin(store.connect(now))).await;
            connected.map(|connection| (store, connection))
        }
    });
    try_join_all(lanes).await
}

/// Opens a connection to a ledger whose schema is current and whose key has this fingerprint.
/// Returns it with what seals its epochs. The id of a new ledger is `candidate`.
pub(super) async fn prepare(
    connector: &Connector,
    migrations: &[Migration],
    (key_fingerprint, audit_key): (&[u8; 32], &AuditKey),
    candidate: Uuid,
) -> Result<(PgConnection, EpochSeals), LedgerError> {
    let mut connection =
        connector.connect(Purpose::Migrations).await.map_err(LedgerError::Server)?;
    let schema = match step(migrations::current(&mut connection, migrations)).await? {
        Some(schema) => schema,
        None => {
            tracing::info!("migrating the schema of the ledger");
            let migrated = migrations::run(&mut connection, migrations);
            within(MIGRATIONS_DEADLINE, migrated).await.map_err(LedgerError::Server)?
        }
    };
    if schema == Schema::TooNew {
        return Err(LedgerError::NewerSchema);
    }
    let candidates = [("pseudonym key", key_fingerprint.to_vec()), ("ledger", candidate.into())];
    let [fingerprint, ledger] = step(stored(&mut connection, candidates)).await?;
    if fingerprint != key_fingerprint {
        return Err(LedgerError::OtherPseudonymKey);
    }
    let ledger = Uuid::from_slice(&ledger)
        .map_err(|error| LedgerError::damaged("? (the id of the ledger)", &error))?;
    let seals = EpochSeals::new(audit_key.clone(), ledger);
    step(seals.seal_first(&mut connection)).await?;
    Ok((connection, seals))
}

/// Runs a step of the start within its deadline.
pub(super) async fn in_time<T>(
    step: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    let late = |_| Err(LedgerError::Server(no_response(STEP_DEADLINE)));
    timeout(STEP_DEADLINE, step).await.unwrap_or_else(late)
}

/// Runs a step of the start whose only errors are those of the database.
async fn step<T>(step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    within(STEP_DEADLINE, step).await.map_err(LedgerError::Server)
}

/// Another process may have removed something from the schema since it was migrated here, or have
/// moved the ledger.
fn join_error(error: sqlx::Error) -> LedgerError {
    if let Some(Err(refused)) = MarkedLedger::marks_in(&error).map(Marks::allow_gate) {
        return refused;
    }
    match &error {
        sqlx::Error::Configuration(source) if source.is::<SchemaTooNew>() => {
            LedgerError::NewerSchema
        }
        _ => LedgerError::Server(error),
    }
}

/// Refuses a ledger into which a copy is unfinished, or that was moved.
async fn refuse_copied(connection: &mut PgConnection) -> Result<bool, LedgerError> {
    let marks = copy_marks::read(connection).await.map_err(LedgerError::Server)?;
    marks.allow_gate().map(|()| marks.is_being_copied())
}

/// Ends an unfinished copy of this ledger. Then refuses as [`refuse_copied`], in this order.
async fn give_up_copy(connection: &mut PgConnection) -> Result<(), LedgerError> {
    if refuse_copied(connection).await? {
        tracing::warn!("an unfinished copy of the ledger ends, since a gate opens the ledger");
        copy_marks::give_up_copy(connection).await.map_err(LedgerError::Server)?;
    }
    refuse_copied(connection).await.map(drop)
}

/// Returns the values that the database has for these names. The first process stores its own.
async fn stored<const N: usize>(
    connection: &mut PgConnection,
    candidates: [(&str, Vec<u8>); N],
) -> Result<[Vec<u8>; N], sqlx::Error> {
    let mut values = [const { Vec::new() }; N];
    for (value, (name, candidate)) in values.iter_mut().zip(candidates) {
        let store = sqlx::query(
            "INSERT INTO meta (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO NOTHING",
        );
        let store = store.bind(name).bind(candidate).persistent(false);
        store.execute(&mut *connection).await?;
        let read = sqlx::query_scalar("SELECT value FROM meta WHERE name = $1").bind(name);
        *value = read.persistent(false).fetch_one(&mut *connection).await?;
    }
    Ok(values)
}

/// Removes the probe rows of processes that were killed. A live one writes its row again.
async fn remove_probes(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    const REMOVE: &str = "DELETE FROM meta WHERE name = ANY(ARRAY( \
         SELECT name FROM meta WHERE starts_with(name, $1) FOR UPDATE SKIP LOCKED))";
    let remove = sqlx::query(REMOVE).bind(PROBE_NAME).persistent(false);
    remove.execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::super::test_support::support::{Database, Postgres};
    use super::super::test_support::{Node, settings};
    use super::*;

    /// Waits until a statement waits for a lock.
    async fn until_blocked(database: &Database) {
        let mut admin = database.connect().await;
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = \
             (SELECT oid FROM pg_database WHERE datname = current_database())";
        for _ in 0..600 {
            let blocked: i64 = sqlx::query_scalar(waiting).fetch_one(&mut admin).await.unwrap();
            if blocked > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no statement waits for a lock");
    }

    #[tokio::test]
    async fn stalled_database_fails_each_step_of_a_start() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let heads = Node::open(&database).await.close().await;
        for table in ["schema_version", "meta", "members", "chains"] {
            let mut other = database.connect().await;
            let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
            other.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
            let (postgres, heads) = (settings(&database.url()), &heads);
            let opening = async { Node::try_open(postgres, heads).await.map(drop) };
            let stalled = async {
                until_blocked(&database).await;
                // The deadline passes at once, since nothing else happens.
                tokio::time::pause();
            };
            let (opened, ()) = tokio::join!(opening, stalled);
            tokio::time::resume();
            let error = opened.unwrap_err();
            assert!(error.is_unreachable(), "{table}: {error}");
            assert!(error.to_string().contains("no response within 10000 ms"), "{table}: {error}");
            other.close().await.unwrap();
        }
    }
}
