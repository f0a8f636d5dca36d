//! Tests of batches under bad conditions: a slow network, a lost connection, a value that the
//! database rejects, and a lane that does not proceed.

use super::*;
use crate::clock::Clock;
use crate::loan::{Borrower, Loan, LoanKey};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_intents_are_written_over_a_slow_network() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let brake = Brake {
        attempts_per_borrower_per_hour: 20,
        attempts_per_library_per_hour: 100_000,
        ..Brake::default()
    };
    let node = Node::open_with(settings(&database.url_at(proxy.port())), brake).await;
    proxy.set(Link::Delayed(Duration::from_millis(2)));
    let unlimited = Ledger { deadlines: Default::default(), ..node.ledger.clone() };
    let intend = |number: u16| {
        let mut borrower = [0; 16];
        borrower[..2].copy_from_slice(&number.to_be_bytes());
        let key = LoanKey { borrower: Borrower::from_bytes(borrower), ..key(1) };
        unlimited.intend(Loan::intend(key, Clock::system().now()), None, by("reader"))
    };
    let intents = join_all((0..600).map(intend));
    let results = timeout(Duration::from_secs(60), intents).await.unwrap();
    for result in results {
        assert!(matches!(result, Ok(Intended::Written(_))), "{result:?}");
    }
    proxy.set(Link::Open);
    node.close().await;
}

#[tokio::test]
async fn rejected_value_fails_only_its_command() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let mut ids = Vec::new();
    for borrower in 1..=3 {
        ids.push(written(&node.ledger, borrower).await);
    }
    let lost = |number: usize, detail: &str| {
        let cause = Cause { by: "begin", detail: Some(detail.to_owned()) };
        node.ledger.apply(ids[number], Event::Lost, cause)
    };
    let (first, rejected, third) = tokio::join!(lost(0, "a"), lost(1, "a\0b"), lost(2, "c"));
    assert_eq!(first.unwrap().state, LoanState::Unknown);
    assert!(matches!(rejected, Err(LedgerError::Unwritable(_))), "{rejected:?}");
    assert_eq!(third.unwrap().state, LoanState::Unknown);
    let unchanged = node.ledger.loan(ids[1]).await.unwrap().unwrap();
    assert_eq!(unchanged.state, LoanState::Intended);
    node.close().await;
}

#[tokio::test]
async fn batch_after_a_lost_connection_runs_over_another() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let node = Node::open_with(settings(&database.url_at(proxy.port())), Brake::default()).await;
    let id = written(&node.ledger, 1).await;
    proxy.abort();
    node.ledger.apply(id, Event::Lost, by("begin")).await.unwrap();
    node.close().await;
}

#[tokio::test]
async fn intent_that_waited_too_long_is_not_written() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let (mut rival, mut watcher) = (database.connect().await, database.connect().await);
    run(&mut rival, "BEGIN").await;
    insert_intent(&mut rival, 1).await;
    let intend = |borrower| node.ledger.intend(loan(borrower), None, by("reader"));
    let queued = async {
        until_blocked(&mut watcher).await;
        intend(2).await
    };
    let (blocked, queued) = tokio::join!(intend(1), queued);
    assert!(matches!(blocked, Err(LedgerError::Commit(_))), "{blocked:?}");
    assert!(matches!(queued, Err(LedgerError::Commit(_))), "{queued:?}");
    run(&mut rival, "ROLLBACK").await;
    node.close().await;
    let borrower = data_encoding::HEXLOWER.encode(key(2).borrower.as_bytes());
    let of_queued = format!("loans WHERE borrower = '\\x{borrower}'");
    assert_eq!(count(&mut watcher, &of_queued).await, 0);
}

#[tokio::test]
async fn long_wait_for_a_lock_is_repeated() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let id = written(&node.ledger, 1).await;
    let mut rival = database.connect().await;
    run(&mut rival, format!("BEGIN; SELECT 1 FROM loans WHERE id = '{id}' FOR UPDATE")).await;
    let released = async {
        // Longer than the lock timeout of a transaction.
        sleep(Duration::from_millis(3300)).await;
        run(&mut rival, "COMMIT").await;
    };
    let apply = node.ledger.apply(id, Event::Lost, by("begin"));
    let (applied, ()) = tokio::join!(apply, released);
    assert_eq!(applied.unwrap().state, LoanState::Unknown);
    node.close().await;
}
