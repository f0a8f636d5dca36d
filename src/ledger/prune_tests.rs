//! Tests of pruning and of the audit trail after it.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::sqlite::{check, count_prunable, prune, verify};
use super::test_support::{
    accepted, audit_key, by, end, forget, interleaved_loans, key, loan, open,
};
use super::*;
use crate::clock::Clock;
use crate::loan::{EndReason, Refusal};

const ENDED: Prunable = Prunable::Ended { before: Timestamp::MAX };

async fn execute(file: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(file).foreign_keys(false);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn count(file: &Path, table: &str) -> i64 {
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    let count = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")));
    let count = count.fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}

async fn findings(file: &Path) -> Vec<String> {
    let mut found = verify(file, &audit_key(), &RowsRead::default()).await.unwrap().findings;
    found.extend(check(file, &RowsRead::default()).await.unwrap());
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_ledger_verifies_and_continues() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    let live = interleaved_loans(&ledger).await;
    let steps = count(&file, "history").await;
    // Write during pruning: only the writer's transactions advance the head of the trail.
    let writing = async {
        for borrower in 10..60 {
            accepted(&ledger, borrower).await;
        }
    };
    let key = audit_key();
    let rows = RowsRead::default();
    count_prunable(&file, ENDED, &rows).await;
    let (pruned, ()) = tokio::join!(prune(&file, &key, ENDED, &rows), writing);
    assert_eq!(rows.to_string(), "6 of 6 rows");
    assert_eq!(pruned.unwrap(), Pruned { loans: 6, left: Vec::new() });
    assert_eq!(count(&file, "loans").await, 7 + 50);
    // The head file is first written within a second.
    while !directory.path().join("loans.db.head").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let verified = verify(&file, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!((verified.findings, verified.pruned), (Vec::new(), 6 * 5));
    assert_eq!(verified.head.number, steps + 100);
    // Prune the loans between as well: their anchors are merged.
    for id in &live[..6] {
        end(&ledger, *id).await;
    }
    forget(&ledger).await;
    accepted(&ledger, 7).await;
    assert_eq!(ledger.prune(ENDED).await.unwrap().loans, 6);
    assert_eq!(findings(&file).await, Vec::<String>::new());
    assert!(count(&file, "anchors").await <= 3, "{}", count(&file, "anchors").await);
    assert!(ledger.loan(live[6]).await.unwrap().is_some());
    ledger.close().await;
    let reopened = open(&file).await;
    accepted(&reopened, 8).await;
    reopened.close().await;
    assert_eq!(findings(&file).await, Vec::<String>::new());
}

#[tokio::test]
async fn anchor_without_a_valid_seal_is_found() {
    for (damage, expected) in [
        (
            "UPDATE anchors SET mac = zeroblob(32) WHERE first = (SELECT min(first) FROM anchors)",
            "was changed or forged",
        ),
        ("DELETE FROM anchors WHERE first = (SELECT min(first) FROM anchors)", "are missing"),
        // A forged anchor replaces a removed step.
        (
            "INSERT INTO anchors SELECT number, number, mac, zeroblob(32) FROM history \
             WHERE cause = 'begin' LIMIT 1; \
             DELETE FROM history WHERE number IN (SELECT last FROM anchors)",
            "was changed or forged",
        ),
        // A forged anchor covers an existing step.
        (
            "INSERT INTO anchors SELECT number, number, mac, zeroblob(32) FROM history \
             WHERE cause = 'begin' LIMIT 1",
            "was changed or forged",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
        interleaved_loans(&ledger).await;
        ledger.prune(ENDED).await.unwrap();
        ledger.close().await;
        assert_eq!(findings(&file).await, Vec::<String>::new());
        execute(&file, damage).await;
        let found =
            verify(&file, &audit_key(), &RowsRead::default()).await.unwrap().findings.join("\n");
        assert!(found.contains(expected), "{damage}: {found}");
    }
}

#[tokio::test]
async fn changed_loan_or_step_is_not_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    interleaved_loans(&ledger).await;
    execute(&file, "UPDATE loans SET due = due - 1 WHERE id = (SELECT min(id) FROM loans)").await;
    let pruned = ledger.prune(ENDED).await.unwrap();
    assert_eq!((pruned.loans, pruned.left.len()), (5, 1));
    assert!(pruned.left[0].contains("is not as its last step left it"), "{:?}", pruned.left);
    // Change a step of another ended loan.
    let ended = accepted(&ledger, 90).await;
    end(&ledger, ended).await;
    forget(&ledger).await;
    accepted(&ledger, 91).await;
    execute(
        &file,
        &format!("UPDATE history SET at = at + 1 WHERE loan = '{ended}' AND to_state = 'ending'"),
    )
    .await;
    let (loans, steps) = (count(&file, "loans").await, count(&file, "history").await);
    let error = ledger.prune(ENDED).await.unwrap_err();
    assert!(error.to_string().contains("does not verify at step"), "{error}");
    assert_eq!(
        (count(&file, "loans").await, count(&file, "history").await),
        (loans, steps),
        "nothing was removed"
    );
    ledger.close().await;
}

#[tokio::test]
async fn only_ended_and_forgotten_loans_are_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    let ended = accepted(&ledger, 1).await;
    end(&ledger, ended).await;
    let unacknowledged = accepted(&ledger, 2).await;
    ledger
        .apply(unacknowledged, Event::Ending { reason: EndReason::Returned }, by("reader"))
        .await
        .unwrap();
    assert_eq!(
        ledger.prune(ENDED).await.unwrap(),
        Pruned::default(),
        "the borrower is not forgotten"
    );
    forget(&ledger).await;
    assert_eq!(
        ledger.prune(Prunable::Ended { before: Timestamp::MIN }).await.unwrap(),
        Pruned::default()
    );
    assert_eq!(ledger.prune(ENDED).await.unwrap(), Pruned::default(), "it has the newest step");
    accepted(&ledger, 3).await;
    assert_eq!(ledger.prune(ENDED).await.unwrap().loans, 1);
    assert!(ledger.loan(unacknowledged).await.unwrap().is_some());
    ledger.close().await;
    assert_eq!(findings(&file).await, Vec::<String>::new());
}

#[tokio::test]
async fn loan_that_was_lent_is_not_pruned_as_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    // The balance ends a loan like this if Bokbasen no longer lists it.
    let id = accepted(&ledger, 1).await;
    ledger
        .apply(id, Event::EndedThere { reason: EndReason::Rejected }, by("balance"))
        .await
        .unwrap();
    let never_lent = Prunable::NeverLent { before: Timestamp::MAX, now: Timestamp::MIN };
    assert_eq!(
        prune(&file, &audit_key(), never_lent, &RowsRead::default()).await.unwrap().loans,
        0
    );
    assert!(ledger.last_end(&key(1)).await.unwrap().is_some(), "its end still bars an older token");
    ledger.close().await;
}

#[tokio::test]
async fn refused_loans_are_pruned_after_the_refusal_expires() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    let now = Clock::system().now();
    let later = crate::clock::after(now, Duration::from_secs(86_400));
    for (borrower, retry_at) in [(1, None), (2, Some(now)), (3, Some(later))] {
        let loan = loan(borrower);
        let id = loan.id;
        ledger.intend(loan, None, by("reader")).await.unwrap();
        let refusal = Refusal { code: "NO".into(), message: String::new(), retry_at };
        ledger.apply(id, Event::Refused { lending_id: None, refusal }, by("begin")).await.unwrap();
    }
    let never_sent = loan(4);
    let id = never_sent.id;
    ledger.intend(never_sent, None, by("reader")).await.unwrap();
    ledger.apply(id, Event::NotSent, by("begin")).await.unwrap();
    accepted(&ledger, 5).await;
    let which = |before| Prunable::NeverLent { before, now };
    assert_eq!(ledger.prune(which(Timestamp::MIN)).await.unwrap(), Pruned::default());
    assert_eq!(ledger.prune(which(Timestamp::MAX)).await.unwrap().loans, 3);
    for (borrower, is_left) in [(1, false), (2, false), (3, true), (4, false), (5, true)] {
        assert_eq!(ledger.newest(&key(borrower)).await.unwrap().is_some(), is_left, "{borrower}");
    }
    ledger.close().await;
    assert_eq!(findings(&file).await, Vec::<String>::new());
}
