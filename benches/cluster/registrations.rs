//! Durable registrations over two gates and fifty libraries, and first requests at the gate that
//! did not register the loan.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loangate::ledger::{self, Brake};
use loangate::loan::LoanKey;
use tokio::time::Instant;

use super::registering_gate::{RegisteringGate, key_of};
use super::shared::{Sandbox, cost, cpu_without_children};
use super::{print_waits, support};
use support::Postgres;

const LOANS: u64 = 50_000;
const LIBRARIES: u64 = 50;
const CALLERS: [u64; 2] = [128, 512];
/// First requests a second at the other gate, and their number.
const OFFERED: u64 = 200;
const FIRST_REQUESTS: u64 = 4_000;

/// Two gates and everything behind them.
struct Scene {
    gates: [Arc<RegisteringGate>; 2],
    sandbox: Sandbox,
    server: Postgres,
    _database: support::postgres::Database,
    _dirs: Vec<tempfile::TempDir>,
}

pub(crate) async fn run(loans: Option<u64>) {
    let loans = loans.unwrap_or(LOANS);
    for callers in CALLERS {
        let scene = set_up().await;
        let before = spent(&scene);
        let began = Instant::now();
        let waits = register_all(&scene, callers, loans).await;
        let took = began.elapsed().as_secs_f64();
        let cost: Vec<f64> =
            spent(&scene).iter().zip(before).map(|(now, then)| now - then).collect();
        let rate = loans as f64 / took;
        println!("{:<52} {rate:>8.0} loans/s", format!("two gates, {callers} callers"));
        print_waits("wait for a registration", waits);
        let per_thousand: Vec<String> =
            cost.iter().map(|seconds| format!("{:.3}", seconds / loans as f64 * 1e3)).collect();
        println!(
            "{:<52} {} gates, sandbox, PostgreSQL; of {:.2} cores",
            "CPU seconds for 1,000 loans",
            per_thousand.join(", "),
            cost.iter().sum::<f64>() / took,
        );
        if callers == CALLERS[0] {
            let waits = first_requests(&scene.gates[1], FIRST_REQUESTS.min(loans / 2)).await;
            print_waits("first request at the other gate, 200 a second", waits);
        }
        scene.end().await;
    }
}

/// Returns the CPU seconds so far of the gates, the sandbox and PostgreSQL.
fn spent(scene: &Scene) -> [f64; 3] {
    let server = scene.server.process_id();
    [
        cpu_without_children(std::process::id()),
        cpu_without_children(scene.sandbox.process()),
        cost::cpu(server),
    ]
}

async fn set_up() -> Scene {
    let server = Postgres::start_with(&[("shared_buffers", "256MB"), ("max_wal_size", "1GB")])
        .await
        .unwrap();
    let database = server.database().await;
    let sandbox = Sandbox::start(None);
    let dirs: Vec<_> = (0..2).map(|_| support::scene::initialised()).collect();
    let mut gates = Vec::new();
    for dir in &dirs {
        let settings = settings(dir.path(), &database.url());
        gates.push(Arc::new(RegisteringGate::start(&settings, &sandbox.lending()).await));
    }
    let gates = gates.try_into().ok().unwrap();
    Scene { gates, sandbox, server, _database: database, _dirs: dirs }
}

impl Scene {
    async fn end(self) {
        for gate in self.gates {
            Arc::into_inner(gate).unwrap().end().await;
        }
    }
}

/// Returns the settings of a gate's ledger in this database, without a brake.
fn settings(directory: &std::path::Path, url: &str) -> ledger::Settings {
    let file = directory.join("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("sqlite:data/loangate.db", &format!("{url}?sslmode=disable"));
    std::fs::write(&file, text).unwrap();
    let loaded = loangate::config::load(&file).unwrap();
    ledger::Settings { brake: Brake::default(), ..loaded.config.ledger }
}

/// Returns the key of the loan with this number. Its library has every fiftieth.
fn key(number: u64) -> LoanKey {
    key_of(&format!("NO-03{:05}", number % LIBRARIES), number)
}

/// Each caller begins the next loan at once, at the gates in turn, until there are enough.
async fn register_all(scene: &Scene, callers: u64, loans: u64) -> Vec<Duration> {
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (gates, next) = (scene.gates.clone(), next.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= loans {
                        return waits;
                    }
                    let gate = &gates[number as usize % 2];
                    waits.push(gate.register(key(number), Instant::now()).await);
                }
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    waits
}

/// Requests loans that the other gate registered, at equal intervals.
async fn first_requests(gate: &Arc<RegisteringGate>, requests: u64) -> Vec<Duration> {
    let began = Instant::now();
    let mut tasks = Vec::new();
    for turn in 0..requests {
        let scheduled = began + Duration::from_micros(1_000_000 / OFFERED * turn);
        tokio::time::sleep_until(scheduled).await;
        let gate = gate.clone();
        tasks.push(tokio::spawn(async move {
            // The timer is exact only to a millisecond.
            let began = Instant::now();
            assert!(!gate.begin(key(turn * 2)).await, "the first gate registered it");
            began.elapsed()
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.push(task.await.unwrap());
    }
    waits
}
