//! Rate at which the ledger stores loans durably: an intent, then the acceptance, each synced to
//! disk.
//!
//! `cargo bench --profile dist --bench ledger`. Waiting commands are committed together and share a
//! sync, so the rate grows with the number of callers. The bench also prints the wait of one
//! caller.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loangate::clock::{self, Clock};
use loangate::ledger::{AuditKey, Brake, Cause, Intended, Ledger, Settings};
use loangate::loan::{Borrower, Event, Loan, LoanKey, Terms};
use loangate::telemetry::Metrics;

/// Number of loans for each number of callers.
const LOANS: u64 = 20_000;
const CALLERS: [u64; 4] = [1, 16, 128, 1024];

#[tokio::main]
async fn main() {
    println!("{:<8} {:>12} {:>12} {:>12}", "callers", "loans/s", "median", "p99");
    for callers in CALLERS {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::sqlite(directory.path().join("loans.db"), Brake::default());
        let (key, metrics) = (AuditKey::new(&[2; 32]), Metrics::new().unwrap());
        let ledger =
            Ledger::open(&settings, &[1; 32], key, Clock::system(), metrics).await.unwrap();
        let loans = LOANS.min(callers * 2000);
        let (next, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let tasks: Vec<_> =
            (0..callers).map(|_| tokio::spawn(call(ledger.clone(), next.clone(), loans))).collect();
        let mut waits = Vec::new();
        for task in tasks {
            waits.extend(task.await.unwrap());
        }
        let rate = loans as f64 / began.elapsed().as_secs_f64();
        waits.sort();
        let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
        println!("{callers:<8} {rate:>12.0} {:>12.2?} {:>12.2?}", at(0.5), at(0.99));
        ledger.close().await;
    }
}

/// Stores loans until there are enough, and returns the time of each.
async fn call(ledger: Ledger, next: Arc<AtomicU64>, loans: u64) -> Vec<Duration> {
    let mut waits = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= loans {
            return waits;
        }
        let began = Instant::now();
        let mut borrower = [0; 16];
        borrower[..8].copy_from_slice(&number.to_be_bytes());
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes(borrower),
            isbn: "9788299999014".parse().unwrap(),
        };
        let now = Clock::system().now();
        let cause = |by| Cause { by, detail: None };
        let intended = ledger.intend(Loan::intend(key, now), None, cause("reader")).await.unwrap();
        let Intended::Written(loan) = intended else { continue };
        let terms = Terms {
            due: clock::after(now, Duration::from_secs(21 * 86_400)),
            licence_id: Some("L1".to_owned()),
            licence_type: Some("PACKAGE".to_owned()),
        };
        let accepted = Event::Accepted { lending_id: format!("BL{number:08}"), terms };
        ledger.apply(loan.id, accepted, cause("begin")).await.unwrap();
        waits.push(began.elapsed());
    }
}
