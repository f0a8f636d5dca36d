//! Tests of the doubts of the balance.

use std::collections::HashMap;

use jiff::Timestamp;

use super::test_store::{TestStore, on_each_store};
use super::test_support::{by, loan};
use super::{Doubts, Ledger};
use crate::loan::LoanId;

on_each_store! { doubts_survive_restarts_and_lapse_unconfirmed }

fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
}

async fn doubts_survive_restarts_and_lapse_unconfirmed(store: &TestStore) {
    let ledger = store.open().await;
    let (one, other) = (loan(1), loan(2));
    let library = one.key.library;
    for loan in [&one, &other] {
        ledger.intend(loan.clone(), None, by("reader")).await.unwrap();
    }
    let run = async |ledger: &Ledger, hours: i64, absent: &[LoanId]| {
        let doubts = Doubts { library, absent: absent.to_vec(), run: at(hours) };
        ledger.replace_doubts(doubts).await.unwrap();
        ledger.doubts(library, at(hours)).await.unwrap()
    };
    run(&ledger, 0, &[one.id, other.id]).await;
    ledger.close().await;
    let ledger = store.open().await;
    let doubts = run(&ledger, 24, &[one.id]).await;
    assert_eq!(
        doubts,
        HashMap::from([(one.id, at(0))]),
        "the first run that found it absent sets the time"
    );
    let doubts = run(&ledger, 48, &[one.id, other.id]).await;
    assert_eq!(
        doubts,
        HashMap::from([(one.id, at(0)), (other.id, at(48))]),
        "the other doubt starts again"
    );
    assert!(ledger.doubts(library, at(48 + 24 * 8)).await.unwrap().is_empty());
    let doubts = run(&ledger, 48 + 24 * 8, &[one.id]).await;
    assert_eq!(
        doubts,
        HashMap::from([(one.id, at(48 + 24 * 8))]),
        "a doubt is discarded after a week"
    );
    assert!(run(&ledger, 48 + 24 * 8, &[]).await.is_empty(), "also for two runs at the same time");
    ledger.close().await;
}
