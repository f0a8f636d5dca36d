//! Tests of queries that read damaged rows.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::test_support::{by, key, loan, open, second};
use super::*;
use crate::loan::{EndReason, LoanState, Terms};

/// An assignment that damages a row: the check digit of the ISBN is wrong.
const DAMAGE: &str = "isbn = 7";

async fn execute(file: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(file).foreign_keys(false);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Writes one accepted loan for each borrower, due at this second.
async fn accepted(ledger: &Ledger, borrowers: std::ops::Range<u8>, due: i64) -> Vec<LoanId> {
    let one = async |borrower: u8| {
        let loan = loan(borrower);
        let id = loan.id;
        ledger.intend(loan, None, by("reader")).await.unwrap();
        let terms = Terms { due: second(due), licence_id: None, licence_type: None };
        ledger
            .apply(id, Event::Accepted { lending_id: "L".into(), terms }, by("begin"))
            .await
            .unwrap();
        id
    };
    let loans: Vec<_> = borrowers.map(one).collect();
    futures_util::future::join_all(loans).await
}

#[tokio::test]
async fn damaged_due_rows_do_not_fill_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    accepted(&ledger, 0..200, 10).await;
    execute(&file, &format!("UPDATE loans SET {DAMAGE}")).await;
    let good = accepted(&ledger, 200..203, 20).await;
    let ids = |loans: Vec<Loan>| loans.iter().map(|loan| loan.id).collect::<Vec<_>>();
    let mut due = ids(ledger.due(second(30), 120).await.unwrap());
    due.sort_unstable();
    let mut sorted = good.clone();
    sorted.sort_unstable();
    assert_eq!(due, sorted);
    assert_eq!(ledger.due(second(30), 2).await.unwrap().len(), 2);
    assert_eq!(ledger.due(second(15), 2).await.unwrap(), []);
    assert_eq!(ledger.damaged_rows(), 200);

    // Read all pages of a listing with two loans a page.
    let mut filter = Filter { limit: 2, ..Filter::default() };
    let mut listed = Vec::new();
    loop {
        let page = ledger.page(&filter).await.unwrap();
        let Some(last) = page.last() else { break };
        filter.after = Some(last.id.uuid());
        listed.extend(page.iter().map(|loan| loan.id));
    }
    listed.sort_unstable();
    assert_eq!(listed, sorted);

    // Repaired rows are no longer counted.
    execute(&file, "UPDATE loans SET isbn = 9780306406157").await;
    assert_eq!(ledger.due(second(30), 1000).await.unwrap().len(), 203);
    assert_eq!(ledger.damaged_rows(), 0);
    ledger.close().await;
}

#[tokio::test]
async fn damaged_rows_are_skipped_by_every_batch() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    let ids = accepted(&ledger, 1..4, 10).await;
    for id in &ids {
        ledger
            .apply(*id, Event::Ending { reason: EndReason::Expired }, by("expiry"))
            .await
            .unwrap();
    }
    let [first, second, third] = ids[..] else { panic!() };
    let damage = format!(
        "UPDATE loans SET library = 'no library!', {DAMAGE} WHERE id = '{first}'; \
         UPDATE loans SET id = 'no id' WHERE id = '{second}'; \
         UPDATE history SET loan = 'no id' WHERE loan = '{second}'; \
         UPDATE history SET at = 9223372036854775807 \
         WHERE loan = '{third}' AND to_state = 'intended'"
    );
    execute(&file, &damage).await;
    let read: Vec<LoanId> = ledger.loans(&ids).await.unwrap().iter().map(|loan| loan.id).collect();
    assert_eq!(read, [third]);
    assert_eq!(ledger.libraries().await.unwrap(), [key(1).library]);
    // A loan without a readable library has no id. Its end is read again once the row is repaired.
    assert_eq!(ledger.ends_waiting().await.unwrap().loans, [third]);
    assert_eq!(ledger.ends_after(&EndPosition::default()).await.unwrap().loans, [third]);
    assert_eq!(ledger.history(third).await.unwrap().len(), 2);
    // The first row, its library, the second row's id, and the third loan's history.
    assert_eq!(ledger.damaged_rows(), 4);
    // Damaged rows do not prevent writes of other rows.
    let (ended, damaged) = tokio::join!(
        ledger.apply(third, Event::EndAcknowledged, by("outbox")),
        ledger.apply(first, Event::EndAcknowledged, by("outbox")),
    );
    assert_eq!(ended.unwrap().state, LoanState::Ended);
    assert!(matches!(damaged, Err(LedgerError::Damaged { .. })), "{damaged:?}");
    ledger.close().await;
}

#[tokio::test]
async fn damaged_orphan_does_not_prevent_adoption_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let former = open(&file).await;
    let [damaged, good] = [loan(1), loan(2)];
    let ids = [damaged.id, good.id];
    former.intend(damaged, None, by("reader")).await.unwrap();
    former.intend(good, None, by("reader")).await.unwrap();
    former.close().await;
    drop(former);
    execute(&file, &format!("UPDATE loans SET {DAMAGE} WHERE id = '{}'", ids[0])).await;
    let ledger = open(&file).await;
    // The writing task releases the lock of its process slightly later than the last handle.
    let mut orphans = Vec::new();
    while orphans.is_empty() {
        orphans = ledger.orphans(None).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(orphans.iter().map(|loan| loan.id).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(ledger.damaged_rows(), 1);
    ledger.close().await;
}
