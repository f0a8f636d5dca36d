//! Tests of head records on a real server: who removes the end of a chain in the database is found,
//! also without head files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use super::connect::{Connector, Purpose};
use super::head_records::HeadRecords;
use super::own_chains::OwnChains;
use super::pool::Pool;
use super::settings::PostgresSettings;
use super::test_support::support::{Database, Postgres};
use super::test_support::{Node, settings};
use super::verify::verify_ledger;
use super::whole_ledger::WholeLedger;
use crate::ledger::audit::Head;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::ledger::audit::head_record::RecordedHead;
use crate::ledger::test_support::{KEY, accepted, audit_key, end, forget};
use crate::ledger::{Brake, Delivered, Keys, Prunable, RowsRead, StoreSettings};
use crate::loan::{LibraryId, Ranges, Tally};

/// The writer of the head records of a node, and the heads that the node has committed.
pub(super) struct Recorder {
    records: HeadRecords,
    pub(super) heads: Arc<ChainHeads>,
    _directory: Option<TempDir>,
}

impl Recorder {
    /// Creates the writer for the chain with this name, on a machine without head files.
    pub(super) async fn new(
        database: &Database,
        connection: &mut PgConnection,
        chain: Uuid,
    ) -> Recorder {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::with_files(database, connection, chain, directory.path()).await;
        Recorder { _directory: Some(directory), ..recorder }
    }

    /// The same on a machine with the head files in this directory.
    pub(super) async fn with_files(
        database: &Database,
        connection: &mut PgConnection,
        chain: Uuid,
        directory: &Path,
    ) -> Recorder {
        let ledger = ledger_id(connection).await;
        let heads = ChainHeads::start(directory, ledger, chain, 0).unwrap();
        let head = "SELECT number, mac FROM chains WHERE chain = $1 AND library = $2";
        let head = sqlx::query_as(head).bind(chain).bind(library().to_string());
        if let Some((number, mac)) = head.fetch_optional(connection).await.unwrap() {
            heads.record(library(), Head { number, mac });
        }
        let pool = Pool::new(Connector::new(&settings(&database.url())), Purpose::Support, 1);
        let own = OwnChains { chain, ledger, directory: directory.to_owned() };
        let records = HeadRecords::new(Arc::new(pool), own, audit_key());
        Recorder { records, heads, _directory: None }
    }

    pub(super) async fn round(&mut self) {
        self.records.round(&self.heads).await.unwrap();
    }
}

pub(super) fn library() -> LibraryId {
    "NO-0301000".parse().unwrap()
}

pub(super) async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

pub(super) async fn ledger_id(connection: &mut PgConnection) -> Uuid {
    let id = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'ledger'");
    let id: Vec<u8> = id.fetch_one(connection).await.unwrap();
    Uuid::from_slice(&id).unwrap()
}

/// Returns the name of the newest chain.
pub(super) async fn newest_chain(connection: &mut PgConnection) -> Uuid {
    let sql = "SELECT chain FROM chains ORDER BY opened DESC LIMIT 1";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

pub(super) async fn count_of_records(connection: &mut PgConnection) -> i64 {
    let sql = "SELECT count(*) FROM history WHERE cause = 'heads'";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// Verifies a ledger without head files, in pages of this number of rows.
pub(super) async fn findings(database: &Database, page: i64) -> Vec<String> {
    let mut ledger = WholeLedger::open(&settings(&database.url())).await.unwrap();
    ledger.page = page;
    let none = tempfile::tempdir().unwrap();
    let verified = verify_ledger(&ledger, none.path(), &audit_key()).await.unwrap();
    ledger.pool.close().await;
    verified.findings
}

/// What someone does who can write to the database and does not have the key, and a part of each
/// finding.
const ATTACKS: &[(&str, &[&str])] = &[
    // The end of a loan is undone, and each row is as an earlier step left it.
    (
        "DELETE FROM history WHERE chain = $one AND number > 2; \
         UPDATE chains SET number = 2, closed = NULL, seal = NULL, \
         mac = (SELECT mac FROM history WHERE chain = $one \
         AND number = 2) WHERE chain = $one; \
         DELETE FROM loans; INSERT INTO loans SELECT * FROM early_loans",
        &["chain $one: the last steps are missing: the chain ends at 2, chain $other names step 4"],
    ),
    // The same for a chain with everything that it has written.
    (
        "DELETE FROM chains WHERE chain = $one; DELETE FROM loans WHERE id IN \
         (SELECT loan FROM history WHERE chain = $one); DELETE FROM history WHERE chain = $one",
        &["chain $one: all of it is missing, chain $other names its step 4"],
    ),
    // The record is removed too.
    (
        "DELETE FROM history WHERE chain = $one AND number > 2; \
         UPDATE chains SET number = 2, closed = NULL, seal = NULL, \
         mac = (SELECT mac FROM history WHERE chain = $one \
         AND number = 2) WHERE chain = $one; \
         DELETE FROM loans WHERE id IN (SELECT loan FROM history WHERE chain = $one); \
         INSERT INTO loans SELECT * FROM early_loans; \
         DELETE FROM history WHERE cause = 'heads'",
        &["chain $other: steps 3 to 3 are missing"],
    ),
    (
        "UPDATE history SET detail = replace(detail, ' 4 ', ' 2 ') WHERE cause = 'heads'",
        &["chain $other: step 3 (loan 00000000", "chain $one: step 2 differs from the one in"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_a_chain_is_named_by_another_chain() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = Node::open(&database).await;
    let id = accepted(&node.ledger, 1).await;
    let one = newest_chain(&mut connection).await;
    execute(&mut connection, "CREATE TABLE early_loans AS SELECT * FROM loans").await;
    end(&node.ledger, id).await;
    node.close().await;
    let node = Node::open(&database).await;
    accepted(&node.ledger, 11).await;
    let other = newest_chain(&mut connection).await;
    let mut recorder = Recorder::new(&database, &mut connection, other).await;
    recorder.round().await;
    // The chain continues after the record.
    accepted(&node.ledger, 12).await;
    node.close().await;
    const TABLES: [&str; 3] = ["chains", "history", "loans"];
    for table in TABLES {
        let save = format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}");
        execute(&mut connection, &save).await;
    }
    assert_eq!(findings(&database, 2).await, Vec::<String>::new());
    for (attack, expected) in ATTACKS {
        let (ones, others) = (one.to_string(), other.to_string());
        let quoted = |sql: &str, quote: &str| {
            let sql = sql.replace("$one", &format!("{quote}{ones}{quote}"));
            sql.replace("$other", &format!("{quote}{others}{quote}"))
        };
        execute(&mut connection, &quoted(attack, "'")).await;
        for page in [1, 2, 2000] {
            let found = findings(&database, page).await;
            for part in *expected {
                let part = quoted(part, "");
                assert!(found.iter().any(|found| found.contains(&part)), "{part}: {found:?}");
            }
        }
        for table in TABLES {
            let restore =
                format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}");
            execute(&mut connection, &restore).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_few_and_stop_without_new_steps() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let (first, second) = (Node::open(&database).await, Node::open(&database).await);
    accepted(&first.ledger, 1).await;
    let one = newest_chain(&mut connection).await;
    accepted(&second.ledger, 2).await;
    let other = "SELECT chain FROM chains WHERE chain <> $1";
    let other = sqlx::query_scalar(other).bind(one).fetch_one(&mut connection).await.unwrap();
    let mut recorders = [
        Recorder::new(&database, &mut connection, one).await,
        Recorder::new(&database, &mut connection, other).await,
    ];
    for _ in 0..3 {
        for recorder in &mut recorders {
            recorder.round().await;
        }
    }
    assert_eq!(count_of_records(&mut connection).await, 2, "each has recorded the other once");
    // A step is recorded after an hour.
    accepted(&first.ledger, 3).await;
    recorders[1].round().await;
    assert_eq!(count_of_records(&mut connection).await, 2);
    // A new process records everything.
    Recorder::new(&database, &mut connection, other).await.round().await;
    assert_eq!(count_of_records(&mut connection).await, 3);
    assert_eq!(findings(&database, 2).await, Vec::<String>::new());
    // A record does not extend a chain whose end was removed.
    let recorder = Recorder::new(&database, &mut connection, one).await;
    recorder.heads.record(library(), Head { number: 99, mac: vec![9; 32] });
    let mut behind = recorder;
    behind.round().await;
    assert_eq!(count_of_records(&mut connection).await, 3);
    // Begins are closed: this process has committed a step that the database lacks.
    let closed = "SELECT count(*) FROM meta WHERE name = 'begins closed'";
    let closed: i64 = sqlx::query_scalar(closed).fetch_one(&mut connection).await.unwrap();
    assert_eq!(closed, 1);
    first.close().await;
    second.close().await;
    // Nor a closed one.
    Recorder::new(&database, &mut connection, one).await.round().await;
    assert_eq!(count_of_records(&mut connection).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_no_steps_of_loans() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let first = Node::open(&database).await;
    accepted(&first.ledger, 1).await;
    first.close().await;
    let node = Node::open(&database).await;
    let ended = accepted(&node.ledger, 2).await;
    let own = newest_chain(&mut connection).await;
    Recorder::new(&database, &mut connection, own).await.round().await;
    end(&node.ledger, ended).await;
    assert_eq!(count_of_records(&mut connection).await, 1);
    forget(&node.ledger).await;
    accepted(&node.ledger, 3).await;
    let store = StoreSettings::Postgres(Box::new(settings(&database.url())));
    let which = Prunable::Ended { before: Timestamp::MAX };
    let pruned =
        crate::ledger::prune(&store, &audit_key(), which, &RowsRead::default()).await.unwrap();
    assert_eq!((pruned.loans, pruned.left), (1, Vec::new()));
    assert_eq!(count_of_records(&mut connection).await, 1);
    assert_eq!(findings(&database, 1).await, Vec::<String>::new());
    let checked = crate::ledger::check(&store, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!(checked, Vec::<String>::new());
    node.close().await;
    let directory = tempfile::tempdir().unwrap();
    let copy = StoreSettings::Sqlite(directory.path().join("copy.db"));
    let keys = Keys { fingerprint: KEY, audit: audit_key() };
    let copied =
        crate::ledger::copy(&store, &copy, &keys, Timestamp::UNIX_EPOCH, &mut |_| ()).await;
    assert_eq!(copied.unwrap().counts["steps"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_of_a_fenced_process_is_sealed_and_a_late_write_opens_it() {
    const NO_SEAL: &str = "its process has ended, but no seal names its last step";
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    // It does not notice soon that it is fenced.
    let slow = PostgresSettings { lease: Duration::from_secs(600), ..settings(&database.url()) };
    let (fenced, node) =
        (Node::open_with(slow, Brake::default()).await, Node::open(&database).await);
    let id = accepted(&fenced.ledger, 1).await;
    let one = newest_chain(&mut connection).await;
    accepted(&node.ledger, 2).await;
    let other = "SELECT chain FROM chains WHERE chain <> $1";
    let other = sqlx::query_scalar(other).bind(one).fetch_one(&mut connection).await.unwrap();
    let mut recorder = Recorder::new(&database, &mut connection, other).await;
    recorder.round().await;
    assert_eq!(findings(&database, 2).await, Vec::<String>::new(), "both may write");
    let fence = format!("UPDATE members SET fenced = 1 WHERE process = '{one}'");
    execute(&mut connection, &fence).await;
    let found = findings(&database, 2).await;
    assert!(found.len() == 1 && found[0].contains(NO_SEAL), "{found:?}");

    // A chain whose end was removed before is not sealed.
    for table in ["chains", "history"] {
        let save = format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}");
        execute(&mut connection, &save).await;
    }
    let attack = format!(
        "DELETE FROM history WHERE chain = '{one}' AND number = 2; UPDATE chains SET number = 1, \
         mac = (SELECT mac FROM history WHERE chain = '{one}') WHERE chain = '{one}'"
    );
    execute(&mut connection, &attack).await;
    recorder.round().await;
    let found = findings(&database, 2).await;
    assert!(found.iter().any(|found| found.contains(NO_SEAL)), "{found:?}");
    for table in ["chains", "history"] {
        let restore =
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}");
        execute(&mut connection, &restore).await;
    }

    recorder.round().await;
    assert_eq!(findings(&database, 2).await, Vec::<String>::new());
    // The fenced process may still write tallies and ends.
    let tally = Tally { bytes: 1, ranges: Ranges::default() };
    let delivered = [Delivered { loan: id, file: "/a".into(), tally }];
    fenced.ledger.note_delivered(library(), delivered.into()).await.unwrap();
    end(&fenced.ledger, id).await;
    let found = findings(&database, 2).await;
    assert!(found.len() == 1 && found[0].contains(NO_SEAL), "{found:?}");
    recorder.round().await;
    assert_eq!(findings(&database, 2).await, Vec::<String>::new());
    fenced.close().await;
    node.close().await;
    assert_eq!(findings(&database, 2).await, Vec::<String>::new());
}

#[tokio::test]
async fn no_chain_is_opened_in_a_moved_ledger() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    accepted(&node.ledger, 1).await;
    let mut connection = database.connect().await;
    let ended = newest_chain(&mut connection).await;
    execute(&mut connection, "INSERT INTO meta (name, value) VALUES ('moved', '')").await;
    let Recorder { mut records, heads, _directory } =
        Recorder::new(&database, &mut connection, Uuid::new_v4()).await;
    let head = Head { number: 3, mac: vec![7; 32] };
    let ends = vec![RecordedHead { chain: ended, head }];
    assert!(!records.record_before_seal(&heads, library(), ends).await.unwrap());
    let chains = sqlx::query_scalar("SELECT chain FROM chains");
    let chains: Vec<Uuid> = chains.fetch_all(&mut connection).await.unwrap();
    assert_eq!(chains, [ended]);
}
