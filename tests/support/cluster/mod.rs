//! Several gates as processes, with one ledger, one sandbox and one origin.
//!
//! A test starts a [`Cluster`], sends requests by [`Cluster::read`] and its siblings, and injects
//! faults into gates, database and sandbox. [`Cluster::end`] heals everything, waits until no work
//! is left, and fails on each [finding](judge::Evidence::findings) of the judge.

mod gate;
pub(crate) mod judge;
mod patroni;
mod requests;
mod store;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loangate::clock::Clock;
use loangate::reader::Readers;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::time::{Instant, sleep};

use super::external_program::output_text;
use super::scene::{Setting, check_books};
use super::{LIBRARY, Scene};

pub(crate) use gate::ClusterGate;
pub(crate) use judge::Evidence;
pub(crate) use requests::{ClusterReader, Exchange, Kind};
pub(crate) use store::{PostgresStore, Store, StoreServer};

/// Lease of a member of the cluster.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// Time after the last fault within which no begin and no end may be left unfinished.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
/// Interval at which a state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One cluster whose times are judged runs at a time, since small machines run the tests too.
static TURN: AsyncMutex<()> = AsyncMutex::const_new(());

/// Parameters of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) gates: usize,
    pub(crate) store: Store,
    pub(crate) bounds: Bounds,
    /// `gate.freshness`.
    pub(crate) freshness: Duration,
    /// The longest time for which one reader and title may have two live loans.
    pub(crate) duplicate_bound: Duration,
    /// Whether other clusters may run meanwhile.
    pub(crate) is_beside_others: bool,
}

impl Plan {
    pub(crate) fn new(gates: usize, store: Store) -> Plan {
        Plan {
            gates,
            store,
            bounds: Bounds::quick(),
            freshness: Duration::from_secs(30),
            duplicate_bound: Duration::ZERO,
            is_beside_others: false,
        }
    }
}

/// Running gates and everything around them.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The sandbox, the origin and the keys. It has no gate of its own.
    pub(crate) scene: Scene,
    pub(crate) gates: Vec<ClusterGate>,
    pub(crate) store: StoreServer,
    plan: Plan,
    clients: requests::Clients,
    pseudonyms: Readers,
    exchanges: Mutex<Vec<Exchange>>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// Starts all gates at once. Returns `None` where the database server is not installed.
    pub(crate) async fn start(plan: Plan) -> Option<Arc<Cluster>> {
        let turn = if plan.is_beside_others { None } else { Some(TURN.lock().await) };
        let setting = Setting { bounds: plan.bounds.clone(), ..Setting::default() };
        let scene = Scene::without_gate(setting).await;
        let store = StoreServer::start(plan.store, scene.dir.path(), plan.gates).await?;
        let configs: Vec<_> = (0..plan.gates)
            .map(|number| write_config(&scene, &plan, number, &store.lines(number)))
            .collect();
        let gates = futures_util::future::join_all(
            configs.into_iter().enumerate().map(|(number, file)| ClusterGate::start(number, file)),
        )
        .await;
        let loaded = loangate::config::load(&scene.config_file()).unwrap();
        let pseudonyms = Readers::new(&loaded.config.readers, Clock::system()).unwrap();
        let clients = requests::Clients::new(&scene);
        Some(Arc::new(Cluster {
            scene,
            gates,
            store,
            plan,
            clients,
            pseudonyms,
            exchanges: Mutex::default(),
            _turn: turn,
        }))
    }

    /// Returns the pseudonym of a borrower, as the books have it.
    pub(crate) fn pseudonym(&self, borrower: &str) -> String {
        self.pseudonyms.pseudonym(LIBRARY.parse().unwrap(), borrower).to_string()
    }

    /// Returns a random gate.
    pub(crate) fn any_gate(&self, chance: &mut fastrand::Rng) -> &ClusterGate {
        &self.gates[chance.usize(..self.gates.len())]
    }

    /// Returns all loans of the ledger, by the first gate that responds.
    pub(crate) async fn ledger(&self) -> Vec<Value> {
        self.gates[0].loans("").await.expect("the first gate responds")
    }

    /// Ends all faults: gates and database run and are connected, the sandbox responds.
    pub(crate) async fn heal(&self) {
        self.scene.no_faults().await;
        self.store.heal().await;
        for gate in &self.gates {
            gate.resume();
            if !gate.runs() {
                gate.restart().await;
            }
        }
    }

    /// Waits until no begin is undecided and no end waits, in the ledger and in the books.
    pub(crate) async fn settle(&self) {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let left = self.unfinished().await;
            if left.as_ref().is_some_and(Vec::is_empty) {
                return;
            }
            assert!(Instant::now() < deadline, "unfinished after all faults: {left:#?}");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns the loans with work left, or `None` if the ledger cannot be read.
    async fn unfinished(&self) -> Option<Vec<Value>> {
        let mut left = Vec::new();
        for state in ["intended", "pending", "unknown", "ending"] {
            left.extend(self.gates[0].loans(&format!("&state={state}")).await?);
        }
        Some(left)
    }

    /// Returns what the judge needs. The cluster must have settled.
    pub(crate) async fn evidence(&self) -> Evidence {
        Evidence {
            books: self.scene.books().await,
            ledger: self.ledger().await,
            exchanges: self.exchanges.lock().unwrap().clone(),
            origin: self.scene.origin.requests(),
            stale_bound: self.plan.store.stale_bound(self.plan.freshness),
            duplicate_bound: self.plan.duplicate_bound,
        }
    }

    /// Heals the cluster, judges what happened and stops the gates.
    pub(crate) async fn end(&self) -> Evidence {
        self.heal().await;
        let evidence = self.judge_and_stop().await;
        // Each has head files of its own, with PostgreSQL.
        self.gates.iter().for_each(|gate| verify_audit_trail(&gate.config));
        evidence
    }

    /// Judges what happened and stops the gates.
    pub(crate) async fn judge_and_stop(&self) -> Evidence {
        self.settle().await;
        let evidence = self.evidence().await;
        let findings = evidence.findings();
        assert!(findings.is_empty(), "{} findings: {findings:#?}", findings.len());
        check_books(&evidence.books, &evidence.ledger);
        for gate in &self.gates {
            gate.terminate().await;
        }
        evidence
    }

    fn record(&self, exchange: Exchange) -> Exchange {
        self.exchanges.lock().unwrap().push(exchange.clone());
        exchange
    }

    /// Adds faults of the sandbox for one round, as `POST /sandbox/faults` takes them.
    pub(crate) async fn fault(&self, faults: &Value) {
        self.scene.control("POST", "/sandbox/faults", &json!(faults)).await;
    }
}

/// Writes the configuration of one gate into a directory of its own.
fn write_config(scene: &Scene, plan: &Plan, number: usize, ledger: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let directory = scene.dir.path().join(format!("gate-{number}"));
    std::fs::create_dir_all(&directory).unwrap();
    let mut lines = format!("[ledger]\n{ledger}");
    if plan.store != Store::Sqlite {
        lines += &format!("lease = \"{}s\"\n", LEASE.as_secs());
    }
    let text = std::fs::read_to_string(scene.config_file()).unwrap();
    let text = text
        .replace("[ledger]\nurl = \"sqlite:data/loangate.db\"\n", &lines)
        .replace("\"certs/", "\"../certs/")
        .replace("timeout = \"2s\"", "timeout = \"1s\"");
    assert!(text.contains(ledger), "{text}");
    // All readers of a test have one address, as behind a load balancer.
    let more = format!(
        "\n[gate]\nfreshness = \"{}ms\"\n\n[limits]\nexempt_networks = [\"127.0.0.0/8\"]\n",
        plan.freshness.as_millis()
    );
    let file = directory.join("config.toml");
    std::fs::write(&file, text + &more).unwrap();
    // The URL of a database has its password.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// Verifies the audit trail of a ledger.
fn verify_audit_trail(config: &Path) {
    let mut verify = Command::new(env!("CARGO_BIN_EXE_loangate"));
    let output = verify.args(["audit", "verify", "--config"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
}
