//! Helpers for the ledger's tests: ledgers on real files, loans and causes.

use std::path::Path;

use jiff::Timestamp;

use super::{AuditKey, Brake, Cause, Intended, Ledger, LedgerError, Settings};
use crate::clock::Clock;
use crate::loan::{Borrower, EndReason, Event, Loan, LoanId, LoanKey, Terms};
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

pub(super) fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Creates the event of an acceptance until this second.
pub(super) fn acceptance(due: i64) -> Event {
    let terms = Terms {
        due: second(due),
        licence_id: Some("K1".into()),
        licence_type: Some("PACKAGE".into()),
    };
    Event::Accepted { lending_id: "L1".into(), terms }
}

/// Writes an intent of this borrower that was begun at second 1.
pub(super) async fn intend(ledger: &Ledger, borrower: u8) -> Intended {
    ledger.intend(Loan::intend(key(borrower), second(1)), None, by("reader")).await.unwrap()
}

/// Writes such an intent, which nothing bars, and returns its id.
pub(super) async fn written(ledger: &Ledger, borrower: u8) -> LoanId {
    match intend(ledger, borrower).await {
        Intended::Written(loan) => loan.id,
        other => panic!("{other:?}"),
    }
}

/// Creates a loan of this borrower in the state intended.
pub(super) fn loan(borrower: u8) -> Loan {
    Loan::intend(key(borrower), Clock::system().now())
}

/// Creates a loan of this borrower that was begun at this time.
pub(super) fn loan_at(borrower: u8, at: Timestamp) -> Loan {
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
    let due = second(4_000_000_000);
    let terms = Terms { due, licence_id: None, licence_type: None };
    ledger.apply(id, Event::Accepted { lending_id: "L".into(), terms }, by("begin")).await.unwrap();
    id
}

/// Returns an accepted loan, and acknowledges its end.
pub(super) async fn end(ledger: &Ledger, id: LoanId) {
    ledger.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")).await.unwrap();
    ledger.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
}

/// Removes the borrowers of all ended loans.
pub(super) async fn forget(ledger: &Ledger) {
    while ledger.forget(Timestamp::MAX, 500).await.unwrap() > 0 {}
}

/// Writes six ended and forgotten loans interleaved with live loans. Returns the live loans.
pub(super) async fn interleaved_loans(ledger: &Ledger) -> Vec<LoanId> {
    let mut live = Vec::new();
    for borrower in 0..6 {
        let ended = accepted(ledger, 100 + borrower).await;
        live.push(accepted(ledger, borrower).await);
        end(ledger, ended).await;
    }
    forget(ledger).await;
    live.push(accepted(ledger, 6).await);
    live
}
