//! Cost of a decision with a warm cache: time and allocations, with few and with many cached
//! decisions.
//!
//! `cargo bench --profile dist --bench hot_path`. It first begins a million loans in a ledger,
//! which takes a minute or two. Then it decides for a hundred readers, and for ten thousand in
//! turn, whose entries exceed the processor's caches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(dead_code, unused_imports, missing_docs)] // uses only a part of the shared support

#[path = "shared/decision.rs"]
mod decision;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use decision::Decider;
use divan::{AllocProfiler, Bencher};
use http::HeaderMap;
use loangate::path::RequestPath;
use mimalloc::MiMalloc;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: AllocProfiler<MiMalloc> = AllocProfiler::new(MiMalloc);

const DECISIONS: [u64; 3] = [100, 10_000, 1_000_000];
/// Number of readers who send requests.
const FEW: u64 = 100;
const MANY: u64 = 10_000;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static DECIDER: LazyLock<Mutex<Decider>> =
    LazyLock::new(|| Mutex::new(RUNTIME.block_on(Decider::set_up(None))));

fn main() {
    divan::main();
}

/// Returns the shared decider with at least this many decisions cached.
fn with(decisions: u64) -> MutexGuard<'static, Decider> {
    let mut decider = DECIDER.lock().unwrap_or_else(PoisonError::into_inner);
    RUNTIME.block_on(decider.fill(decisions));
    decider
}

/// Decides for these readers in turn.
fn in_turn(bencher: Bencher<'_, '_>, decisions: u64, readers: u64) {
    let decider = with(decisions);
    let fields = decider.fields(readers.min(decisions));
    let mut asking = fields.iter().cycle();
    bencher.bench_local(|| decider.decide(asking.next().unwrap()));
}

// Benchmarks run in the order of their names, which is the order of the cache size.
#[divan::bench(args = DECISIONS, sample_count = 50, sample_size = 2000)]
fn a_hundred_readers(bencher: Bencher<'_, '_>, decisions: u64) {
    in_turn(bencher, decisions, FEW);
}

#[divan::bench(args = DECISIONS, sample_count = 50, sample_size = 2000)]
fn ten_thousand_readers(bencher: Bencher<'_, '_>, decisions: u64) {
    in_turn(bencher, decisions, MANY);
}

#[divan::bench(sample_count = 50, sample_size = 2000)]
fn identify_reader(bencher: Bencher<'_, '_>) {
    let decider = with(FEW);
    let fields = decider.fields(1);
    bencher.bench_local(|| decider.reader(&fields[0]));
}

#[divan::bench(sample_count = 50, sample_size = 2000)]
fn find_title(bencher: Bencher<'_, '_>) {
    let decider = with(FEW);
    bencher.bench_local(|| decider.title());
}

#[divan::bench(sample_count = 50, sample_size = 2000)]
fn check_permit(bencher: Bencher<'_, '_>) {
    let decider = with(FEW);
    let key = decider.key(0);
    bencher.bench_local(|| decider.permit(key));
}
