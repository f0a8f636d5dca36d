//! Several processes on one database: leases, fencing, adoption and the division of work.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::Instant;

use super::barrier::Polls;
use super::connect::Connector;
use super::members_table::{MemberTable, PostgresMembers};
use super::settings::PostgresSettings;
use super::test_support::support::{Database, Postgres, TcpProxy};
use super::test_support::{Node, settings, until};
use crate::ledger::membership::{ADOPTED_INTENT, Lease};
use crate::ledger::test_support::{audit_key, by, loan};
use crate::ledger::{Brake, Intended, Ledger, LedgerError};
use crate::loan::{Event, LoanId, LoanState, Terms};

/// A lease that a test can wait for, and that a busy machine renews in time.
const LEASE: Duration = Duration::from_secs(4);

async fn node(url: &str) -> Node {
    let mut settings = settings(url);
    settings.lease = LEASE;
    Node::open_with(settings, Brake::default()).await
}

/// Fences all members of now, as another process would.
async fn fence_all(database: &Database) {
    let fence = "UPDATE members SET fenced = 1 WHERE fenced IS NULL";
    database.connect().await.execute(fence).await.unwrap();
}

/// Writes an intent under the lease of this process.
async fn intend(ledger: &Ledger, borrower: u8) -> (LoanId, Lease) {
    let (lease, loan) = (ledger.lease(), loan(borrower));
    let id = loan.id;
    let written = ledger.intend(loan, None, by("reader")).await.unwrap();
    assert!(matches!(written, Intended::Written(_)), "{written:?}");
    (id, lease)
}

async fn is_orphan(ledger: &Ledger, id: LoanId) -> bool {
    ledger.orphans(None).await.unwrap().iter().any(|orphan| orphan.id == id)
}

fn accepted() -> Event {
    let terms = Terms { due: Timestamp::MAX, licence_id: None, licence_type: None };
    Event::Accepted { lending_id: "BL1".to_owned(), terms }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fenced_process_loses_its_intents_and_joins_again() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = node(&database.url()).await;
    let ledger = &node.ledger;
    let (id, lease) = intend(ledger, 1).await;
    assert!(lease.is_held());
    fence_all(&database).await;
    until("the process has another name", async || !lease.is_held() && ledger.lease().is_held())
        .await;
    let late = ledger.apply(id, accepted(), by("begin")).await;
    assert!(matches!(late, Err(LedgerError::NotOwner(_))), "{late:?}");
    until("the loan is an orphan", async || is_orphan(ledger, id).await).await;
    assert!(ledger.adopt(id).await.unwrap());
    assert!(!ledger.adopt(id).await.unwrap(), "it has an owner again");
    ledger.apply(id, accepted(), by("settle")).await.unwrap();
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_records_its_settings_under_each_of_its_names() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    // A row that is too old would be deleted, which proves a loss.
    const FENCE_NOW: &str = "UPDATE members SET fenced = joined WHERE fenced IS NULL";
    let seconds = Duration::from_secs;
    let settings =
        PostgresSettings { lease: LEASE, freshness: seconds(200), ..settings(&database.url()) };
    let node = Node::open_with(settings, Brake::default()).await;
    let mut connection = database.connect().await;
    let mut table = PostgresMembers::new(
        Connector::new(&super::test_support::settings(&database.url())),
        seconds(5),
        super::epoch::EpochSeals::new(audit_key(), uuid::Uuid::nil()),
    );
    for _ in 0..2 {
        let name = node.ledger.membership.name();
        let live = table.read(&[]).await.unwrap().live;
        assert_eq!(live.iter().map(|live| live.lease).collect::<Vec<_>>(), [LEASE]);
        let polls = Polls::read(&mut connection).await.unwrap();
        assert_eq!(polls.freshness_of(name.parse().unwrap()), Some(seconds(200)));
        connection.execute(FENCE_NOW).await.unwrap();
        until("the process joins again", async || {
            let ledger = &node.ledger;
            ledger.membership.name() != name && ledger.lease().is_held()
        })
        .await;
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intents_of_a_closed_process_are_orphans_at_once() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (first, second) = (node(&database.url()).await, node(&database.url()).await);
    let (id, _) = intend(&first.ledger, 1).await;
    assert!(!is_orphan(&second.ledger, id).await);
    first.close().await;
    until("the loan is an orphan", async || is_orphan(&second.ledger, id).await).await;
    until("one process is left", async || second.ledger.sharers() == 1).await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_without_the_database_is_fenced_after_its_lease() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let cut_off = node(&database.url_at(proxy.port())).await;
    let other = node(&database.url()).await;
    let (id, lease) = intend(&cut_off.ledger, 1).await;
    proxy.refuse(true);
    proxy.abort();
    let cut = Instant::now();
    until("another process fences it", async || is_orphan(&other.ledger, id).await).await;
    assert!(!lease.is_held(), "its lease was over first");
    assert!(cut.elapsed() > LEASE - LEASE / 5, "{:?}", cut.elapsed());
    assert!(other.ledger.adopt(id).await.unwrap());
    proxy.refuse(false);
    until("it joins again", async || cut_off.ledger.lease().is_held()).await;
    until("its write is refused", async || {
        let late = cut_off.ledger.apply(id, accepted(), by("begin")).await;
        // Its connections are opened again first.
        assert!(matches!(late, Err(LedgerError::NotOwner(_) | LedgerError::Commit(_))), "{late:?}");
        matches!(late, Err(LedgerError::NotOwner(_)))
    })
    .await;
    cut_off.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopted_intent_that_was_not_found_is_searched_for() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = node(&database.url()).await;
    let ledger = &node.ledger;
    let (adopted, _) = intend(ledger, 1).await;
    let (not_sent, _) = intend(ledger, 2).await;
    let (found, _) = intend(ledger, 3).await;
    let record = async |id, event, cause| ledger.apply(id, event, by(cause)).await.unwrap();
    record(adopted, Event::Lost, ADOPTED_INTENT).await;
    assert_eq!(ledger.unfound_begins(Timestamp::MIN).await.unwrap(), []);
    let ended = record(adopted, Event::NotFound, "settle").await;
    record(not_sent, Event::NotSent, "begin").await;
    record(found, Event::Lost, ADOPTED_INTENT).await;
    record(found, accepted(), "settle").await;
    let unfound = ledger.unfound_begins(Timestamp::MIN).await.unwrap();
    assert_eq!(unfound.len(), 1);
    assert_eq!(unfound[0].loan, adopted);
    assert_eq!(unfound[0].ended.as_millisecond(), ended.changed.as_millisecond());
    assert_eq!(unfound[0].reference, ended.reference);
    assert_eq!(ledger.unfound_begins(ended.changed).await.unwrap(), [], "too old");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_of_each_row_is_that_of_its_id() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = node(&database.url()).await;
    for borrower in 1..=20 {
        intend(&node.ledger, borrower).await;
    }
    let rows = sqlx::query_as::<_, (uuid::Uuid, i16)>(AssertSqlSafe(
        "SELECT id, bucket FROM loans".to_owned(),
    ));
    let rows = rows.persistent(false).fetch_all(&mut database.connect().await).await.unwrap();
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|(id, bucket)| crate::ledger::buckets::bucket_of(*id) == *bucket));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_divide_orphans_without_gaps() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (first, second) = (node(&database.url()).await, node(&database.url()).await);
    let dead = node(&database.url()).await;
    let mut ids = Vec::new();
    for borrower in 1..=30 {
        ids.push(intend(&dead.ledger, borrower).await.0);
    }
    dead.close().await;
    let (left, right) = (&first.ledger, &second.ledger);
    until("each has a part of the orphans", async || {
        let (mine, others) =
            (left.orphans(None).await.unwrap(), right.orphans(None).await.unwrap());
        let together = mine.len() + others.len();
        !mine.is_empty() && !others.is_empty() && together == ids.len()
    })
    .await;
    for orphan in left.orphans(None).await.unwrap() {
        assert!(left.owns(orphan.id) && !right.owns(orphan.id));
        assert_eq!(orphan.state, LoanState::Intended);
    }
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_does_the_work_of_all() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (first, second) = (node(&database.url()).await, node(&database.url()).await);
    let count = || [&first, &second].iter().filter(|node| node.ledger.does_work_of_all()).count();
    until("both share", async || first.ledger.sharers() == 2 && second.ledger.sharers() == 2).await;
    assert_eq!(count(), 1);
    let (gone, other) =
        if first.ledger.does_work_of_all() { (first, second) } else { (second, first) };
    gone.close().await;
    until("the other one does", async || other.ledger.does_work_of_all()).await;
    other.close().await;
}
