//! Tests of the delivered bytes and ranges.

use super::test_store::{TestStore, on_each_store};
use super::test_support::{audit_key, by, loan};
use super::{Delivered, Ledger, check};
use crate::loan::{LoanId, Tally};

on_each_store! {
    concurrent_tallies_of_two_processes_add_up
    damaged_tally_is_reported_and_started_again_from_zero
}

/// Writes an intent and returns its id.
async fn begun(ledger: &Ledger, borrower: u8) -> LoanId {
    let loan = loan(borrower);
    let id = loan.id;
    ledger.intend(loan, None, by("reader")).await.unwrap();
    id
}

fn delivered(loan: LoanId, file: &str, first: u64, next: u64) -> Delivered {
    let mut tally = Tally { bytes: next - first, ..Tally::default() };
    tally.ranges.insert(first..next);
    Delivered { loan, file: file.into(), tally }
}

async fn stored_of(ledger: &Ledger, loan: LoanId) -> Vec<(String, u64, Vec<[u64; 2]>)> {
    let all = ledger.delivered(&[loan]).await.unwrap().remove(&loan).unwrap_or_default();
    all.into_iter()
        .map(|(file, tally)| (file, tally.bytes, tally.ranges.pairs().collect()))
        .collect()
}

async fn concurrent_tallies_of_two_processes_add_up(store: &TestStore) {
    let (one, other) = (store.open().await, store.open().await);
    let (first, second) = (begun(&one, 1).await, begun(&one, 2).await);
    let library = first.library();
    for step in 0..20 {
        let (at, far) = (100 * step, 10_000 + 100 * step);
        let (one_result, other_result) = tokio::join!(
            one.note_delivered(
                library,
                [delivered(first, "/a", at, at + 100), delivered(second, "/a", 0, 10)].into()
            ),
            other.note_delivered(
                library,
                [delivered(first, "/a", far, far + 100), delivered(first, "/b", 0, 1)].into()
            ),
        );
        one_result.and(other_result).unwrap();
    }
    one.close().await;
    other.close().await;
    let ledger = store.open().await;
    let wanted =
        [("/a".into(), 4000, vec![[0, 1999], [10_000, 11_999]]), ("/b".into(), 20, vec![[0, 0]])];
    assert_eq!(stored_of(&ledger, first).await, wanted);
    assert_eq!(stored_of(&ledger, second).await, [("/a".into(), 200, vec![[0, 9]])]);
    // An unknown loan does not prevent the other counts from being written.
    let all = [delivered(LoanId::random(), "/a", 0, 1), delivered(second, "/c", 0, 1)];
    ledger.note_delivered(library, all.into()).await.unwrap();
    assert_eq!(stored_of(&ledger, second).await.len(), 2);
    ledger.close().await;
    store.assert_sound().await;
}

async fn damaged_tally_is_reported_and_started_again_from_zero(store: &TestStore) {
    let ledger = store.open().await;
    let id = begun(&ledger, 1).await;
    ledger.note_delivered(id.library(), [delivered(id, "/a", 0, 100)].into()).await.unwrap();
    let damage = ["UPDATE delivered SET ranges = x'ff'", "UPDATE delivered SET ranges = '\\xff'"];
    store.execute(damage[0], damage[1]).await;
    assert!(stored_of(&ledger, id).await.is_empty());
    assert_eq!(ledger.damaged_rows(), 1);
    let found = check(&store.settings(), &audit_key(), &crate::ledger::RowsRead::default())
        .await
        .unwrap()
        .join("\n");
    assert!(found.contains("the tally of a file cannot be read"), "{found}");
    ledger.note_delivered(id.library(), [delivered(id, "/a", 50, 60)].into()).await.unwrap();
    assert_eq!(stored_of(&ledger, id).await, [("/a".into(), 10, vec![[50, 59]])]);
    ledger.close().await;
}
