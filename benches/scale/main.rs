//! What a deployment needs: a seeded discrete-event simulation of readers, gates, databases and
//! Bokbasen. `docs/scale.md` has its result and the assumptions.
//!
//! `cargo bench --bench scale`; add `-- --write` to write the tables and the picture of
//! `docs/scale.md`, and `--seed 2` for other random numbers. The same seed gives the same tables.
//!
//! A year of a sample of borrowers gives the rates of the busiest hour. From these rates and the
//! costs in `calibration.rs` follow the machines. Then the busiest hour runs on these machines,
//! request by request, undisturbed and with faults.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs
)]

mod calibration;
mod chart;
mod deployment;
mod distributions;
mod peak;
mod queues;
mod report;
mod sizing;
mod year;

use std::path::Path;

use deployment::DEPLOYMENTS;
use peak::{Fault, Outcome, Plan};
use queues::{HOUR, MINUTE, SECOND};
use sizing::Sizing;
use year::Year;

/// When a fault begins, from the start of the hour.
const FAULT_AT: u64 = 3 * MINUTE;
/// How much of the hour runs, where the fault is short.
const WINDOW: u64 = 8 * MINUTE;
const LENDING_OUTAGE: u64 = HOUR;
const DATABASE_FAILOVER: u64 = 30 * SECOND;

/// A deployment and what the simulation found.
struct Findings {
    sizing: Sizing,
    plan: Plan,
    normal: Outcome,
    gate_down: Outcome,
    failover: Outcome,
    outage: Outcome,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1);
    let seed = after("--seed").map_or(1, |seed| seed.parse().expect("--seed takes a number"));
    let year = year::simulate(seed);
    let results: Vec<Findings> =
        DEPLOYMENTS.iter().map(|deployment| simulate(deployment, &year, seed)).collect();
    let sections = report::sections(&year, &results, seed);
    for (_, text) in &sections {
        println!("{text}\n");
    }
    if arguments.iter().any(|argument| argument == "--write") {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        report::write(&sections, &docs.join("scale.md"));
        std::fs::write(docs.join("scale.svg"), chart::svg(&year, &results)).unwrap();
    }
}

fn simulate(deployment: &'static deployment::Deployment, year: &Year, seed: u64) -> Findings {
    let sizing = Sizing::of(deployment, year, seed);
    let mut plan = Plan::of(&sizing, year);
    let lending = Fault::Lending { from: FAULT_AT, to: FAULT_AT + LENDING_OUTAGE };
    let database = Fault::Database { from: FAULT_AT, to: FAULT_AT + DATABASE_FAILOVER };
    let [normal, gate_down, failover] = [Fault::None, Fault::Gate { at: FAULT_AT }, database]
        .map(|fault| peak::simulate(&plan, fault, WINDOW, seed));
    // Hits need nothing from Bokbasen. Without them three hours take seconds.
    plan.has_hits = false;
    let outage = peak::simulate(&plan, lending, FAULT_AT + LENDING_OUTAGE + 2 * HOUR, seed);
    Findings { sizing, plan, normal, gate_down, failover, outage }
}
