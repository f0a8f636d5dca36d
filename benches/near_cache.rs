//! Cost of a lookup among a million entries: in moka alone, and in moka behind a near cache.
//!
//! `cargo bench --profile dist --bench near_cache`. The keys, values and sizes are those of the
//! decisions of the gate. Compare the two columns of one run, and repeat it: absolute times depend
//! on what else the machine does. `docs/adr/0007-moka-behind-near-caches.md` has figures beside
//! quick_cache.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::{Arc, LazyLock};

use divan::Bencher;
use loangate::loan::{Borrower, LoanKey};
use loangate::near_cache::NearCache;
use mimalloc::MiMalloc;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const ENTRIES: usize = 1_000_000;
/// The size of the gate's near cache.
const NEAR_ENTRIES: usize = 1 << 18;
/// Number of lookups before the measured ones, so that the near cache has settled.
const WARM_UP: usize = 3_000_000;

struct Value {
    key: LoanKey,
    /// What the gate compares and returns.
    _rest: [u64; 16],
}

static RECORD: LazyLock<Cache<LoanKey, Arc<Value>>> = LazyLock::new(|| {
    let record = Cache::builder()
        .max_capacity(2 * ENTRIES as u64)
        .eviction_policy(EvictionPolicy::lru())
        .build();
    for number in 0..ENTRIES {
        let key = key(number);
        record.insert(key, Arc::new(Value { key, _rest: [0; 16] }));
    }
    record
});

fn main() {
    divan::main();
}

fn key(number: usize) -> LoanKey {
    let pseudonym = fastrand::Rng::with_seed(number as u64).u128(..);
    LoanKey {
        library: "NO-0301000".parse().unwrap(),
        borrower: Borrower::from_bytes(pseudonym.to_le_bytes()),
        isbn: "9780306406157".parse().unwrap(),
    }
}

fn hash(key: &LoanKey) -> u64 {
    u128::from_le_bytes(*key.borrower.as_bytes()) as u64
}

/// Returns an endless sequence of keys.
fn requests(order: &str) -> Box<dyn FnMut() -> LoanKey> {
    let mut random = fastrand::Rng::with_seed(7);
    match order {
        "100 in turn" => Box::new(in_turn(100)),
        "10,000 in turn" => Box::new(in_turn(10_000)),
        "Zipf(1.0)" => {
            let mut sum = 0.0;
            let sums: Vec<f64> = (1..=ENTRIES)
                .map(|rank| {
                    sum += 1.0 / rank as f64;
                    sum
                })
                .collect();
            Box::new(move || {
                let at = random.f64() * sum;
                key(sums.partition_point(|sum| *sum < at).min(ENTRIES - 1))
            })
        }
        _ => Box::new(move || key(random.usize(..ENTRIES))),
    }
}

fn in_turn(count: usize) -> impl FnMut() -> LoanKey {
    let mut numbers = (0..count).cycle();
    move || key(numbers.next().unwrap())
}

const ORDERS: [&str; 4] = ["100 in turn", "10,000 in turn", "Zipf(1.0)", "uniform"];

#[divan::bench(args = ORDERS, sample_count = 500, sample_size = 2000)]
fn moka_alone(bencher: Bencher<'_, '_>, order: &str) {
    let next = requests(order);
    let record = &*RECORD;
    bencher.with_inputs(next).bench_local_values(|key| record.get(&key));
}

#[divan::bench(args = ORDERS, sample_count = 500, sample_size = 2000)]
fn moka_behind_near_cache(bencher: Bencher<'_, '_>, order: &str) {
    let mut next = requests(order);
    let (record, near) = (&*RECORD, NearCache::new(NEAR_ENTRIES));
    let find = |key: LoanKey| {
        let copy = |value: &Arc<Value>| (value.key == key).then(|| value.clone());
        near.find(hash(&key), copy).or_else(|miss| {
            let value = record.get(&key).ok_or(())?;
            near.insert(miss, value.clone());
            Ok::<_, ()>(value)
        })
    };
    for _ in 0..WARM_UP {
        drop(find(next()));
    }
    bencher.with_inputs(next).bench_local_values(find);
}
