//! The judge of a cluster notices each broken rule.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use loangate::clock;
use serde_json::{Value, json};

use crate::support::BOOK;
use crate::support::cluster::{Evidence, Exchange, Kind};
use crate::support::origin::RecordedRequest;

fn at(seconds: u64) -> Timestamp {
    clock::after(Timestamp::UNIX_EPOCH, Duration::from_secs(seconds))
}

/// Returns a loan of the books that was made and accepted at this time.
fn booked(id: &str, made: u64, status: &str, ended: Option<u64>) -> Value {
    let mut loan = json!({
        "loanId": id, "reference": id, "borrower": "kari", "isbn": BOOK, "status": status,
        "made": at(made).to_string(), "accepted": at(made).to_string(),
    });
    if let Some(ended) = ended {
        loan["endReceived"] = at(ended).to_string().into();
    }
    loan
}

fn exchange(kind: Kind, sent: u64, status: StatusCode) -> Exchange {
    Exchange {
        key: ("kari".to_owned(), BOOK.to_owned()),
        file: format!("{BOOK}/kari.epub"),
        gate: 0,
        kind,
        sent: at(sent),
        answered: at(sent + 1),
        status: Some(status),
        problem: String::new(),
        retry_after: None,
        is_corrupt: false,
    }
}

/// Returns a loan that was begun at 10, read at 20, returned at 30 and ended at 35.
pub(super) fn clean() -> Evidence {
    Evidence {
        books: vec![booked("L1", 10, "RETURNED", Some(35))],
        ledger: vec![json!({ "lending_id": "L1", "state": "ended" })],
        exchanges: vec![
            exchange(Kind::Read, 20, StatusCode::OK),
            exchange(Kind::Return, 30, StatusCode::NO_CONTENT),
        ],
        origin: vec![RecordedRequest {
            method: http::Method::GET,
            path: format!("/{BOOK}/kari.epub"),
            headers: http::HeaderMap::new(),
            at: at(20),
        }],
        stale_bound: Duration::ZERO,
        duplicate_bound: Duration::from_secs(2),
    }
}

#[test]
fn clean_evidence_has_no_finding() {
    assert_eq!(clean().findings(), Vec::<String>::new());
}

/// Changes clean evidence, and expects exactly one finding with these words.
fn finds(words: &str, change: impl FnOnce(&mut Evidence)) {
    let mut evidence = clean();
    change(&mut evidence);
    let findings = evidence.findings();
    assert!(findings.len() == 1 && findings[0].contains(words), "{words}: {findings:#?}");
}

#[test]
fn each_broken_rule_is_found() {
    finds("served without a loan", |all| {
        all.exchanges.push(exchange(Kind::Read, 36, StatusCode::OK));
    });
    finds("served without a loan", |all| {
        all.exchanges.push(exchange(Kind::Read, 8, StatusCode::PARTIAL_CONTENT));
    });
    finds("other bytes", |all| all.exchanges[0].is_corrupt = true);
    finds("fetched without a loan", |all| all.origin[0].at = at(9));
    finds("two loans", |all| {
        all.books.push(booked("L2", 32, "CANCELLED", Some(40)));
    });
    finds("was lost", |all| {
        all.books[0] = booked("L1", 10, "ACCEPTED", None);
        all.ledger[0]["state"] = "accepted".into();
    });
    finds("was not sent", |all| all.ledger.push(json!({ "state": "ending" })));
    finds("the ledger has", |all| all.ledger[0]["state"] = "accepted".into());
    finds("the ledger has None", |all| {
        all.books.push(booked("L2", 40, "ACCEPTED", None));
    });
    finds("do not have", |all| {
        all.ledger.push(json!({ "lending_id": "L2", "state": "accepted" }));
    });
}

#[test]
fn bounds_excuse_stale_reads_and_short_duplicates() {
    let mut evidence = clean();
    evidence.stale_bound = Duration::from_secs(5);
    evidence.exchanges.push(exchange(Kind::Read, 40, StatusCode::OK));
    evidence.books.push(booked("L2", 34, "CANCELLED", Some(50)));
    assert_eq!(evidence.findings(), Vec::<String>::new());
    assert_eq!(evidence.duplicates(), (1, Duration::from_secs(1)));
    evidence.exchanges.push(exchange(Kind::Read, 56, StatusCode::OK));
    assert_eq!(evidence.findings().len(), 1, "{:#?}", evidence.findings());
}

#[test]
fn two_live_loans_are_found_within_any_bound() {
    let mut evidence = clean();
    evidence.duplicate_bound = Duration::MAX;
    evidence.books = vec![booked("L1", 10, "ACCEPTED", None), booked("L2", 10, "ACCEPTED", None)];
    evidence.exchanges.pop();
    evidence.ledger[0]["state"] = "accepted".into();
    evidence.ledger.push(json!({ "lending_id": "L2", "state": "accepted" }));
    let findings = evidence.findings();
    assert!(findings.len() == 1 && findings[0].contains("two live loans"), "{findings:#?}");
}
