//! What two gates do that share one PostgreSQL: loans registered in a second, first requests at the
//! other gate, and the time until a gate is ready.
//!
//! `cargo bench --profile dist --bench cluster`; add names of sections (`registrations`, `ready`),
//! and a number for that many loans. It needs PostgreSQL's server programs. The gates are in this
//! process, except in `ready`; the sandbox and PostgreSQL, which writes every commit to disk, are
//! processes on the same cores. Everything runs on loopback and is bounded in count and time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
// It uses only a part of the shared support.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub)]

mod ready;
#[path = "../shared/registering_gate.rs"]
mod registering_gate;
mod registrations;
#[path = "../shared/mod.rs"]
mod shared;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use shared::Waits;
use support::Postgres;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.iter().find_map(|argument| argument.parse().ok());
    let names: Vec<&String> =
        arguments.iter().filter(|one| one.chars().all(char::is_alphabetic)).collect();
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|one| *one == name);
    if !Postgres::is_installed() {
        return;
    }
    if is_wanted("registrations") {
        registrations::run(count).await;
    }
    if is_wanted("ready") {
        ready::run(count).await;
    }
}

fn print_waits(what: &str, waits: Vec<Duration>) {
    let waits = Waits::of(waits);
    let [median, p99, most] = [0.5, 0.99, 1.0].map(|part| waits.at(part).as_secs_f64() * 1e3);
    println!("{what:<52} {median:>8.3} ms median, {p99:.3} ms p99, {most:.3} ms max");
}
