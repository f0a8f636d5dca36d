//! A rolling upgrade over several versions of the schema, while readers borrow, read and return.
//!
//! The present program is the built one. The next program is the same with more migrations, so its
//! gates run in the test process.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loangate::clock::Clock;
use loangate::config::Loaded;
use loangate::ledger::{
    self, AuditKey, ContractError, MIGRATIONS, Migration, Obstacle, PostgresSettings, StoreSettings,
};
use loangate::reader::Readers;
use sqlx::Executor;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::cluster::{Cluster, ClusterGate, Plan, Store};
use crate::support::external_program::output_text;
use crate::support::{AUDIO, BOOK};

const GATES: usize = 3;
/// Readers at once.
const READERS: usize = 4;
/// Requests that must succeed between two steps of the upgrade.
const REQUESTS: usize = 40;
/// How long another program, such as a backup, reads a table that a migration changes.
const OTHER_READ: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What the next program adds to the schema.
const ADDED: [Migration; 3] = [
    Migration::Expansion { sql: "ALTER TABLE loans ADD COLUMN shelf text DEFAULT 'none'" },
    Migration::Index {
        name: "loans_of_shelf",
        sql: "CREATE INDEX CONCURRENTLY IF NOT EXISTS loans_of_shelf ON loans (shelf)",
    },
    Migration::Contraction {
        removes: "the index loans_of_title",
        sql: "ALTER TABLE loans ALTER shelf DROP DEFAULT; DROP INDEX loans_of_title",
    },
];

/// The cluster, and a load balancer that sends no request to a gate that is being upgraded.
struct Upgrade {
    cluster: Arc<Cluster>,
    /// Read by requests, written during the upgrade of the gate.
    in_rotation: [RwLock<()>; GATES],
    requests: AtomicUsize,
    is_over: AtomicBool,
}

impl Upgrade {
    /// Returns a gate in the rotation.
    async fn with_gate<T>(&self, request: impl AsyncFnOnce(&ClusterGate) -> T) -> T {
        let first = fastrand::usize(..GATES);
        let order = (0..GATES).map(|number| (first + number) % GATES);
        let (gate, _guard) = order
            .filter_map(|number| Some((number, self.in_rotation[number].try_read().ok()?)))
            .next()
            .expect("at most one gate is upgraded at a time");
        request(&self.cluster.gates[gate]).await
    }

    /// Borrows, reads and returns until the upgrade is over. No request may fail.
    async fn read_titles(self: Arc<Self>, number: usize) {
        let mut round = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let isbn = if round % 2 == 0 { BOOK } else { AUDIO };
            let reader = self.cluster.reader(&format!("reader-{number}-{round}"), isbn);
            for step in 0..4 {
                let exchange = self.with_gate(async |gate| match step {
                    3 => self.cluster.return_loan(gate, &reader).await,
                    _ => self.cluster.read(gate, &reader).await,
                });
                let exchange = exchange.await;
                assert!(exchange.is_ok(), "{exchange:?}");
                self.requests.fetch_add(1, Ordering::Relaxed);
            }
            round += 1;
        }
    }

    /// Waits for more requests at the gates of now.
    async fn serve_more(&self) {
        let (began, before) = (Instant::now(), self.requests.load(Ordering::Relaxed));
        while self.requests.load(Ordering::Relaxed) < before + REQUESTS {
            assert!(began.elapsed() < PATIENCE, "the readers do not read");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Replaces a gate with one of the next program.
    async fn upgrade(&self, number: usize) {
        let _out_of_rotation = self.in_rotation[number].write().await;
        let gate = &self.cluster.gates[number];
        gate.replace(next_config(gate)).await;
    }

    /// Reads a table for some time, as a backup does. A migration must not make others wait for it.
    async fn read_loans(&self) {
        let database = &self.cluster.store.postgres().unwrap().database;
        let mut reader = database.connect().await;
        reader.execute("BEGIN; SELECT count(*) FROM loans").await.unwrap();
        tokio::spawn(async move {
            sleep(OTHER_READ).await;
            reader.execute("COMMIT").await.unwrap();
        });
    }
}

fn next_config(gate: &ClusterGate) -> Loaded {
    let mut loaded = loangate::config::load(&gate.config).unwrap();
    let StoreSettings::Postgres(settings) = &mut loaded.config.ledger.store else { unreachable!() };
    settings.migrations = Vec::leak([MIGRATIONS, &ADDED].concat());
    loaded
}

fn next_settings(gate: &ClusterGate) -> PostgresSettings {
    match next_config(gate).config.ledger.store {
        StoreSettings::Postgres(settings) => *settings,
        StoreSettings::Sqlite(_) => unreachable!(),
    }
}

/// Runs a command of the present program with the configuration of a gate.
fn present_program(arguments: &[&str], gate: &ClusterGate) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(arguments).arg("--config").arg(&gate.config).output().unwrap()
}

/// Reports waits for locks in the log, from the default `deadlock_timeout` of one second on.
async fn log_lock_waits(cluster: &Cluster) {
    let mut admin = cluster.store.postgres().unwrap().database.connect_as_admin().await;
    admin.execute("ALTER SYSTEM SET log_lock_waits = on").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
}

/// Waits of a second for the lock of a table. Other waits are those of rows, as always.
fn long_waits(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("still waiting for") && line.contains(" on relation "))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_upgrade_over_several_versions_fails_no_request() {
    let Some(cluster) = Cluster::start(Plan::new(GATES, Store::Postgres)).await else { return };
    log_lock_waits(&cluster).await;
    let upgrade = Arc::new(Upgrade {
        cluster,
        in_rotation: Default::default(),
        requests: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        readers.spawn(Arc::clone(&upgrade).read_titles(number));
    }
    let gates = &upgrade.cluster.gates;
    let next = next_settings(&gates[0]);
    upgrade.serve_more().await;
    let nothing = present_program(&["ledger", "contract"], &gates[0]);
    assert!(nothing.status.success(), "{}", output_text(&nothing));
    assert!(output_text(&nothing).contains("nothing to contract"), "{}", output_text(&nothing));

    // The schema expands, and gates of both programs work.
    upgrade.read_loans().await;
    upgrade.upgrade(0).await;
    upgrade.serve_more().await;
    index_is_built(&next).await;
    let present = i64::try_from(MIGRATIONS.len()).unwrap();
    let older = |obstacle: &Obstacle| match obstacle {
        Obstacle::OlderGate { program, .. } => *program == present,
        _ => false,
    };
    match ledger::contract(&next).await {
        Err(ContractError::Obstacles(obstacles)) => {
            assert!(obstacles.len() == 2 && obstacles.iter().all(older), "{obstacles:?}");
        }
        other => panic!("contracted beside older gates: {other:?}"),
    }
    for number in 1..GATES {
        upgrade.upgrade(number).await;
        upgrade.serve_more().await;
    }

    // It contracts, and no older gate starts any more.
    upgrade.read_loans().await;
    assert_eq!(ledger::contract(&next).await.unwrap(), ["the index loans_of_title"]);
    upgrade.serve_more().await;
    let refused = present_program(&["serve"], &gates[1]);
    assert!(!refused.status.success());
    let sentence = "the ledger has a schema that this program does not know";
    assert_eq!(output_text(&refused).matches(sentence).count(), 1, "{}", output_text(&refused));
    upgrade.is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = readers.join_next().await {
        ended.unwrap();
    }
    let log = upgrade.cluster.store.postgres().unwrap().server.log();
    assert_eq!(long_waits(&log), [""; 0], "waits for locks of a second");
    println!("{} requests succeeded", upgrade.requests.load(Ordering::Relaxed));
    upgrade.cluster.judge_and_stop().await;
    audit_trail_verifies(&gates[0]).await;
}

async fn index_is_built(next: &PostgresSettings) {
    let began = Instant::now();
    let missing = Obstacle::MissingIndex("loans_of_shelf");
    while ledger::plan_contraction(next).await.unwrap().unwrap().obstacles.contains(&missing) {
        assert!(began.elapsed() < PATIENCE, "the index is not built");
        sleep(POLL_INTERVAL).await;
    }
}

/// As `Cluster::end` verifies it, by the next program.
async fn audit_trail_verifies(gate: &ClusterGate) {
    let config = next_config(gate).config;
    let readers = Readers::new(&config.readers, Clock::system()).unwrap();
    let key = AuditKey::new(&readers.audit_key());
    let verified =
        ledger::verify(&config.ledger.store, &key, &ledger::RowsRead::default()).await.unwrap();
    assert_eq!(verified.findings, [""; 0]);
}
