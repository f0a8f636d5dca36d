//! Tests of what several processes on one database rely on: claims, ownership, deadlocks, and
//! commits without a response.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::super::closed_begins;
use super::super::connect::Connector;
use super::super::copy_marks;
use super::super::lane::Lane;
use super::super::observer::Member;
use super::super::standing::Standing;
use super::super::test_support::support::{Database, Link, Postgres, TcpProxy};
use super::super::test_support::{Node, settings};
use super::PostgresStore;
use crate::clock::{self, Clock};
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::ledger::store::{DiskFault, LedgerStore, StoreConnection};
use crate::ledger::test_support::{accepted, audit_key, by, key, loan};
use crate::ledger::write_check::SHARED_FOR;
use crate::ledger::{
    Brake, BrakeMode, Cause, Delivered, Intended, Ledger, LedgerError, StoreSettings,
};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanKey, LoanState, Progress, Tally, Terms};

async fn written(ledger: &Ledger, borrower: u8) -> LoanId {
    match ledger.intend(loan(borrower), None, by("reader")).await.unwrap() {
        Intended::Written(loan) => loan.id,
        other => panic!("{other:?}"),
    }
}

async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {sql}")))
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

/// Waits until a statement of another connection waits for a lock.
async fn until_blocked(connection: &mut PgConnection) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let waiting =
        "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while count(connection, waiting).await == 0 {
        assert!(Instant::now() < deadline, "nothing waits for a lock");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Inserts an intent of another process for a key. The caller commits.
async fn insert_intent(connection: &mut PgConnection, borrower: u8) {
    let loan = loan(borrower);
    let (key, id, reference) = (loan.key, loan.id.uuid(), loan.reference.as_str());
    let (library, isbn) = (key.library, key.isbn);
    let borrower = data_encoding::HEXLOWER.encode(key.borrower.as_bytes());
    let insert = format!(
        "INSERT INTO loans (library, id, bucket, borrower, isbn, reference, state, begun, changed, \
         owner) VALUES ('{library}', '{id}', 0, '\\x{borrower}', {isbn}, '{reference}', \
         'intended', 1, 1, '00000000-0000-0000-0000-000000000001')"
    );
    run(connection, insert).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_processes_gets_each_slot() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (one, other) = (Node::open(&database).await, Node::open(&database).await);
    for borrower in 0..100 {
        let (first, second) = tokio::join!(
            one.ledger.intend(loan(borrower), None, by("reader")),
            other.ledger.intend(loan(borrower), None, by("reader")),
        );
        match (first.unwrap(), second.unwrap()) {
            (Intended::Written(written), Intended::Live(live))
            | (Intended::Live(live), Intended::Written(written)) => assert_eq!(written.id, live.id),
            other => panic!("{other:?}"),
        }
    }
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn lost_slot_concerns_one_command_of_a_batch() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let other = written(&node.ledger, 9).await;
    let mut connection = database.connect().await;
    let mut watcher = database.connect().await;
    run(&mut connection, "BEGIN").await;
    insert_intent(&mut connection, 2).await;
    let intend = |borrower| node.ledger.intend(loan(borrower), None, by("reader"));
    let batch = async {
        tokio::join!(
            intend(1),
            intend(2),
            intend(3),
            node.ledger.apply(other, Event::Lost, by("begin"))
        )
    };
    let committed = async {
        until_blocked(&mut watcher).await;
        run(&mut connection, "COMMIT").await;
    };
    let ((first, lost, third, applied), ()) = tokio::join!(batch, committed);
    assert!(matches!(first.unwrap(), Intended::Written(_)));
    assert!(matches!(lost.unwrap(), Intended::Live(_)));
    assert!(matches!(third.unwrap(), Intended::Written(_)));
    assert_eq!(applied.unwrap().state, LoanState::Unknown);
    node.close().await;
}

#[tokio::test]
async fn refused_claims_leave_no_row() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let brake = Brake { mode: BrakeMode::Enforce, borrower_per_hour: 1, ..Brake::default() };
    let node = Node::open_with(settings(&database.url()), brake).await;
    let ended = accepted(&node.ledger, 1).await;
    let end = Event::Ending { reason: EndReason::Returned };
    node.ledger.apply(ended, end, by("reader")).await.unwrap();
    node.ledger.apply(ended, Event::EndAcknowledged, by("outbox")).await.unwrap();
    let old = Some(Timestamp::from_second(1).unwrap());
    let refused = node.ledger.intend(loan(1), old, by("reader")).await.unwrap();
    assert!(matches!(refused, Intended::EndedSince(_)), "{refused:?}");
    let refused = node.ledger.intend(loan(1), Some(Timestamp::MAX), by("reader")).await.unwrap();
    assert!(matches!(refused, Intended::Braked(_)), "{refused:?}");
    let mut connection = database.connect().await;
    assert_eq!(count(&mut connection, "loans").await, 1);
    assert_eq!(count(&mut connection, "history").await, 4);
    node.close().await;
}

#[tokio::test]
async fn brake_does_not_count_unwritten_claims() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let brake = Brake { mode: BrakeMode::Enforce, library_per_hour: 3, ..Brake::default() };
    let node = Node::open_with(settings(&database.url()), brake).await;
    let intend = |borrower| node.ledger.intend(loan(borrower), None, by("reader"));
    let results = join_all((1..=5).map(intend)).await;
    let is_written: Vec<bool> =
        results.iter().map(|result| matches!(result, Ok(Intended::Written(_)))).collect();
    assert_eq!(is_written, [true, true, true, false, false], "{results:?}");
    let mut connection = database.connect().await;
    assert_eq!(count(&mut connection, "loans").await, 3);
    node.close().await;
}

#[tokio::test]
async fn deadlock_is_retried() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let mut ids = [written(&node.ledger, 1).await, written(&node.ledger, 2).await];
    ids.sort();
    let [low, high] = ids;
    let (mut rival, mut watcher) =
        (database.connect_as_admin().await, database.connect_as_admin().await);
    let lock = |id: LoanId| format!("SELECT 1 FROM loans WHERE id = '{id}' FOR UPDATE");
    run(&mut rival, format!("BEGIN; SET LOCAL deadlock_timeout = '60s'; {}", lock(high))).await;
    let batch = async {
        tokio::join!(
            node.ledger.apply(low, Event::Lost, by("begin")),
            node.ledger.apply(high, Event::Lost, by("begin")),
        )
    };
    let rival = async {
        until_blocked(&mut watcher).await;
        run(&mut rival, format!("{}; COMMIT", lock(low))).await;
    };
    let ((first, second), ()) = tokio::join!(batch, rival);
    assert_eq!(first.unwrap().state, LoanState::Unknown);
    assert_eq!(second.unwrap().state, LoanState::Unknown);
    node.close().await;
}

#[tokio::test]
async fn fenced_owner_loses_its_undecided_loans() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (one, other) = (Node::open(&database).await, Node::open(&database).await);
    let id = written(&one.ledger, 1).await;
    assert!(!other.ledger.adopt(id).await.unwrap(), "its owner is a member");
    let mut connection = database.connect().await;
    let owner = one.ledger.membership.name();
    run(&mut connection, format!("UPDATE members SET fenced = 1 WHERE member = '{owner}'")).await;
    assert!(other.ledger.adopt(id).await.unwrap());
    assert!(!other.ledger.adopt(id).await.unwrap(), "its new owner is a member");
    let decided = one.ledger.apply(id, Event::Lost, by("begin")).await;
    assert!(matches!(decided, Err(LedgerError::NotOwner(of)) if of == id), "{decided:?}");
    other.ledger.apply(id, Event::Lost, by("begin")).await.unwrap();
    one.close().await;
    other.close().await;
}

/// Pauses the next commit.
async fn pause_commit(ledger: &Ledger) -> Arc<Barrier> {
    // Each lane first replaces a connection that an earlier fault broke, which would take this one.
    for lane in 0.. {
        match ledger.test_lane(lane).await {
            Err(LedgerError::Closed) => break,
            tested => tested.unwrap(),
        }
    }
    let pause = Arc::new(Barrier::new(2));
    ledger.lanes.inject(DiskFault::PausedCommit(pause.clone()));
    pause
}

/// When the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    /// The server does not receive the commit.
    Request,
    /// The commit takes effect, and its response is lost.
    Response,
}

/// Runs a write whose commit loses its connection.
async fn with_lost_commit<T: std::fmt::Debug>(
    lost: Lost,
    node: &Node,
    proxy: &TcpProxy,
    database: &Database,
    write: impl Future<Output = T>,
) -> T {
    let mut watcher = database.connect().await;
    let before: i64 = batches(&mut watcher).await;
    let pause = pause_commit(&node.ledger).await;
    let cut = async {
        pause.wait().await;
        match lost {
            Lost::Request => proxy.set_to_server(Link::Blocked),
            Lost::Response => proxy.set_to_client(Link::Blocked),
        }
        pause.wait().await;
        match lost {
            Lost::Request => sleep(Duration::from_millis(50)).await,
            Lost::Response => {
                while batches(&mut watcher).await == before {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
        proxy.abort();
        proxy.set(Link::Open);
    };
    let mut write = pin!(write);
    tokio::select! {
        biased;
        early = &mut write => panic!("{lost:?}: the write ended before its commit: {early:?}"),
        () = cut => {}
    }
    timeout(Duration::from_secs(60), write).await.unwrap_or_else(|_| panic!("{lost:?} hangs"))
}

async fn batches(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT coalesce(sum(batch), 0)::bigint FROM chains")
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_without_a_response_takes_effect_once() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let node = Node::open_with(settings(&database.url_at(proxy.port())), Brake::default()).await;
    let mut connection = database.connect().await;
    for (borrower, lost) in [(1, Lost::Request), (2, Lost::Response)] {
        // The first transaction of the library opens its chain; later ones change it.
        let write = node.ledger.write_without_deadline(borrower);
        let id = with_lost_commit(lost, &node, &proxy, &database, write).await;
        let history = format!("history WHERE loan = '{id}'");
        assert_eq!(count(&mut connection, &history).await, 1, "{lost:?}");
        let apply = node.ledger.apply(id, Event::Lost, by("begin"));
        let applied = with_lost_commit(lost, &node, &proxy, &database, apply).await;
        assert_eq!(applied.unwrap().state, LoanState::Unknown, "{lost:?}");
        assert_eq!(count(&mut connection, &history).await, 2, "{lost:?}");
        let mut tally = Tally { bytes: 10, ..Tally::default() };
        tally.ranges.insert(0..10);
        let delivered = [Delivered { loan: id, file: "/a".into(), tally }];
        let note = node.ledger.note_delivered(id.library(), delivered.into());
        with_lost_commit(lost, &node, &proxy, &database, note).await.unwrap();
        let bytes: i64 = sqlx::query_scalar("SELECT bytes FROM delivered WHERE loan = $1")
            .bind(id.uuid())
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(bytes, 10, "{lost:?}");
    }
    node.close().await;
}

impl Ledger {
    /// Writes an intent without the deadline of readers.
    async fn write_without_deadline(&self, borrower: u8) -> LoanId {
        let unlimited = Ledger { deadlines: Default::default(), ..self.clone() };
        written(&unlimited, borrower).await
    }
}

#[tokio::test]
async fn intent_written_after_the_deadline_is_ended() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let mut rival = database.connect().await;
    run(&mut rival, "BEGIN").await;
    insert_intent(&mut rival, 1).await;
    let began = Instant::now();
    let late = node.ledger.intend(loan(1), None, by("reader")).await;
    assert!(matches!(late, Err(LedgerError::Commit(_))), "{late:?}");
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(3), "{waited:?}");
    run(&mut rival, "ROLLBACK").await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while count(&mut rival, "loans WHERE state = 'ended' AND end_reason = 'rejected'").await == 0 {
        assert!(Instant::now() < deadline, "the late intent is not ended");
        sleep(Duration::from_millis(20)).await;
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_processes_open_an_empty_database_at_once() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut settings = settings(&database.url());
    settings.connections = 8;
    let open = |_| Node::open_with(settings.clone(), Brake::default());
    let nodes = join_all((0..10).map(open)).await;
    for (borrower, node) in (1..).zip(&nodes) {
        written(&node.ledger, borrower).await;
    }
    let mut connection = database.connect().await;
    assert_eq!(count(&mut connection, "chains").await, 10, "each process has its own chain");
    join_all(nodes.into_iter().map(Node::close)).await;
    assert_eq!(count(&mut connection, "chains WHERE closed IS NOT NULL").await, 10);
    assert_eq!(count(&mut connection, "meta WHERE name LIKE 'write test%'").await, 0);
}

#[tokio::test]
async fn each_lane_tests_writes_by_a_row_of_its_own() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let lanes = i64::from(settings(&database.url()).shares().writes);
    let node = Node::open(&database).await;
    let mut connection = database.connect().await;
    let of_lanes = count(&mut connection, "meta WHERE name LIKE 'write test%'").await;
    assert_eq!(of_lanes, lanes);
    node.close().await;
}

#[tokio::test]
async fn readiness_needs_each_lane() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let lanes = settings(&database.url()).shares().writes;
    node.ledger.check_writable().await.unwrap();
    let mut other = database.connect().await;
    // The row of the last lane.
    let lock = "BEGIN; SELECT name FROM meta WHERE name LIKE 'write test%' \
         ORDER BY length(name) DESC, name DESC LIMIT 1 FOR UPDATE";
    run(&mut other, lock).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.ledger.check_writable().await.is_ok() {
        assert!(Instant::now() < deadline, "one lane of {lanes} cannot write");
        sleep(SHARED_FOR / 10).await;
    }
    for _ in 0..3 {
        node.ledger.check_writable().await.unwrap_err();
        sleep(SHARED_FOR).await;
    }
    run(&mut other, "ROLLBACK").await;
    while node.ledger.check_writable().await.is_err() {
        assert!(Instant::now() < deadline, "all lanes can write");
        sleep(SHARED_FOR / 10).await;
    }
    node.close().await;
}

#[tokio::test]
async fn readiness_names_no_host_of_the_database() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let node = Node::open_with(settings(&database.url_at(proxy.port())), Brake::default()).await;
    node.ledger.check_writable().await.unwrap();
    proxy.refuse(true);
    proxy.abort();
    sleep(Duration::from_millis(1100)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let why = node.ledger.check_writable().await.unwrap_err();
        assert!(!why.contains("127.0.0.1"), "{why}");
        if why.contains("the log has the error") {
            break;
        }
        assert!(Instant::now() < deadline, "{why}");
        sleep(Duration::from_millis(200)).await;
    }
    proxy.refuse(false);
    node.close().await;
}

/// Returns the server processes of the connections that write.
async fn writers(connection: &mut PgConnection) -> Vec<i32> {
    let pids = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name LIKE '%writes' ORDER BY pid";
    sqlx::query_scalar(pids).fetch_all(connection).await.unwrap()
}

#[tokio::test]
async fn renewals_are_compared_after_the_lease_too() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let directory = Node::open(&database).await.close().await;
    let (chain, id) = (Uuid::new_v4(), Uuid::new_v4());
    let standing = Standing::new(Arc::new(clock::since_boot)).0;
    standing.hold(Member { id, renewals: 7 }, Duration::ZERO);
    let heads = ChainHeads::start(directory.path(), Uuid::nil(), chain, 0).unwrap();
    let lane = Lane::new(0, chain, audit_key(), heads, Arc::new(standing));
    let store = PostgresStore::new(Connector::new(&settings(&database.url())), lane);
    let mut writer = store.connect(Timestamp::UNIX_EPOCH).await.unwrap();
    let library = Some("NO-0301000".parse().unwrap());
    assert!(writer.begin(library).await.is_ok(), "its row may have been deleted");
    let mut connection = database.connect().await;
    let row = format!(
        "INSERT INTO members (member, process, joined, lease, freshness, renewals) \
         VALUES ('{id}', '{id}', 0, 30000, 60000, 7)"
    );
    run(&mut connection, row).await;
    assert!(writer.begin(library).await.is_ok());
    run(&mut connection, "UPDATE members SET renewals = 6").await;
    let error = writer.begin(library).await.err().unwrap();
    assert!(error.to_string().contains("lacks a renewal"), "{error}");
}

#[tokio::test]
async fn gate_that_was_suspended_during_a_copy_writes_nothing() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    written(&node.ledger, 1).await;
    for (name, sentence) in [("moved", "was moved to"), ("copy in progress", "half copied")] {
        let mut copying = database.connect().await;
        let mut transaction = copying.begin().await.unwrap();
        copy_marks::lock_to_mark(&mut transaction).await.unwrap();
        let mark = "INSERT INTO meta (name, value) VALUES ($1, '')";
        sqlx::query(mark).bind(name).execute(&mut *transaction).await.unwrap();
        // A write that has begun before the mark is there waits, and then reads it.
        let mut observer = database.connect_as_admin().await;
        let intent = node.ledger.intend(loan(2), None, by("reader"));
        let marked = async {
            until_blocked(&mut observer).await;
            transaction.commit().await.unwrap();
        };
        let refused = tokio::join!(intent, marked).0.unwrap_err();
        assert!(refused.to_string().contains(sentence), "{refused}");
        assert_eq!(count(&mut observer, "history").await, 1, "nothing is written");
        run(&mut observer, format!("DELETE FROM meta WHERE name = '{name}'")).await;
    }
    written(&node.ledger, 2).await;
    node.close().await;
}

const MOVE: &str = "INSERT INTO meta (name, value) VALUES ('moved', \
     convert_to('{\"copy\": \"1\", \"to\": \"/data/there.db\"}', 'UTF8'))";

/// Waits until a ledger knows that it was moved, and tests that it opens nothing any more.
async fn assert_moved(ledger: &Ledger, opened: LoanId) {
    let error = timeout(Duration::from_secs(30), ledger.until_moved()).await.unwrap();
    assert!(error.to_string().contains("was moved to /data/there.db"), "{error}");
    assert!(!ledger.lease().is_held());
    for refused in [
        ledger.newest(&key(1)).await.map(drop),
        ledger.loan(opened).await.map(drop),
        ledger.loans(&[opened]).await.map(drop),
        ledger.mark_opened(opened).await.map(drop),
    ] {
        assert!(matches!(refused, Err(LedgerError::Moved { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn refused_write_ends_the_use_of_the_ledger() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let opened = accepted(&node.ledger, 1).await;
    assert!(node.ledger.mark_opened(opened).await.unwrap());
    run(&mut database.connect().await, MOVE).await;
    assert!(node.ledger.mark_opened(opened).await.unwrap() && node.ledger.moved().is_none());
    node.ledger.intend(loan(2), None, by("reader")).await.unwrap_err();
    assert_moved(&node.ledger, opened).await;
    node.close().await;
}

#[tokio::test]
async fn refused_join_ends_the_use_of_the_ledger() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut short = settings(&database.url());
    short.lease = Duration::from_secs(2);
    let node = Node::open_with(short, Brake::default()).await;
    let opened = accepted(&node.ledger, 1).await;
    assert!(node.ledger.mark_opened(opened).await.unwrap());
    let mut connection = database.connect().await;
    run(&mut connection, MOVE).await;
    run(&mut connection, "UPDATE members SET fenced = 1").await;
    assert_moved(&node.ledger, opened).await;
    node.close().await;
}

/// Its keeper would join much later.
#[tokio::test]
async fn refused_acknowledgement_ends_the_use_of_the_ledger() {
    let Some(server) = Postgres::shared().await else { return };
    for refuse in [
        "UPDATE members SET fenced = 1",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'the disk is full'; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON members EXECUTE FUNCTION refuse()",
    ] {
        let database = server.database().await;
        let mut slow = settings(&database.url());
        slow.lease = Duration::from_secs(3600);
        let node = Node::open_with(slow, Brake::default()).await;
        let opened = accepted(&node.ledger, 1).await;
        assert!(node.ledger.mark_opened(opened).await.unwrap());
        let mut feed = node.ledger.feed();
        while feed.next().await.unwrap().completed.is_none() {}
        feed.acknowledge().await.unwrap();
        let mut connection = database.connect().await;
        run(&mut connection, refuse).await;
        assert!(feed.acknowledge().await.is_err() && node.ledger.moved().is_none());
        run(&mut connection, MOVE).await;
        assert!(feed.acknowledge().await.is_err() && node.ledger.moved().is_some(), "{refuse}");
        assert_moved(&node.ledger, opened).await;
        node.close().await;
    }
}

#[tokio::test]
async fn moved_ledger_gets_no_probe_and_no_seal() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let opened = accepted(&node.ledger, 1).await;
    assert!(node.ledger.mark_opened(opened).await.unwrap());
    let mut copying = database.connect().await;
    let mut transaction = copying.begin().await.unwrap();
    copy_marks::lock_to_mark(&mut transaction).await.unwrap();
    run(&mut transaction, MOVE).await;
    let mut observer = database.connect_as_admin().await;
    let rows = "SELECT string_agg(meta::text, ' ' ORDER BY name) FROM meta";
    let before: String = sqlx::query_scalar(rows).fetch_one(&mut *transaction).await.unwrap();
    assert!(before.contains("write test"), "{before}");
    // A test that has begun before the mark is there waits, and then reads it.
    let marked = async {
        until_blocked(&mut observer).await;
        transaction.commit().await.unwrap();
    };
    assert!(tokio::join!(node.ledger.check_writable(), marked).0.is_err());
    assert_moved(&node.ledger, opened).await;
    node.close().await;
    let after: String = sqlx::query_scalar(rows).fetch_one(&mut observer).await.unwrap();
    assert_eq!(after, before);
    assert_eq!(count(&mut observer, "chains WHERE seal IS NOT NULL").await, 0);
}

#[tokio::test]
async fn database_that_lost_steps_is_neither_written_nor_opened() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    written(&node.ledger, 1).await;
    let mut connection = database.connect().await;
    run(&mut connection, "CREATE TABLE older AS SELECT * FROM chains").await;
    let id = written(&node.ledger, 2).await;
    // As after an asynchronous failover.
    run(
        &mut connection,
        format!(
            "DELETE FROM history WHERE loan = '{id}'; DELETE FROM loans WHERE id = '{id}'; \
             UPDATE chains SET number = older.number, mac = older.mac FROM older"
        ),
    )
    .await;
    let before = writers(&mut connection).await;
    for _ in 0..2 {
        let refused = node.ledger.intend(loan(2), None, by("reader")).await.unwrap_err();
        assert!(refused.to_string().contains("lacks a step"), "{refused}");
    }
    // The other libraries of the lane do not wait for another connection.
    assert_eq!(writers(&mut connection).await, before);
    assert_eq!(count(&mut connection, "meta WHERE name = 'begins closed'").await, 1);
    assert_eq!(count(&mut connection, "history").await, 1, "nothing is written");
    run(&mut connection, closed_begins::OPEN).await;
    // A process that stops compares its chains, and seals none that lacks a step.
    let heads = node.close().await;
    assert_eq!(count(&mut connection, "meta WHERE name = 'begins closed'").await, 1);
    assert_eq!(count(&mut connection, "chains WHERE seal IS NOT NULL").await, 0);
    run(&mut connection, closed_begins::OPEN).await;
    let refused = Node::try_open(settings(&database.url()), &heads).await.unwrap_err();
    assert!(matches!(refused, LedgerError::DatabaseOlder { .. }), "{refused}");
    assert_eq!(count(&mut connection, "meta WHERE name = 'begins closed'").await, 1);
    // Without the file the gate starts. It begins nothing until an operator opens the begins.
    for file in std::fs::read_dir(heads.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let mut short = settings(&database.url());
    short.lease = Duration::from_secs(2);
    let ledger = Node::try_open(short, &heads).await.unwrap();
    assert!(!ledger.lease().is_held() && ledger.begins_are_closed());
    run(&mut connection, closed_begins::OPEN).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ledger.lease().is_held() {
        assert!(Instant::now() < deadline, "begins stay closed");
        sleep(Duration::from_millis(50)).await;
    }
    ledger.close().await;
}

#[tokio::test]
async fn progress_and_causes_are_stored() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let id = written(&node.ledger, 1).await;
    let progress = Progress::of_hundredths(1234).unwrap();
    assert!(!node.ledger.note_progress(id, progress).await.unwrap(), "it is not accepted");
    let id = accepted(&node.ledger, 2).await;
    assert!(node.ledger.note_progress(id, progress).await.unwrap());
    let cause = Cause { by: "admin", detail: Some("a text".into()) };
    let end = Event::Ending { reason: EndReason::Expired };
    node.ledger.apply(id, end, cause).await.unwrap();
    let mut connection = database.connect().await;
    let loans = format!("loans WHERE id = '{id}' AND progress = 1234 AND closed IS NOT NULL");
    assert_eq!(count(&mut connection, &loans).await, 1);
    let history = format!("history WHERE loan = '{id}' AND cause = 'admin' AND detail = 'a text'");
    assert_eq!(count(&mut connection, &history).await, 1);
    node.close().await;
}

#[path = "store_failure_tests.rs"]
mod failures;

/// Returns an intent of another library for each number.
fn loan_at(library: usize, borrower: u8) -> Loan {
    let library = format!("NO-03{library:05}").parse().unwrap();
    Loan::intend(LoanKey { library, ..key(borrower) }, Clock::system().now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_library_delays_no_other() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let intend = |loan| node.ledger.intend(loan, None, by("reader"));
    intend(loan_at(0, 1)).await.unwrap();
    let (mut rival, mut watcher) = (database.connect().await, database.connect().await);
    run(&mut rival, "BEGIN; SELECT 1 FROM chains FOR UPDATE").await;
    let mut locked = Box::pin(intend(loan_at(0, 2)));
    tokio::select! {
        biased;
        early = &mut locked => panic!("it does not wait for the chain: {early:?}"),
        () = until_blocked(&mut watcher) => {}
    }
    // More libraries than lanes, so that one would share any fixed lane.
    let others = join_all((1..=40).map(|library| intend(loan_at(library, 1)))).await;
    for written in others {
        assert!(matches!(written, Ok(Intended::Written(_))), "{written:?}");
    }
    run(&mut rival, "ROLLBACK").await;
    // It may have met the deadline of readers on a slow machine, but its lane continues.
    let _ = locked.await;
    assert!(intend(loan_at(0, 3)).await.is_ok());
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_lanes_serve_the_libraries_of_one_that_panicked() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let intend = |loan| node.ledger.intend(loan, None, by("reader"));
    node.ledger.lanes.inject(DiskFault::Panic);
    assert!(intend(loan_at(0, 1)).await.is_err());
    for written in join_all((0..=20).map(|library| intend(loan_at(library, 2)))).await {
        assert!(matches!(written, Ok(Intended::Written(_))), "{written:?}");
    }
    let lanes = 16;
    for turn in 0..lanes {
        for lane in node.ledger.lanes.to_test(turn) {
            node.ledger.test_lane(lane).await.unwrap();
        }
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libraries_that_change_lanes_leave_clean_books() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let nodes = [Node::open(&database).await, Node::open(&database).await];
    let circulate = async |caller: usize| {
        for round in 0..6 {
            let ledger = &nodes[caller % 2].ledger;
            let loan = loan_at((caller + round) % 12, caller as u8);
            let id = loan.id;
            let begun = ledger.intend(loan, Some(Timestamp::MAX), by("reader")).await;
            assert!(matches!(begun, Ok(Intended::Written(_))), "{begun:?}");
            // Enqueued together, and only legal in this order.
            let due = Timestamp::from_second(4_000_000_000).unwrap();
            let terms = Terms { due, licence_id: None, licence_type: None };
            let accepted = Event::Accepted { lending_id: id.to_string(), terms };
            let (accepted, ending, ended) = tokio::join!(
                ledger.apply(id, accepted, by("begin")),
                ledger.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")),
                ledger.apply(id, Event::EndAcknowledged, by("outbox")),
            );
            for step in [accepted, ending, ended] {
                step.unwrap();
            }
        }
    };
    join_all((0..60).map(circulate)).await;
    let mut connection = database.connect().await;
    assert_eq!(count(&mut connection, "loans WHERE state = 'ended'").await, 360);
    assert_eq!(count(&mut connection, "history").await, 4 * 360);
    let heads = join_all(nodes.into_iter().map(Node::close)).await;
    assert_eq!(count(&mut connection, "chains WHERE seal IS NULL").await, 0);
    for heads in heads {
        let mut settings = settings(&database.url());
        settings.heads = heads.path().to_owned();
        let store = StoreSettings::Postgres(Box::new(settings));
        let verified =
            crate::ledger::verify(&store, &audit_key(), &crate::ledger::RowsRead::default())
                .await
                .unwrap();
        assert_eq!(verified.findings, Vec::<String>::new());
    }
}
