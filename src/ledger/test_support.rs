//! Helpers for the ledger's tests: ledgers on real files, loans and causes.

use std::path::Path;

use super::{AuditKey, Brake, Cause, Ledger, LedgerError, Settings};
use crate::clock::Clock;
use crate::loan::{Borrower, Event, Loan, LoanId, LoanKey, Terms};
use crate::telemetry::Metrics;

/// The fingerprint of the pseudonym key.
pub(super) const KEY: [u8; 32] = [1; 32];

pub(super) fn audit_key() -> AuditKey {
    AuditKey::new(&[2; 32])
}

/// Opens the ledger in this file with the key of this fingerprint.
pub(super) async fn try_open(file: &Path, fingerprint: &[u8; 32]) -> Result<Ledger, LedgerError> {
    let settings = Settings::sqlite(file, Brake::default());
    Ledger::open(&settings, fingerprint, audit_key(), Clock::system(), Metrics::new().unwrap())
        .await
}

pub(super) async fn open(file: &Path) -> Ledger {
    try_open(file, &KEY).await.unwrap()
}

pub(super) fn key(borrower: u8) -> LoanKey {
    LoanKey {
        library: "NO-0301000".parse().unwrap(),
        borrower: Borrower::from_bytes([borrower; 16]),
        isbn: "9780306406157".parse().unwrap(),
    }
}

/// Creates a loan of this borrower in the state intended.
pub(super) fn loan(borrower: u8) -> Loan {
    Loan::intend(key(borrower), Clock::system().now())
}

/// Creates a loan of this borrower that was begun at this time.
pub(super) fn loan_at(borrower: u8, at: jiff::Timestamp) -> Loan {
    Loan::intend(key(borrower), at)
}

pub(super) fn by(by: &'static str) -> Cause {
    Cause { by, detail: None }
}

/// Writes an accepted loan of this borrower, due in the far future, and returns its id.
pub(super) async fn accepted(ledger: &Ledger, borrower: u8) -> LoanId {
    let loan = loan(borrower);
    let id = loan.id;
    ledger.intend(loan, None, by("reader")).await.unwrap();
    let due = jiff::Timestamp::from_second(4_000_000_000).unwrap();
    let terms = Terms { due, licence_id: None, licence_type: None };
    ledger.apply(id, Event::Accepted { lending_id: "L".into(), terms }, by("begin")).await.unwrap();
    id
}
