//! Tests of pruning beside writers on a real server, and of the audit trail after it.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep};

use super::test_support::support::{Database, Postgres};
use super::test_support::{Node, settings};
use super::verify::verify_ledger;
use super::whole_ledger::WholeLedger;
use crate::clock::Clock;
use crate::ledger::test_support::{accepted, audit_key, by, end, forget, interleaved_loans, loan};
use crate::ledger::{Ledger, LedgerError, Prunable, Pruned, RowsRead, StoreSettings};
use crate::loan::{EndReason, Event, LoanId, Refusal};

const ENDED: Prunable = Prunable::Ended { before: Timestamp::MAX };

fn store(database: &Database) -> StoreSettings {
    StoreSettings::Postgres(Box::new(settings(&database.url())))
}

async fn prune_all(database: &Database, which: Prunable) -> Result<Pruned, LedgerError> {
    let rows = RowsRead::default();
    let pruned = crate::ledger::prune(&store(database), &audit_key(), which, &rows).await;
    // More may become old meanwhile.
    assert!(pruned.is_err() || rows.read() >= rows.total(), "{rows}");
    pruned
}

async fn removed(database: &Database, which: Prunable) -> u64 {
    let pruned = prune_all(database, which).await.unwrap();
    assert_eq!(pruned.left, Vec::<String>::new());
    pruned.loans
}

/// Verifies the ledger in pages of this number of rows.
async fn verify_pages(database: &Database, page: i64) -> Vec<String> {
    let mut ledger = WholeLedger::open(&settings(&database.url())).await.unwrap();
    ledger.page = page;
    let no_heads = tempfile::tempdir().unwrap();
    let verified = verify_ledger(&ledger, no_heads.path(), &audit_key()).await.unwrap();
    ledger.pool.close().await;
    verified.findings
}

/// Returns the findings of both checks.
async fn findings(database: &Database) -> Vec<String> {
    let mut found =
        crate::ledger::check(&store(database), &audit_key(), &RowsRead::default()).await.unwrap();
    for page in [1, 3, 2000] {
        found.extend(verify_pages(database, page).await);
    }
    found
}

async fn execute(database: &Database, sql: &str) {
    let mut connection = database.connect().await;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

async fn count(database: &Database, table: &str) -> i64 {
    let mut connection = database.connect().await;
    let count = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")));
    count.fetch_one(&mut connection).await.unwrap()
}

async fn refused(ledger: &Ledger, borrower: u8, retry_at: Option<Timestamp>) -> LoanId {
    let loan = loan(borrower);
    let id = loan.id;
    ledger.intend(loan, None, by("reader")).await.unwrap();
    let refusal = Refusal { code: "NO".into(), message: String::new(), retry_at };
    ledger.apply(id, Event::Refused { lending_id: None, refusal }, by("begin")).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_pruned_beside_writers_verifies_and_continues() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (one, other) = (Node::open(&database).await, Node::open(&database).await);
    let live = interleaved_loans(&one.ledger).await;
    for id in &live[..3] {
        // The steps of these loans are in both chains.
        end(&other.ledger, *id).await;
    }
    forget(&other.ledger).await;
    accepted(&other.ledger, 99).await;
    let writing = async {
        for borrower in 10..40 {
            let ended = accepted(&one.ledger, borrower).await;
            accepted(&other.ledger, borrower + 40).await;
            end(&other.ledger, ended).await;
            forget(&one.ledger).await;
        }
        accepted(&one.ledger, 98).await;
        accepted(&other.ledger, 97).await;
    };
    let pruning = async {
        let mut loans = 0;
        for _ in 0..5 {
            loans += removed(&database, ENDED).await;
            assert_eq!(findings(&database).await, Vec::<String>::new());
        }
        loans
    };
    let ((), during) = tokio::join!(writing, pruning);
    let after = removed(&database, ENDED).await;
    assert_eq!((during + after, during >= 9), (6 + 3 + 30, true), "{during}");
    assert_eq!(findings(&database).await, Vec::<String>::new());
    // Anchors that touch are one.
    let touching = "anchors AS a JOIN anchors AS b \
         ON a.library = b.library AND a.chain = b.chain AND a.last + 1 = b.first";
    assert_eq!(count(&database, touching).await, 0);
    let verified =
        crate::ledger::verify(&store(&database), &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!(verified.steps, count(&database, "history").await.unsigned_abs());
    assert!(verified.pruned >= 39 * 5, "{}", verified.pruned);
    assert!(one.ledger.loan(live[6]).await.unwrap().is_some());
    let heads = one.close().await;
    other.close().await;
    // The head files name steps that may be pruned.
    let mut reopened = settings(&database.url());
    reopened.heads = heads.path().to_owned();
    Node::try_open(reopened, &heads).await.unwrap().close().await;
    assert_eq!(findings(&database).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anchor_without_a_valid_seal_is_found() {
    let Some(server) = Postgres::shared().await else { return };
    const FIRST: &str = "(SELECT min(first) FROM anchors)";
    for (damage, expected) in [
        ("UPDATE anchors SET mac = seal WHERE first = $first", "was changed or forged"),
        ("UPDATE anchors SET last = last + 1 WHERE first = $first", "was changed or forged"),
        ("UPDATE anchors SET last = -1 WHERE first = $first", "does not fit the chain"),
        ("DELETE FROM anchors WHERE first = $first", "are missing"),
        // A forged anchor replaces a removed step.
        (
            "INSERT INTO anchors SELECT library, chain, number, number, mac, mac FROM history \
             WHERE cause = 'begin' LIMIT 1; DELETE FROM history WHERE EXISTS \
             (SELECT 1 FROM anchors WHERE first = number AND seal = history.mac)",
            "was changed or forged",
        ),
        // A forged anchor covers an existing step.
        (
            "INSERT INTO anchors SELECT library, chain, number, number, mac, mac FROM history \
             WHERE cause = 'begin' LIMIT 1",
            "was changed or forged",
        ),
        (
            "INSERT INTO anchors SELECT library, chain, number - 1, number + 1, mac, mac \
             FROM history WHERE cause = 'begin' LIMIT 1",
            "the anchor of steps",
        ),
    ] {
        let database = server.database().await;
        let node = Node::open(&database).await;
        interleaved_loans(&node.ledger).await;
        assert_eq!(removed(&database, ENDED).await, 6);
        node.close().await;
        assert_eq!(findings(&database).await, Vec::<String>::new());
        execute(&database, &damage.replace("$first", FIRST)).await;
        for page in [1, 3, 2000] {
            let found = verify_pages(&database, page).await.join("\n");
            assert!(found.contains(expected), "{damage}, page of {page}: {found}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_loan_or_step_is_not_pruned() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    interleaved_loans(&node.ledger).await;
    let change = "UPDATE loans SET due = due - 1 \
         WHERE id = (SELECT id FROM loans WHERE state = 'ended' LIMIT 1)";
    execute(&database, change).await;
    let pruned = prune_all(&database, ENDED).await.unwrap();
    assert_eq!((pruned.loans, pruned.left.len()), (5, 1));
    assert!(pruned.left[0].contains("is not as its last step left it"), "{:?}", pruned.left);
    let ended = accepted(&node.ledger, 90).await;
    end(&node.ledger, ended).await;
    forget(&node.ledger).await;
    accepted(&node.ledger, 91).await;
    let change =
        format!("UPDATE history SET at = at + 1 WHERE loan = '{ended}' AND to_state = 'ending'");
    execute(&database, &change).await;
    let before = (count(&database, "loans").await, count(&database, "history").await);
    let error = prune_all(&database, ENDED).await.unwrap_err().to_string();
    assert!(error.contains("does not verify at step") && error.contains("chain"), "{error}");
    let after = (count(&database, "loans").await, count(&database, "history").await);
    assert_eq!(after, before, "nothing was removed");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_ended_and_forgotten_loans_are_pruned() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let ledger = &node.ledger;
    let ended = accepted(ledger, 1).await;
    end(ledger, ended).await;
    let unacknowledged = accepted(ledger, 2).await;
    let ending = Event::Ending { reason: EndReason::Returned };
    ledger.apply(unacknowledged, ending, by("reader")).await.unwrap();
    assert_eq!(removed(&database, ENDED).await, 0, "the borrower is not forgotten");
    forget(ledger).await;
    let long_ago = Prunable::Ended { before: Timestamp::MIN };
    assert_eq!(removed(&database, long_ago).await, 0);
    assert_eq!(removed(&database, ENDED).await, 0, "it has the newest step");
    accepted(ledger, 3).await;
    assert_eq!(removed(&database, ENDED).await, 1);
    assert!(ledger.loan(unacknowledged).await.unwrap().is_some());
    assert_eq!(findings(&database).await, Vec::<String>::new());
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gate_prunes_refused_loans_of_its_own_buckets() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (one, other) = (Node::open(&database).await, Node::open(&database).await);
    let deadline = Instant::now() + Duration::from_secs(60);
    while one.ledger.sharers() != 2 || other.ledger.sharers() != 2 {
        assert!(Instant::now() < deadline, "the gates do not know each other");
        sleep(Duration::from_millis(50)).await;
    }
    let now = Clock::system().now();
    let later = crate::clock::after(now, Duration::from_secs(86_400));
    for borrower in 0..40 {
        refused(&one.ledger, borrower, None).await;
    }
    let active = refused(&one.ledger, 50, Some(later)).await;
    let unsent = loan(51);
    let (id, lent) = (unsent.id, accepted(&one.ledger, 52).await);
    one.ledger.intend(unsent, None, by("reader")).await.unwrap();
    one.ledger.apply(id, Event::NotSent, by("begin")).await.unwrap();
    // The balance ends a loan like this if Bokbasen no longer lists it.
    let ended = Event::EndedThere { reason: EndReason::Rejected };
    one.ledger.apply(lent, ended, by("balance")).await.unwrap();
    let last = accepted(&one.ledger, 60).await;
    let never_lent = Prunable::NeverLent { before: Timestamp::MAX, now };
    let long_ago = Prunable::NeverLent { before: Timestamp::MIN, now };
    assert_eq!(one.ledger.prune(long_ago).await.unwrap().loans, 0);
    let first = one.ledger.prune(never_lent).await.unwrap().loans;
    assert!((1..41).contains(&first), "{first}");
    assert_eq!(one.ledger.prune(never_lent).await.unwrap().loans, 0);
    assert_eq!(other.ledger.prune(never_lent).await.unwrap().loans, 41 - first);
    for id in [active, lent, last] {
        assert!(one.ledger.loan(id).await.unwrap().is_some());
    }
    assert_eq!(findings(&database).await, Vec::<String>::new());
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_waits_for_the_writer_of_a_chain() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    interleaved_loans(&node.ledger).await;
    let mut writer = database.connect().await;
    let lock = "BEGIN; SELECT 1 FROM chains FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut writer).await.unwrap();
    let url = database.url();
    let pruning = tokio::spawn(async move {
        let store = StoreSettings::Postgres(Box::new(settings(&url)));
        crate::ledger::prune(&store, &audit_key(), ENDED, &RowsRead::default()).await
    });
    let waiting =
        "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let deadline = Instant::now() + Duration::from_secs(10);
    while count(&database, waiting).await == 0 {
        assert!(Instant::now() < deadline && !pruning.is_finished(), "nothing waits for a lock");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(count(&database, "anchors").await, 0);
    sqlx::raw_sql("COMMIT").execute(&mut writer).await.unwrap();
    assert_eq!(pruning.await.unwrap().unwrap().loans, 6);
    node.close().await;
}
