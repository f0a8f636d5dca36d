//! Tests of the verification on a real server: each damage is named, and work of running gates
//! between two pages is none.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use tempfile::TempDir;
use uuid::Uuid;

use super::chain_walk::ChainWalk;
use super::test_support::support::{Database, PgBouncer, Postgres, TcpProxy};
use super::test_support::{Node, settings};
use super::verify::{verify, verify_ledger};
use super::whole_ledger::WholeLedger;
use crate::clock::{self, Clock};
use crate::ledger::audit::{Chains, Verified};
use crate::ledger::test_support::{KEY, accepted, audit_key, by};
use crate::ledger::{Brake, Ledger, Prunable, RowsRead, Settings, StoreSettings};
use crate::loan::{EndReason, Event, LoanId};
use crate::telemetry::Metrics;

/// A ledger with the chains of two processes, in one library. Each has six steps of two loans, of
/// which the first one has ended.
struct Scene {
    database: Database,
    /// The head file of the first chain.
    heads: TempDir,
    one: Uuid,
    other: Uuid,
}

async fn end(ledger: &Ledger, id: LoanId) {
    ledger.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")).await.unwrap();
    ledger.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
}

/// Writes a chain with two loans and closes the ledger.
async fn write_chain(database: &Database, borrower: u8) -> TempDir {
    let node = Node::open(database).await;
    let ended = accepted(&node.ledger, borrower).await;
    accepted(&node.ledger, borrower + 1).await;
    end(&node.ledger, ended).await;
    node.close().await
}

impl Scene {
    async fn new(server: &Postgres) -> Scene {
        let database = server.database().await;
        let heads = write_chain(&database, 1).await;
        let mut connection = database.connect().await;
        let one = "SELECT chain FROM chains";
        let one: Uuid = sqlx::query_scalar(one).fetch_one(&mut connection).await.unwrap();
        write_chain(&database, 11).await;
        let other = sqlx::query_scalar("SELECT chain FROM chains WHERE chain <> $1").bind(one);
        let other = other.fetch_one(&mut connection).await.unwrap();
        Scene { database, heads, one, other }
    }

    /// Executes statements in which `$one` and `$other` are the names of the chains.
    async fn execute(&self, sql: &str) {
        let name = |chain: Uuid| format!("'{chain}'");
        let sql = sql.replace("$one", &name(self.one)).replace("$other", &name(self.other));
        let mut connection = self.database.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    async fn whole_ledger(&self, page: i64) -> WholeLedger {
        let mut ledger = WholeLedger::open(&settings(&self.database.url())).await.unwrap();
        ledger.page = page;
        ledger
    }

    /// Verifies the ledger in pages of this number of rows.
    async fn verify(&self, page: i64) -> Verified {
        let ledger = self.whole_ledger(page).await;
        let verified = verify_ledger(&ledger, self.heads.path(), &audit_key()).await.unwrap();
        ledger.pool.close().await;
        verified
    }
}

const ROW: &str = "is not as its last step left it";
const SEAL: &str = "its seal does not fit its row";
const NO_SEAL: &str = "its process has ended, but no seal names its last step";

/// Each damage, and a part of each finding.
const DAMAGES: &[(&str, &[&str])] = &[
    ("UPDATE history SET detail = 'x' WHERE chain = $one AND number = 3", &["step 3 (loan"]),
    ("UPDATE history SET version = 1 WHERE chain = $one AND number = 3", &["step 3 (loan"]),
    ("DELETE FROM history WHERE chain = $one AND number = 2", &["steps 2 to 2 are missing"]),
    ("DELETE FROM history WHERE chain = $one AND number < 3", &["steps 1 to 2 are missing"]),
    (
        "UPDATE history SET number = 0 WHERE chain = $one AND number = 1",
        &["steps 1 to -1 are missing", "steps 1 to 1 are missing"],
    ),
    (
        "UPDATE history SET number = -number WHERE chain = $one AND number IN (2, 3); \
         UPDATE history SET number = number + 5 WHERE chain = $one AND number < 0",
        &["step 2 (loan", "step 3 (loan", "step 4 (loan"],
    ),
    (
        "UPDATE history SET chain = gen_random_uuid(), number = 77 \
         WHERE chain = $one AND number = 3; \
         UPDATE history SET chain = $one WHERE chain = $other AND number = 3; \
         UPDATE history SET chain = $other, number = 3 WHERE number = 77",
        &["step 3 (loan", "step 4 (loan", "step 3 (loan", "step 4 (loan"],
    ),
    (
        "DELETE FROM history WHERE chain = $one AND number = 6",
        &["the last steps are missing: the chain ends at 5, its row names step 6", ROW],
    ),
    (
        "DELETE FROM history WHERE chain = $one AND number = 6; \
         UPDATE chains SET number = 5, \
         mac = (SELECT mac FROM history WHERE chain = $one AND number = 5) WHERE chain = $one",
        &["the database does not have step 6", SEAL, ROW],
    ),
    (
        "UPDATE chains SET number = 5, \
         mac = (SELECT mac FROM history WHERE chain = $other AND number = 5) WHERE chain = $other",
        &["it ends at 6, its row names step 5", SEAL],
    ),
    (
        "UPDATE chains SET mac = decode(repeat('00', 32), 'hex') WHERE chain = $other",
        &["step 6 differs from the one in its row", SEAL],
    ),
    ("DELETE FROM chains WHERE chain = $other", &["its row is missing"]),
    (
        "DELETE FROM chains WHERE chain = $one; DELETE FROM history WHERE chain = $one; \
         DELETE FROM loans WHERE lending_id IS NOT NULL AND NOT EXISTS \
         (SELECT 1 FROM history WHERE loan = id)",
        &["the database does not have step 6"],
    ),
    // A chain without a head file.
    (
        "DELETE FROM history WHERE chain = $other AND number = 6; \
         UPDATE chains SET number = 5, \
         mac = (SELECT mac FROM history WHERE chain = $other AND number = 5) WHERE chain = $other",
        &[SEAL, ROW],
    ),
    (
        "DELETE FROM history WHERE chain = $other AND number = 6; \
         UPDATE chains SET number = 5, closed = NULL, seal = NULL, \
         mac = (SELECT mac FROM history WHERE chain = $other AND number = 5) WHERE chain = $other",
        &[NO_SEAL, ROW],
    ),
    ("UPDATE chains SET seal = NULL WHERE chain = $other", &[NO_SEAL]),
    ("UPDATE chains SET closed = closed + 1 WHERE chain = $other", &[SEAL]),
    // A chain verifies under its own name only.
    (
        "UPDATE chains SET chain = '00000000-0000-0000-0000-000000000000' WHERE chain = $other; \
         UPDATE history SET chain = '00000000-0000-0000-0000-000000000000' WHERE chain = $other",
        &["step 1 (loan", SEAL],
    ),
    // A copy of a step in a chain without a row lets an older row of the loan match it.
    (
        "INSERT INTO history SELECT library, '00000000-0000-0000-0000-000000000000', number, loan, \
         at, from_state, to_state, cause, detail, version, salt, loan_mac, mac FROM history \
         WHERE chain = $one AND number = 2",
        &["steps 1 to 1 are missing", "its row is missing"],
    ),
    // The lowest number precedes every page.
    (
        "INSERT INTO history SELECT library, chain, -9223372036854775808, loan, \
         at, from_state, to_state, cause, detail, version, salt, loan_mac, mac FROM history \
         WHERE chain = $one AND number = 2",
        &["step -9223372036854775808 is not part of it"],
    ),
    (
        "INSERT INTO history SELECT '', chain, number, loan, at, from_state, to_state, cause, \
         detail, version, salt, loan_mac, mac FROM history WHERE chain = $one AND number = 2",
        &["the name of the library  is damaged"],
    ),
    (
        "INSERT INTO history SELECT chr(27) || '[2J', chain, number, loan, at, from_state, \
         to_state, cause, detail, version, salt, loan_mac, mac FROM history \
         WHERE chain = $one AND number = 2",
        &["the name of the library \\u{1b}[2J is damaged"],
    ),
    (
        "DELETE FROM history",
        &[
            "the last steps are missing: the chain ends at 0",
            "the last steps are missing: the chain ends at 0",
            ROW,
            ROW,
            ROW,
            ROW,
        ],
    ),
    (
        "DELETE FROM loans WHERE id = (SELECT loan FROM history WHERE chain = $one AND number = 3)",
        &["is missing; step 3 began it"],
    ),
    ("UPDATE loans SET due = due + 1 WHERE state = 'ended'", &[ROW, ROW]),
    ("UPDATE loans SET borrower = uuid_send(id)", &[ROW, ROW, ROW, ROW]),
    (
        "UPDATE loans SET state = 'accepted', ended = NULL, end_reason = NULL, changed = accepted \
         WHERE state = 'ended'",
        &[ROW, ROW],
    ),
    ("UPDATE loans SET isbn = 7 WHERE state = 'ended'", &["is damaged", "is damaged"]),
    ("UPDATE loans SET progress = 1, owner = gen_random_uuid(), opened = NULL", &[]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_each_damage() {
    let Some(server) = Postgres::shared().await else { return };
    let scene = Scene::new(server).await;
    let verified = scene.verify(2000).await;
    assert_eq!((verified.findings, verified.steps), (Vec::new(), 12));
    let extent = Chains { chains: 2, libraries: 1, head_files: 1 };
    assert_eq!(verified.chains, Some(extent));
    // Restored after each damage.
    const TABLES: [&str; 3] = ["chains", "history", "loans"];
    for table in TABLES {
        scene.execute(&format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}")).await;
    }
    for (damage, expected) in DAMAGES {
        scene.execute(damage).await;
        for page in [1, 2, 3, 2000] {
            let findings = scene.verify(page).await.findings;
            let mut left = findings.clone();
            for part in *expected {
                let found = left.iter().position(|finding| finding.contains(part));
                left.remove(found.unwrap_or_else(|| panic!("{damage}: {part}: {findings:?}")));
            }
            assert!(left.is_empty(), "{damage}, page of {page}: {left:?}");
        }
        for table in TABLES {
            let restore =
                format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}");
            scene.execute(&restore).await;
        }
    }
    assert_eq!(scene.verify(2).await.findings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_that_an_earlier_process_left_is_found() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (one, other) = (Node::open(&database).await, Node::open(&database).await);
    let id = accepted(&one.ledger, 1).await;
    let mut connection = database.connect().await;
    let save = sqlx::raw_sql("CREATE TABLE saved AS SELECT * FROM loans");
    save.execute(&mut connection).await.unwrap();
    end(&other.ledger, id).await;
    one.close().await;
    let heads = other.close().await;
    let mut settings = settings(&database.url());
    settings.heads = heads.path().to_owned();
    let findings =
        async || verify(&settings, &audit_key(), &RowsRead::default()).await.unwrap().findings;
    assert_eq!(findings().await, Vec::<String>::new());
    let restore = "DELETE FROM loans; INSERT INTO loans SELECT * FROM saved";
    sqlx::raw_sql(restore).execute(&mut connection).await.unwrap();
    let found = findings().await;
    assert!(found.len() == 1 && found[0].contains(ROW), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_with_a_slow_clock_leaves_no_finding() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    let id = accepted(&node.ledger, 1).await;
    let heads = tempfile::tempdir().unwrap();
    let mut postgres = settings(&database.url());
    postgres.heads = heads.path().to_owned();
    let store = StoreSettings::Postgres(Box::new(postgres));
    let settings = Settings { store, brake: Brake::default() };
    let slow = Clock::movable(clock::before(Clock::system().now(), Duration::from_secs(600)));
    let metrics = Metrics::new().unwrap();
    let other = Ledger::open(&settings, &KEY, audit_key(), slow, metrics).await.unwrap();
    end(&other, id).await;
    other.close().await;
    node.close().await;
    let mut connection = database.connect().await;
    sqlx::raw_sql("ANALYZE").execute(&mut connection).await.unwrap();
    let [of_verify, of_check] = [(); 2].map(|()| RowsRead::default());
    let verified = crate::ledger::verify(&settings.store, &audit_key(), &of_verify).await.unwrap();
    assert_eq!(verified.findings, Vec::<String>::new());
    assert_eq!(of_verify.read(), of_verify.total());
    let checked = crate::ledger::check(&settings.store, &audit_key(), &of_check).await.unwrap();
    assert_eq!(of_check.read(), of_check.total());
    assert!(of_verify.read() >= 3 && of_check.read() >= 3);
    assert_eq!(checked, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_pruned_between_two_pages_are_no_finding() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    // The anchor begins after the steps of this loan, within the first page.
    accepted(&node.ledger, 8).await;
    for borrower in 0..3 {
        let id = accepted(&node.ledger, borrower).await;
        end(&node.ledger, id).await;
    }
    while node.ledger.forget(Timestamp::MAX, 500).await.unwrap() > 0 {}
    accepted(&node.ledger, 9).await;
    let key = audit_key();
    let mut connection = database.connect().await;
    let chain = "SELECT chain FROM chains";
    let chain = sqlx::query_scalar(chain).fetch_one(&mut connection).await.unwrap();
    let library = "NO-0301000".parse().unwrap();
    let mut ledger = WholeLedger::open(&settings(&database.url())).await.unwrap();
    ledger.page = 3;
    let mut walk = ChainWalk::new(&ledger, library, chain, &key);
    assert!(walk.read_page().await.unwrap());
    let store = StoreSettings::Postgres(Box::new(settings(&database.url())));
    let ended = Prunable::Ended { before: Timestamp::MAX };
    assert_eq!(
        crate::ledger::prune(&store, &key, ended, &RowsRead::default()).await.unwrap().loans,
        3
    );
    accepted(&node.ledger, 10).await;
    while walk.read_page().await.unwrap() {}
    let verified = walk.end();
    assert_eq!((verified.findings, verified.steps), (Vec::new(), 3 + 4));
    // The same anchor with another seal.
    let mut walk = ChainWalk::new(&ledger, library, chain, &key);
    walk.position = 3;
    let forge = "UPDATE anchors SET seal = mac";
    sqlx::raw_sql(forge).execute(&mut connection).await.unwrap();
    while walk.read_page().await.unwrap() {}
    let findings = walk.end().findings.join("\n");
    assert!(findings.contains("was changed or forged"), "{findings}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_works_behind_pgbouncer() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 2).await else { return };
    let scene = Scene::new(server).await;
    let mut settings = settings(&scene.database.url_at(bouncer.port()));
    settings.heads = scene.heads.path().to_owned();
    let store = StoreSettings::Postgres(Box::new(settings));
    let verified = crate::ledger::verify(&store, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!((verified.findings, verified.steps), (Vec::new(), 12));
    let checked = crate::ledger::check(&store, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!(checked, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_is_read_again_after_a_lost_connection() {
    let Some(server) = Postgres::shared().await else { return };
    let scene = Scene::new(server).await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let url = scene.database.url_at(proxy.port());
    let ledger = WholeLedger::open(&settings(&url)).await.unwrap();
    let attempts = std::cell::Cell::new(0);
    let page = ledger.snapshot(async |connection| {
        attempts.set(attempts.get() + 1);
        if attempts.get() == 1 {
            proxy.abort();
        }
        sqlx::query_scalar("SELECT count(*) FROM history").fetch_one(connection).await
    });
    let steps: i64 = page.await.unwrap();
    assert_eq!((steps, attempts.get()), (12, 2));
}
