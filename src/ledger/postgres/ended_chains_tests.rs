//! Tests of the seals of ended chains on a real server: a person who removes the end of a chain
//! gets no seal for the rest.

use std::time::Duration;

use sqlx::PgConnection;
use tempfile::TempDir;
use uuid::Uuid;

use super::chain_seals::seal_own;
use super::head_records_tests::{
    Recorder, count_of_records, execute, findings, ledger_id, library, newest_chain,
};
use super::settings::PostgresSettings;
use super::test_support::support::{Database, Postgres};
use super::test_support::{Node, settings, until};
use super::verify::verify_ledger;
use super::whole_ledger::WholeLedger;
use crate::ledger::Brake;
use crate::ledger::audit::{Head, chain_heads};
use crate::ledger::test_support::{accepted, audit_key, by, end, loan};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey};

const NO_SEAL: &str = "its process has ended, but no seal names its last step";

/// A ledger with a process that is about to be fenced, and has written four steps of one loan.
/// Another process has written nothing.
struct Scene {
    database: Database,
    connection: PgConnection,
    fenced: Node,
    loan: LoanId,
    node: Node,
    /// The chain of the fenced process.
    one: Uuid,
    /// The name of the other process and its chains.
    other: Uuid,
}

impl Scene {
    async fn new(server: &Postgres) -> Scene {
        let database = server.database().await;
        let mut connection = database.connect().await;
        // It does not notice soon that it is fenced.
        let slow =
            PostgresSettings { lease: Duration::from_secs(600), ..settings(&database.url()) };
        let fenced = Node::open_with(slow, Brake::default()).await;
        let node = Node::open(&database).await;
        let loan = accepted(&fenced.ledger, 1).await;
        let one = newest_chain(&mut connection).await;
        execute(&mut connection, "CREATE TABLE early_loans AS SELECT * FROM loans").await;
        end(&fenced.ledger, loan).await;
        let other = "SELECT process FROM members WHERE process <> $1";
        let other = sqlx::query_scalar(other).bind(one).fetch_one(&mut connection).await.unwrap();
        Scene { database, connection, fenced, loan, node, one, other }
    }

    async fn run(&mut self, sql: &str) {
        let sql = sql.replace("$one", &format!("'{}'", self.one));
        execute(&mut self.connection, &sql).await;
    }

    /// Returns the writer of head records of the other process, without head files of the first.
    async fn recorder(&mut self) -> Recorder {
        Recorder::new(&self.database, &mut self.connection, self.other).await
    }

    async fn fence(&mut self) {
        self.run("UPDATE members SET fenced = 1 WHERE process = $one").await;
    }

    /// Undoes the end of the loan, as a person does who does not have the key.
    async fn remove_end(&mut self) {
        self.run(
            "DELETE FROM history WHERE chain = $one AND number > 2; \
             UPDATE chains SET number = 2, closed = NULL, seal = NULL, \
             mac = (SELECT mac FROM history WHERE chain = $one AND number = 2) \
             WHERE chain = $one; \
             DELETE FROM loans WHERE id IN (SELECT id FROM early_loans); \
             INSERT INTO loans SELECT * FROM early_loans",
        )
        .await;
    }

    /// Returns the end of the chain and whether it has a seal.
    async fn end_of_chain(&mut self) -> (i64, bool) {
        let end = "SELECT number, seal IS NOT NULL FROM chains WHERE chain = $1 AND library = $2";
        let end = sqlx::query_as(end).bind(self.one).bind(library().to_string());
        end.fetch_one(&mut self.connection).await.unwrap()
    }

    async fn begins_are_closed(&mut self) -> bool {
        let closed = "SELECT EXISTS (SELECT 1 FROM meta WHERE name = 'begins closed')";
        sqlx::query_scalar(closed).fetch_one(&mut self.connection).await.unwrap()
    }

    /// Waits until the head file of the fenced process names its last step.
    async fn until_head_file(&mut self) {
        let ledger = ledger_id(&mut self.connection).await;
        let directory = self.fenced.heads.path();
        let has_end = async || {
            let files = chain_heads::read_all(directory, ledger).unwrap();
            files.iter().flat_map(|file| &file.heads).any(|stored| stored.head.number == 4)
        };
        until("the head file names the last step", has_end).await;
    }

    /// Verifies the ledger with the head files in this directory.
    async fn findings_with(&self, heads: &TempDir) -> Vec<String> {
        let ledger = WholeLedger::open(&settings(&self.database.url())).await.unwrap();
        let verified = verify_ledger(&ledger, heads.path(), &audit_key()).await.unwrap();
        ledger.pool.close().await;
        verified.findings
    }
}

fn assert_names(found: &[String], parts: &[String]) {
    for part in parts {
        assert!(found.iter().any(|found| found.contains(part)), "{part}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_without_its_recorded_end_is_not_sealed() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    accepted(&scene.node.ledger, 2).await;
    scene.recorder().await.round().await;
    scene.fence().await;
    scene.remove_end().await;
    // Another start of the program remembers nothing.
    let mut recorder = scene.recorder().await;
    for _ in 0..2 {
        recorder.round().await;
        assert_eq!(scene.end_of_chain().await, (2, false));
    }
    let (one, other) = (scene.one, scene.other);
    let named = format!("chain {one}: the last steps are missing: the chain ends at 2, chain");
    let parts = [format!("{named} {other} names step 4"), format!("chain {one}: {NO_SEAL}")];
    assert_names(&findings(&scene.database, 2).await, &parts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_without_the_end_in_a_head_file_is_not_sealed() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    scene.until_head_file().await;
    scene.fence().await;
    scene.remove_end().await;
    let (database, directory) = (&scene.database, scene.fenced.heads.path());
    let recorder =
        Recorder::with_files(database, &mut scene.connection, scene.other, directory).await;
    let mut recorder = recorder;
    recorder.round().await;
    assert_eq!(scene.end_of_chain().await, (2, false));
    let one = scene.one;
    let parts = [
        format!("chain {one}: the database does not have step 4"),
        format!("chain {one}: {NO_SEAL}"),
    ];
    assert_names(&scene.findings_with(&scene.fenced.heads).await, &parts);
    // The fenced process stops, and does not seal it either.
    scene.fenced.ledger.close().await;
    assert_eq!(scene.end_of_chain().await, (2, false));
    assert!(scene.begins_are_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_without_an_end_that_the_gate_remembers_is_not_sealed() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    accepted(&scene.node.ledger, 2).await;
    let mut recorder = scene.recorder().await;
    recorder.round().await;
    scene.fence().await;
    scene.remove_end().await;
    scene.run("UPDATE history SET detail = '' WHERE cause = 'heads'").await;
    recorder.round().await;
    assert_eq!(scene.end_of_chain().await, (2, false));
    let parts = [format!("chain {}: step 3 (loan 00000000", scene.other)];
    assert_names(&findings(&scene.database, 2).await, &parts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_of_a_chain_without_its_last_step_is_not_sealed() {
    let Some(server) = Postgres::shared().await else { return };
    for damage in [
        "DELETE FROM history WHERE chain = $one AND number = 4",
        "UPDATE history SET mac = loan_mac WHERE chain = $one AND number = 4",
        "DELETE FROM history WHERE chain = $one; \
         UPDATE chains SET number = 0, mac = repeat('0', 32)::bytea WHERE chain = $one",
    ] {
        let mut scene = Scene::new(server).await;
        scene.fence().await;
        scene.run(damage).await;
        scene.recorder().await.round().await;
        assert!(!scene.end_of_chain().await.1, "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sealed_after_a_loss_or_a_move() {
    let Some(server) = Postgres::shared().await else { return };
    for mark in ["begins closed", "moved"] {
        let mut scene = Scene::new(server).await;
        scene.fence().await;
        scene.run(&format!("INSERT INTO meta VALUES ('{mark}', '')")).await;
        scene.recorder().await.round().await;
        assert_eq!(scene.end_of_chain().await, (4, false), "{mark}");
        let chains = sqlx::query_scalar("SELECT count(*) FROM chains");
        let chains: i64 = chains.fetch_one(&mut scene.connection).await.unwrap();
        assert_eq!(chains, 1, "{mark}: no chain is opened for a record");
        scene.run(&format!("DELETE FROM meta WHERE name = '{mark}'")).await;
        scene.recorder().await.round().await;
        assert_eq!(scene.end_of_chain().await, (4, true), "{mark}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seal_removed_with_the_end_is_missed_by_the_recorded_head() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    accepted(&scene.node.ledger, 2).await;
    // The end of the loan is written after the only record of this hour.
    scene
        .run(
            "CREATE TABLE late AS SELECT * FROM history WHERE chain = $one AND number > 2; \
         CREATE TABLE ended_loans AS SELECT * FROM loans; \
         CREATE TABLE ended AS SELECT * FROM chains WHERE chain = $one",
        )
        .await;
    scene.remove_end().await;
    let mut recorder = scene.recorder().await;
    recorder.round().await;
    scene
        .run(
            "INSERT INTO history SELECT * FROM late; \
         UPDATE chains SET number = ended.number, mac = ended.mac FROM ended \
         WHERE chains.chain = ended.chain; \
         DELETE FROM loans; INSERT INTO loans SELECT * FROM ended_loans",
        )
        .await;
    scene.fence().await;
    recorder.round().await;
    assert_eq!(scene.end_of_chain().await, (4, true));
    assert_eq!(findings(&scene.database, 2).await, Vec::<String>::new());
    scene.remove_end().await;
    let (one, other) = (scene.one, scene.other);
    let named = format!("chain {one}: the last steps are missing: the chain ends at 2, chain");
    let parts = [format!("{named} {other} names step 4"), format!("chain {one}: {NO_SEAL}")];
    assert_names(&findings(&scene.database, 2).await, &parts);
    // Another start of the program does not seal it again.
    scene.recorder().await.round().await;
    assert_eq!(scene.end_of_chain().await, (2, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_chain_is_sealed_by_a_gate_that_wrote_nothing() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    scene.fence().await;
    assert_names(&findings(&scene.database, 2).await, &[NO_SEAL.to_owned()]);
    let mut recorder = scene.recorder().await;
    for _ in 0..2 {
        recorder.round().await;
        assert_eq!(scene.end_of_chain().await, (4, true));
        assert_eq!(count_of_records(&mut scene.connection).await, 1);
    }
    assert_eq!(findings(&scene.database, 2).await, Vec::<String>::new());
    // Its own chain has this record only, and is sealed when it stops.
    let newest = recorder.heads.all().1;
    let sealed = seal_own(&mut scene.connection, &[], &newest, scene.other, &audit_key()).await;
    assert_eq!(sealed.unwrap(), Vec::new());
    scene.node.close().await;
    assert_eq!(findings(&scene.database, 2).await, Vec::<String>::new());
    // A late end of the fenced process opens its chain, which it seals itself.
    let late = accepted(&scene.fenced.ledger, 3).await;
    assert_ne!(late, scene.loan);
    scene.fenced.close().await;
    assert_eq!(findings(&scene.database, 2).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn library_that_fails_does_not_stop_the_others() {
    let Some(server) = Postgres::shared().await else { return };
    let mut scene = Scene::new(server).await;
    let second: LibraryId = "NO-0301001".parse().unwrap();
    let of_second = |borrower| {
        let key = LoanKey { library: second, ..loan(borrower).key };
        Loan::intend(key, loan(borrower).begun)
    };
    for (ledger, borrower) in [(&scene.fenced.ledger, 3), (&scene.node.ledger, 4)] {
        ledger.intend(of_second(borrower), None, by("reader")).await.unwrap();
    }
    accepted(&scene.node.ledger, 2).await;
    scene.run("ALTER TABLE chains ALTER mac DROP NOT NULL").await;
    scene.run("CREATE TABLE undamaged AS SELECT * FROM chains").await;
    let damage = "UPDATE chains SET mac = NULL WHERE library = 'NO-0301000' AND chain = $one";
    scene.run(damage).await;
    let mut recorder = scene.recorder().await;
    let own = "SELECT number, mac FROM chains WHERE chain = $1 AND library = $2";
    let own = sqlx::query_as(own).bind(scene.other).bind(second.to_string());
    let (number, mac) = own.fetch_one(&mut scene.connection).await.unwrap();
    recorder.heads.record(second, Head { number, mac });
    recorder.round().await;
    let records = "SELECT DISTINCT library FROM history WHERE cause = 'heads'";
    let recorded: Vec<String> =
        sqlx::query_scalar(records).fetch_all(&mut scene.connection).await.unwrap();
    assert_eq!(recorded, [second.to_string()]);
    scene.fence().await;
    recorder.round().await;
    let sealed = "SELECT seal IS NOT NULL FROM chains WHERE chain = $1 ORDER BY library";
    let sealed = sqlx::query_scalar(sealed).bind(scene.one);
    let sealed: Vec<bool> = sealed.fetch_all(&mut scene.connection).await.unwrap();
    assert_eq!(sealed, [false, true]);
    scene
        .run(
            "UPDATE chains SET mac = undamaged.mac FROM undamaged \
         WHERE chains.library = undamaged.library AND chains.chain = undamaged.chain \
         AND chains.mac IS NULL",
        )
        .await;
    recorder.round().await;
    assert_eq!(count_of_records(&mut scene.connection).await, 2);
    assert_eq!(scene.end_of_chain().await, (4, true));
    assert_eq!(findings(&scene.database, 2).await, Vec::<String>::new());
}
