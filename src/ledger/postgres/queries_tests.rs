//! Tests of queries and of the change feed on a real server. The rows are written by SQL, so that a
//! test chooses owners, buckets and times of the database.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use uuid::Uuid;

use super::barrier::Polls;
use super::closed::{ClosedFeed, OVERLAP_MS};
use super::connect::{Connector, Purpose};
use super::pool::Pool;
use super::queries::{OwnedBuckets, Queries, QueryPools};
use super::test_support::settings;
use super::test_support::support::{Database, Postgres};
use crate::clock;
use crate::ledger::damaged_rows::DamagedRows;
use crate::ledger::membership::Membership;
use crate::ledger::queries::ToForget;
use crate::ledger::states::isbn_column;
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Borrower, EndReason, Event, LibraryId, Loan, LoanId, LoanKey, LoanState, Terms};
use crate::telemetry::Metrics;

pub(super) const SCHEMA: &str = concat!(
    include_str!("migrations/0001_ledger.sql"),
    "\n",
    include_str!("migrations/0002_reports.sql"),
    "\n",
    include_str!("migrations/0003_examinations.sql"),
    "\n",
    include_str!("migrations/0004_bulletins.sql"),
    "\n",
    include_str!("migrations/0005_report_facts.sql"),
    "\n",
    include_str!("migrations/0006_requests.sql")
);

/// This process, under a name that a test chooses.
#[derive(Debug)]
struct Process(Mutex<Arc<str>>);

impl Membership for Process {
    fn name(&self) -> Arc<str> {
        self.0.lock().unwrap().clone()
    }

    fn is_dead(&self, _name: &str) -> bool {
        false
    }

    fn count_others(&self) -> usize {
        0
    }
}

/// A database with the schema, and queries for it that own the buckets below a limit.
struct Scene {
    database: Database,
    connection: PgConnection,
    queries: Queries,
    owned_below: Arc<AtomicI16>,
}

impl Scene {
    /// Returns none if there is no PostgreSQL, and the test is to be skipped.
    async fn new() -> Option<Scene> {
        Some(Scene::on(Postgres::shared().await?).await)
    }

    async fn on(server: &Postgres) -> Scene {
        let database = server.database().await;
        let mut connection = database.connect().await;
        connection.execute(SCHEMA).await.unwrap();
        let connector = Connector::new(&settings(&database.url()));
        let pool = |purpose, size| Pool::new(connector.clone(), purpose, size);
        let pools = QueryPools {
            reads: pool(Purpose::Reads, 2),
            support: pool(Purpose::Support, 1),
            feed: pool(Purpose::Feed, 1),
        };
        let owned_below = Arc::new(AtomicI16::new(1024));
        let limit = owned_below.clone();
        let owned = OwnedBuckets::new(move || (0..limit.load(Ordering::SeqCst)).collect());
        let damaged = DamagedRows::new(Metrics::new().unwrap());
        let (queries, _) = Queries::new(pools, owned, damaged);
        Scene { database, connection, queries, owned_below }
    }

    async fn execute(&mut self, sql: &str) {
        self.connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    async fn insert(&mut self, loan: &Loan, owner: Uuid, bucket: i16) {
        insert(&mut self.connection, loan, owner, bucket).await;
    }

    /// Inserts a loan that ended now, by the clock of the database.
    async fn insert_ended(&mut self, borrower: u8, bucket: i16) -> Loan {
        let loan = ending(borrower);
        self.insert(&loan, Uuid::nil(), bucket).await;
        close(&mut self.connection, &loan, 0).await;
        loan
    }

    /// Joins as a member. Returns its name.
    async fn join(&mut self, process: u128) -> Uuid {
        let member = Uuid::new_v4();
        let join = "INSERT INTO members (member, process, joined, lease, freshness) \
             VALUES ($1, $2, 0, 30000, 60000)";
        let query = sqlx::query(join).bind(member).bind(Uuid::from_u128(process));
        query.execute(&mut self.connection).await.unwrap();
        member
    }

    fn feed(&self, member: Uuid) -> ClosedFeed {
        let process = Process(Mutex::new(member.to_string().into()));
        ClosedFeed::new(self.queries.clone(), Arc::new(process))
    }
}

/// Inserts a loan in any state.
async fn insert(connection: &mut PgConnection, loan: &Loan, owner: Uuid, bucket: i16) {
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
    let sql = "INSERT INTO loans (library, id, bucket, borrower, isbn, reference, lending_id, \
         state, begun, accepted, due, ended, end_reason, changed, owner) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
    sqlx::query(sql)
        .bind(loan.key.library.as_str())
        .bind(loan.id.uuid())
        .bind(bucket)
        .bind(loan.key.borrower.as_bytes().as_slice())
        .bind(isbn_column(loan.key.isbn))
        .bind(loan.reference.as_str())
        .bind(loan.lending_id.as_deref())
        .bind(loan.state.name())
        .bind(loan.begun.as_millisecond())
        .bind(millis(loan.accepted))
        .bind(millis(loan.terms.as_ref().map(|terms| terms.due)))
        .bind(millis(loan.ended))
        .bind(loan.end_reason.map(EndReason::name))
        .bind(loan.changed.as_millisecond())
        .bind(owner)
        .execute(connection)
        .await
        .unwrap();
}

/// Sets when a loan stopped opening files: this many milliseconds ago, by the database.
async fn close(connection: &mut PgConnection, loan: &Loan, ago: i64) {
    let sql = "UPDATE loans SET closed = (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
         - $1 WHERE library = $2 AND id = $3";
    let query = sqlx::query(sql).bind(ago).bind(loan.key.library.as_str());
    query.bind(loan.id.uuid()).execute(connection).await.unwrap();
}

fn library(number: u8) -> LibraryId {
    format!("NO-{number:07}").parse().unwrap()
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn loan_of(library: LibraryId, borrower: u8, begun: i64) -> Loan {
    let borrower = Borrower::from_bytes([borrower; 16]);
    let key = LoanKey { library, borrower, isbn: "9780306406157".parse().unwrap() };
    Loan::intend(key, second(begun))
}

fn loan(borrower: u8) -> Loan {
    loan_of(library(1), borrower, 0)
}

fn accepted(loan: &Loan, due: i64) -> Loan {
    let terms = Terms { due: second(due), licence_id: None, licence_type: None };
    let lending_id = format!("L{}", loan.id.uuid());
    loan.apply(&Event::Accepted { lending_id, terms }, second(1)).unwrap()
}

fn ending(borrower: u8) -> Loan {
    let accepted = accepted(&loan(borrower), 100);
    accepted.apply(&Event::Ending { reason: EndReason::Returned }, second(2)).unwrap()
}

fn ids(loans: &[Loan]) -> Vec<LoanId> {
    loans.iter().map(|loan| loan.id).collect()
}

#[tokio::test]
async fn single_loans_are_found_by_each_name() {
    let Some(mut scene) = Scene::new().await else { return };
    let one = accepted(&loan(1), 50);
    let other = accepted(&loan_of(library(2), 1, 5), 60);
    let owner = Uuid::new_v4();
    for loan in [&one, &other] {
        scene.insert(loan, owner, 7).await;
    }
    let queries = &scene.queries;
    assert_eq!(queries.loan(one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(queries.find(other.id.uuid()).await.unwrap().as_ref(), Some(&other));
    assert_eq!(queries.newest(&one.key).await.unwrap().as_ref(), Some(&one));
    assert_eq!(queries.last_end(&one.key).await.unwrap(), None);
    let elsewhere = LoanId::new(library(2), one.id.uuid());
    assert_eq!(queries.loan(elsewhere).await.unwrap(), None, "a library sees only its loans");
    let by_reference = async |library| queries.by_reference(library, &one.reference).await.unwrap();
    assert_eq!(by_reference(Some(library(1))).await.as_ref(), Some(&one));
    assert_eq!(by_reference(Some(library(2))).await, None);
    assert_eq!(by_reference(None).await.as_ref(), Some(&one));
    let lending_id = one.lending_id.clone().unwrap();
    let found = queries.by_lending_id(&lending_id, None).await.unwrap();
    assert_eq!(found.as_ref(), Some(&one));
    assert_eq!(queries.by_lending_id(&lending_id, Some(one.id)).await.unwrap(), None);
    for wanted in [vec![one.id], vec![one.id, other.id, elsewhere], vec![]] {
        let found: HashSet<_> = ids(&queries.loans(&wanted).await.unwrap()).into_iter().collect();
        assert_eq!(found, wanted.into_iter().filter(|id| *id != elsewhere).collect());
    }
    assert_eq!(queries.owner(one.id).await.unwrap(), Some(owner.to_string()));
    assert!(!queries.is_opened(one.id).await.unwrap());
    assert_eq!(queries.libraries().await.unwrap(), [library(1), library(2)]);
    assert_eq!(queries.oldest_live(library(2)).await.unwrap(), Some(second(5)));
    assert_eq!(queries.oldest_live(library(3)).await.unwrap(), None);
    assert_eq!(queries.count_accepted().await.unwrap(), 2);
    queries.check().await.unwrap();
    scene.execute("UPDATE loans SET opened = 1").await;
    assert!(scene.queries.is_opened(one.id).await.unwrap());
}

#[tokio::test]
async fn due_loans_come_from_owned_buckets_and_refill() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut expected = Vec::new();
    for borrower in 1..=20 {
        let loan = accepted(&loan(borrower), 100 + i64::from(borrower) / 4);
        let bucket = if borrower % 2 == 0 { 1 } else { 600 };
        scene.insert(&loan, Uuid::nil(), bucket).await;
        expected.push((bucket, loan));
    }
    scene.owned_below.store(512, Ordering::SeqCst);
    let mut owned: Vec<Loan> =
        expected.into_iter().filter(|(bucket, _)| *bucket == 1).map(|(_, loan)| loan).collect();
    owned.sort_by_key(|loan| (loan.terms.as_ref().unwrap().due, loan.id.uuid()));
    assert_eq!(scene.queries.due(second(200), 100).await.unwrap(), owned);
    assert_eq!(scene.queries.due(second(200), 3).await.unwrap(), owned[..3]);
    assert_eq!(scene.queries.count_due(second(200)).await.unwrap(), 10);
    assert_eq!(scene.queries.next_due(second(101)).await.unwrap(), Some(second(102)));
    assert_eq!(scene.queries.next_due(second(999)).await.unwrap(), None);
    // Damaged rows do not take the places of the others.
    let damaged = owned[0].id.uuid();
    scene.execute(&format!("UPDATE loans SET isbn = 5 WHERE id = '{damaged}'")).await;
    assert_eq!(scene.queries.due(second(200), 3).await.unwrap(), owned[1..4]);
    assert_eq!(scene.queries.damaged_rows(), 1);
    let all = Filter { limit: 19, ..Filter::default() };
    assert_eq!(scene.queries.page(&all).await.unwrap().len(), 19);
}

#[tokio::test]
async fn pages_of_a_listing_are_complete_with_each_filter() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut all = Vec::new();
    for number in 0..12u8 {
        let loan = loan_of(library(number % 2), number, i64::from(number / 3));
        let loan = if number % 3 == 0 { accepted(&loan, 9) } else { loan };
        scene.insert(&loan, Uuid::nil(), 0).await;
        all.push(loan);
    }
    all.sort_by_key(|loan| std::cmp::Reverse((loan.begun, loan.id.uuid())));
    type Case = (Filter, fn(&Loan) -> bool);
    let filters: [Case; 5] = [
        (Filter::default(), |_| true),
        (Filter { library: Some(library(1)), ..Filter::default() }, |loan| {
            loan.key.library == library(1)
        }),
        (Filter { state: Some(LoanState::Accepted), ..Filter::default() }, |loan| {
            loan.state == LoanState::Accepted
        }),
        (Filter { borrower: Some(Borrower::from_bytes([4; 16])), ..Filter::default() }, |loan| {
            loan.key.borrower == Borrower::from_bytes([4; 16])
        }),
        (Filter { since: Some(second(2)), ..Filter::default() }, |loan| loan.begun >= second(2)),
    ];
    for (filter, includes) in filters {
        let mut filter = Filter { limit: 2, ..filter };
        let mut listed = Vec::new();
        loop {
            let page = scene.queries.page(&filter).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some(last.id.uuid());
            listed.extend(ids(&page));
        }
        let expected: Vec<Loan> = all.iter().filter(|loan| includes(loan)).cloned().collect();
        assert_eq!(listed, ids(&expected), "{filter:?}");
    }
}

#[tokio::test]
async fn ends_are_read_again_within_the_overlap() {
    let Some(mut scene) = Scene::new().await else { return };
    let first = scene.insert_ended(1, 1).await;
    let foreign = scene.insert_ended(2, 900).await;
    let old = scene.insert_ended(3, 2).await;
    close(&mut scene.connection, &old, 2 * OVERLAP_MS).await;
    scene.owned_below.store(512, Ordering::SeqCst);
    let ends = scene.queries.ends_waiting().await.unwrap();
    assert!(ends.is_complete);
    assert_eq!(ends.loans, [old.id, first.id]);
    // A transaction that began earlier has a later commit.
    let late = scene.insert_ended(4, 3).await;
    close(&mut scene.connection, &late, 3000).await;
    let more = scene.queries.ends_after(&ends.next).await.unwrap();
    assert!(!more.is_complete);
    assert_eq!(more.loans, [late.id, first.id]);
    // Other owned buckets need all ends.
    scene.owned_below.store(1024, Ordering::SeqCst);
    let all = scene.queries.ends_after(&more.next).await.unwrap();
    assert!(all.is_complete && all.loans.contains(&foreign.id) && all.loans.len() == 4);
    assert_eq!(scene.queries.count_ends(second(1)).await.unwrap(), (4, 0));
    assert_eq!(scene.queries.count_ends(second(3)).await.unwrap(), (4, 4));
    // Each process counts its own ends, so that operators can add them up.
    scene.owned_below.store(512, Ordering::SeqCst);
    assert_eq!(scene.queries.count_ends(second(3)).await.unwrap(), (3, 3));
}

#[tokio::test]
async fn orphans_are_undecided_loans_without_a_live_member() {
    let Some(mut scene) = Scene::new().await else { return };
    let (live, fenced) = (scene.join(1).await, scene.join(2).await);
    scene.execute(&format!("UPDATE members SET fenced = 5 WHERE member = '{fenced}'")).await;
    let loans: Vec<Loan> = (1..=5).map(loan).collect();
    let absent = Uuid::new_v4();
    for (loan, owner) in loans.iter().zip([live, fenced, absent, absent]) {
        let bucket = if loan.id == loans[3].id { 900 } else { 1 };
        scene.insert(loan, owner, bucket).await;
    }
    scene.insert(&accepted(&loans[4], 9), fenced, 1).await;
    scene.owned_below.store(512, Ordering::SeqCst);
    let found = scene.queries.orphans(None).await.unwrap();
    assert!(found.is_sorted_by_key(|loan| loan.id.uuid()));
    let after_first = scene.queries.orphans(Some(found[0].id)).await.unwrap();
    assert_eq!(ids(&after_first), ids(&found[1..]));
    assert!(scene.queries.orphans(Some(found[1].id)).await.unwrap().is_empty());
    let orphans: HashSet<LoanId> = ids(&found).into_iter().collect();
    assert_eq!(orphans, HashSet::from([loans[1].id, loans[2].id]));
    let ours = scene.queries.undecided(&live.to_string()).await.unwrap();
    assert_eq!(ours, [loans[0].id]);
    assert_eq!(scene.queries.undecided("no UUID").await.unwrap(), []);
}

#[tokio::test]
async fn borrowers_are_forgotten_library_by_library() {
    let Some(mut scene) = Scene::new().await else { return };
    assert_eq!(scene.queries.to_forget(second(100)).await.unwrap(), ToForget::Nothing);
    let ended = ending(1).apply(&Event::EndAcknowledged, second(3)).unwrap();
    scene.insert(&ended, Uuid::nil(), 1).await;
    let next = async |scene: &Scene, before| scene.queries.to_forget(before).await.unwrap();
    assert_eq!(next(&scene, second(100)).await, ToForget::Library(library(1)));
    assert_eq!(next(&scene, second(2)).await, ToForget::Nothing, "it ended at that time");
    scene.execute("UPDATE loans SET library = 'no library!'").await;
    assert_eq!(next(&scene, second(100)).await, ToForget::Nothing);
    assert_eq!(scene.queries.damaged_rows(), 1);
}

/// Reads to the end of the feed.
async fn next(feed: &mut ClosedFeed) -> Vec<LoanId> {
    let mut all = Vec::new();
    loop {
        let read = feed.next().await.unwrap();
        all.extend(read.loans.iter().map(|closed| closed.loan));
        if read.completed.is_some() {
            return all;
        }
    }
}

#[tokio::test]
async fn read_that_finds_ends_is_complete() {
    let Some(mut scene) = Scene::new().await else { return };
    let member = scene.join(1).await;
    let mut feed = scene.feed(member);
    let before = clock::since_boot();
    let end = scene.insert_ended(1, 1).await;
    let read = feed.next().await.unwrap();
    assert_eq!((read.loans.len(), read.loans[0].loan), (1, end.id));
    assert!(read.completed.unwrap() >= before);
}

#[tokio::test]
async fn feed_returns_each_end_once_also_a_late_commit() {
    let Some(mut scene) = Scene::new().await else { return };
    let member = scene.join(1).await;
    let mut feed = scene.feed(member);
    let early = scene.insert_ended(9, 1).await;
    close(&mut scene.connection, &early, 2 * OVERLAP_MS).await;
    assert_eq!(next(&mut feed).await, [], "earlier ends are not in the feed");
    let one = scene.insert_ended(1, 1).await;
    // This transaction takes its time first and commits last.
    let mut other = scene.database.connect().await;
    let late = ending(2);
    other.execute("BEGIN").await.unwrap();
    insert(&mut other, &late, Uuid::nil(), 1).await;
    close(&mut other, &late, 0).await;
    let two = scene.insert_ended(3, 1).await;
    assert_eq!(next(&mut feed).await, [one.id, two.id]);
    assert_eq!(next(&mut feed).await, []);
    other.execute("COMMIT").await.unwrap();
    assert_eq!(next(&mut feed).await, [late.id]);
    assert_eq!(next(&mut feed).await, []);
}

/// Lets commits wait for a standby that does not exist, or not any more.
async fn wait_for_standby(admin: &mut PgConnection, database: &Database, waits: bool) {
    let name = if waits { "absent" } else { "" };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
    admin.execute(AssertSqlSafe(set)).await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    // The server reads its settings some time later.
    loop {
        let mut probe = database.connect_as_admin().await;
        let commit = probe.execute("SELECT pg_logical_emit_message(true, 'probe', 'probe')");
        let stalls = tokio::time::timeout(Duration::from_millis(300), commit).await.is_err();
        if stalls == waits {
            return;
        }
    }
}

#[tokio::test]
async fn feed_returns_an_end_whose_commit_waited_for_a_standby() {
    const OVERLAP: i64 = 500;
    let Some(server) = Postgres::start().await else { return };
    let mut scene = Scene::on(&server).await;
    let mut admin = scene.database.connect_as_admin().await;
    let member = scene.join(1).await;
    let mut feed = scene.feed(member);
    feed.set_overlap(OVERLAP);
    let mut other = scene.database.connect().await;
    let stuck = ending(1);
    other.execute("BEGIN").await.unwrap();
    insert(&mut other, &stuck, Uuid::nil(), 1).await;
    close(&mut other, &stuck, 0).await;
    wait_for_standby(&mut admin, &scene.database, true).await;
    let commit = tokio::spawn(async move { other.execute("COMMIT").await.map(drop) });
    for _ in 0..3 {
        assert_eq!(next(&mut feed).await, []);
        feed.acknowledge().await.unwrap_err();
    }
    assert!(!commit.is_finished());
    assert_eq!(next(&mut feed).await, []);
    // The wait ends between a read and its acknowledgement.
    wait_for_standby(&mut admin, &scene.database, false).await;
    commit.await.unwrap().unwrap();
    feed.acknowledge().await.unwrap();
    assert_eq!(next(&mut feed).await, [stuck.id]);
    feed.acknowledge().await.unwrap();
    // Later reads start later.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(next(&mut feed).await, []);
        feed.acknowledge().await.unwrap();
    }
    let late = scene.insert_ended(2, 1).await;
    close(&mut scene.connection, &late, 60_000).await;
    assert_eq!(next(&mut feed).await, [], "before the overlap");
}

#[tokio::test]
async fn feed_reads_back_further_after_a_failure() {
    let Some(mut scene) = Scene::new().await else { return };
    let member = scene.join(1).await;
    let mut feed = scene.feed(member);
    assert!(next(&mut feed).await.is_empty());
    let missed = scene.insert_ended(1, 1).await;
    close(&mut scene.connection, &missed, 10 * OVERLAP_MS).await;
    assert!(next(&mut feed).await.is_empty(), "older than any transaction");
    scene.execute("ALTER TABLE loans RENAME TO hidden").await;
    feed.next().await.unwrap_err();
    scene.execute("ALTER TABLE hidden RENAME TO loans").await;
    let found = feed.next().await.unwrap().loans;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].loan, found[0].key), (missed.id, missed.key));
    assert_eq!(Some(found[0].at), missed.ended);
    assert!(next(&mut feed).await.is_empty());
}

#[tokio::test]
async fn barrier_waits_for_three_reads_of_each_member() {
    let Some(mut scene) = Scene::new().await else { return };
    let members = [scene.join(1).await, scene.join(2).await];
    let mut feeds = members.map(|member| scene.feed(member));
    let barrier = scene.queries.barrier().await.unwrap();
    let mut passed = Vec::new();
    let reads = [(0, true), (0, true), (0, true), (1, false), (1, true), (1, true), (1, true)];
    for (reader, acknowledges) in reads {
        assert!(next(&mut feeds[reader]).await.is_empty());
        if acknowledges {
            feeds[reader].acknowledge().await.unwrap();
        }
        passed.push(barrier.is_past());
    }
    assert_eq!(passed, [false; 7]);
    // The next read observes the acknowledgement of the last.
    assert!(next(&mut feeds[0]).await.is_empty());
    assert!(barrier.is_past());
}

#[tokio::test]
async fn members_that_died_long_ago_are_not_read() {
    let Some(mut scene) = Scene::new().await else { return };
    let [live, recent, old] = [scene.join(1).await, scene.join(2).await, scene.join(3).await];
    for (member, ago) in [(recent, 590_000), (old, 610_000)] {
        let fence = "UPDATE members SET fenced = (extract(epoch FROM now()) * 1000)::bigint";
        scene.execute(&format!("{fence} - {ago} WHERE member = '{member}'")).await;
    }
    let polls = Polls::read(&mut scene.connection).await.unwrap();
    let names: HashSet<Uuid> = polls.names().collect();
    assert_eq!(names, HashSet::from([live, recent]));
    scene.execute("DELETE FROM members").await;
    let polls = Polls::read(&mut scene.connection).await.unwrap();
    assert!(polls.now > 0 && polls.names().count() == 0);
}

#[tokio::test]
async fn fenced_member_cannot_acknowledge() {
    let Some(mut scene) = Scene::new().await else { return };
    let member = scene.join(1).await;
    let mut feed = scene.feed(member);
    feed.acknowledge().await.unwrap();
    scene.execute("UPDATE members SET fenced = 1").await;
    let error = feed.acknowledge().await.unwrap_err();
    assert!(matches!(error, LedgerError::NoMember), "{error}");
}
