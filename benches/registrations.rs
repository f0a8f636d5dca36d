//! Rate at which a gate registers loans: durable intent, begin at the sandbox over HTTP, query,
//! durable acceptance, response.
//!
//! `cargo bench --profile dist --bench registrations`; add `-- 5000` for a quick run with that many
//! loans. The gate is in this process, with two threads of slow work and a ledger in a real file.
//! The sandbox is a process on the same cores, with its books in memory.
//!
//! The closed loop has a fixed number of callers, each of whom begins the next loan at once. The
//! open loop requests a loan every millisecond, whether or not the gate keeps up; the wait counts
//! from that time. Everything runs on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs
)]
#![allow(dead_code)] // uses only a part of the shared support

#[path = "shared/registering_gate.rs"]
mod registering_gate;
mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loangate::ledger::{self, Brake};
use registering_gate::{RegisteringGate, key_of};
use shared::{Sandbox, Waits, cpu_without_children};
use tempfile::TempDir;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of loans in the closed loop, for each number of callers.
const LOANS: u64 = 100_000;
const LIBRARY: &str = "NO-0301000";
const CALLERS: [u64; 2] = [128, 512];
/// Loans per second in the open loop, and its duration in seconds.
const OFFERED: u64 = 1_000;
const SECONDS: u64 = 30;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let loans = count.unwrap_or(LOANS);
    println!(
        "{:<22} {:>8} {:>10} {:>10} {:>10}   CPU s per 1000: gate, sandbox",
        "", "loans/s", "median", "p99", "max"
    );
    for callers in CALLERS {
        let scene = Scene::set_up().await;
        let measured = Measured::begin(&scene);
        let waits = closed(&scene.gate, callers, loans).await;
        measured.print(&format!("closed, {callers} callers"), waits);
        scene.end().await;
    }
    let scene = Scene::set_up().await;
    let measured = Measured::begin(&scene);
    let waits = open(&scene.gate, loans.min(OFFERED * SECONDS)).await;
    measured.print(&format!("open, {OFFERED} a second"), waits);
    scene.end().await;
}

/// A gate with everything behind it.
struct Scene {
    gate: Arc<RegisteringGate>,
    sandbox: Sandbox,
    _dir: TempDir,
}

impl Scene {
    async fn set_up() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::start(None);
        let settings = ledger::Settings::sqlite(dir.path().join("loans.db"), Brake::default());
        let gate = Arc::new(RegisteringGate::start(&settings, &sandbox.lending()).await);
        Scene { gate, sandbox, _dir: dir }
    }

    async fn end(self) {
        Arc::into_inner(self.gate).unwrap().end().await;
    }
}

/// Cost of a run.
struct Measured {
    sandbox: u32,
    began: Instant,
    spent: [f64; 2],
}

impl Measured {
    fn begin(scene: &Scene) -> Measured {
        let sandbox = scene.sandbox.process();
        Measured { sandbox, began: Instant::now(), spent: spent_by(sandbox) }
    }

    fn print(&self, what: &str, waits: Vec<Duration>) {
        let (count, took) = (waits.len() as f64, self.began.elapsed().as_secs_f64());
        let (before, after) = (self.spent, spent_by(self.sandbox));
        let cost = |index: usize| (after[index] - before[index]) / count * 1000.0;
        let waits = Waits::of(waits);
        println!(
            "{what:<22} {:>8.0} {:>10.1?} {:>10.1?} {:>10.1?}   {:.3}, {:.3}",
            count / took,
            waits.at(0.5),
            waits.at(0.99),
            waits.at(1.0),
            cost(0),
            cost(1)
        );
    }
}

fn spent_by(sandbox: u32) -> [f64; 2] {
    [std::process::id(), sandbox].map(cpu_without_children)
}

/// Runs a closed loop: each caller begins the next loan when it has one, until there are enough.
async fn closed(gate: &Arc<RegisteringGate>, callers: u64, loans: u64) -> Vec<Duration> {
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (gate, next) = (gate.clone(), next.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= loans {
                        return waits;
                    }
                    waits.push(gate.register(key_of(LIBRARY, number), Instant::now()).await);
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

/// Runs an open loop: requests loans at equal intervals, regardless of earlier ones.
async fn open(gate: &Arc<RegisteringGate>, loans: u64) -> Vec<Duration> {
    let began = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..loans {
        let scheduled = began + Duration::from_micros(1_000_000 / OFFERED * number);
        tokio::time::sleep_until(scheduled).await;
        let gate = gate.clone();
        tasks.push(tokio::spawn(
            async move { gate.register(key_of(LIBRARY, number), scheduled).await },
        ));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.push(task.await.unwrap());
    }
    waits
}
