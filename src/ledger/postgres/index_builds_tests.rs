//! Builds of indexes by several nodes, and after builders were killed.

use sqlx::Executor;

use super::super::migrations::MIGRATIONS;
use super::super::settings::PostgresSettings;
use super::super::test_support::support::{Database, Postgres};
use super::super::test_support::{Node, settings, until};
use super::*;
use crate::ledger::Brake;
use crate::ledger::test_support::accepted;

const NAME: &str = "loans_of_licence";
const SQL: &str = "CREATE INDEX CONCURRENTLY IF NOT EXISTS loans_of_licence ON loans (licence_id)";
/// Without the indexes of the program, which would be built first.
const WITH_INDEX: &[Migration] = &[
    MIGRATIONS[0],
    MIGRATIONS[1],
    Migration::Expansion { sql: "" },
    MIGRATIONS[3],
    Migration::Index { name: NAME, sql: SQL },
];
const INDEX: Index = Index { name: NAME, sql: SQL };
/// Builds wait for this transaction, and statements of gates do not.
const WRITE: &str = "BEGIN; LOCK TABLE loans IN ROW EXCLUSIVE MODE";

async fn node(database: &Database) -> Node {
    let settings = PostgresSettings { migrations: WITH_INDEX, ..settings(&database.url()) };
    Node::open_with(settings, Brake::default()).await
}

/// Creates the tables without the index.
async fn prepared(server: &Postgres) -> Database {
    let database = server.database().await;
    super::super::migrations::run(&mut database.connect().await, MIGRATIONS).await.unwrap();
    database
}

async fn builds(connection: &mut PgConnection) -> Vec<i32> {
    let builds = "SELECT pid FROM pg_stat_progress_create_index \
         WHERE datname = current_database()";
    sqlx::query_scalar(builds).persistent(false).fetch_all(connection).await.unwrap()
}

async fn is_valid(connection: &mut PgConnection) -> Option<bool> {
    let is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
    let is_valid = sqlx::query_scalar(is_valid).bind(NAME).persistent(false);
    is_valid.fetch_optional(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_nodes_builds_and_both_work_meanwhile() {
    let Some(server) = Postgres::shared().await else { return };
    let database = prepared(server).await;
    let (mut writer, mut observer) = (database.connect().await, database.connect().await);
    writer.execute(WRITE).await.unwrap();
    let (first, second) = tokio::join!(node(&database), node(&database));
    until("an index is built", async || !builds(&mut observer).await.is_empty()).await;
    for (borrower, node) in (1..).zip([&first, &second]) {
        accepted(&node.ledger, borrower).await;
    }
    let third = build_missing(&mut observer, Uuid::new_v4(), &[INDEX]).await.unwrap();
    assert_eq!(third, Attempt::Elsewhere);
    let statements = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND state = 'active' AND query ~ '^(CREATE|DROP) INDEX'";
    let statements: i64 = sqlx::query_scalar(statements).fetch_one(&mut observer).await.unwrap();
    assert_eq!(statements, 1);
    writer.execute("COMMIT").await.unwrap();
    until("the index is valid", async || is_valid(&mut observer).await == Some(true)).await;
    until("the claim is released", async || {
        let claims = "SELECT count(*) FROM meta WHERE name = 'index builder'";
        sqlx::query_scalar::<_, i64>(claims).fetch_one(&mut observer).await.unwrap() == 0
    })
    .await;
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_index_of_a_killed_builder_is_built_again() {
    let Some(server) = Postgres::shared().await else { return };
    let database = prepared(server).await;
    let (mut writer, mut observer) = (database.connect().await, database.connect().await);
    writer.execute(WRITE).await.unwrap();
    let node = node(&database).await;
    until("an invalid index is there", async || is_valid(&mut observer).await == Some(false)).await;
    for builder in builds(&mut observer).await {
        let kill = sqlx::query("SELECT pg_terminate_backend($1)").bind(builder);
        kill.execute(&mut observer).await.unwrap();
    }
    until("no build runs", async || builds(&mut observer).await.is_empty()).await;
    assert_eq!(is_valid(&mut observer).await, Some(false));
    writer.execute("COMMIT").await.unwrap();
    until("the index is valid", async || is_valid(&mut observer).await == Some(true)).await;
    node.close().await;
}

/// The server continues the statement of a gate that was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builder_waits_for_a_build_without_its_gate() {
    let Some(server) = Postgres::shared().await else { return };
    let database = prepared(server).await;
    let (mut writer, mut observer) = (database.connect().await, database.connect().await);
    writer.execute(WRITE).await.unwrap();
    let mut orphan = database.connect().await;
    let building = tokio::spawn(async move { orphan.execute(SQL).await.map(drop) });
    until("the orphan builds", async || is_valid(&mut observer).await == Some(false)).await;
    let member = Uuid::new_v4();
    let attempt = build_missing(&mut observer, member, &[INDEX]).await.unwrap();
    assert_eq!(attempt, Attempt::Elsewhere);
    assert!(claim(&mut observer, Uuid::new_v4()).await.unwrap(), "the claim was released");
    writer.execute("COMMIT").await.unwrap();
    building.await.unwrap().unwrap();
    let attempt = build_missing(&mut observer, member, &[INDEX]).await.unwrap();
    assert_eq!(attempt, Attempt::Complete);
}

#[tokio::test]
async fn claim_of_a_member_that_ended_is_taken_over() {
    let Some(server) = Postgres::shared().await else { return };
    let database = prepared(server).await;
    let mut connection = database.connect().await;
    let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
    for member in [first, second] {
        let join = "INSERT INTO members (member, process, joined, lease, freshness) \
             VALUES ($1, $1, 0, 30000, 60000)";
        sqlx::query(join).bind(member).execute(&mut connection).await.unwrap();
    }
    assert!(claim(&mut connection, first).await.unwrap());
    assert!(claim(&mut connection, first).await.unwrap());
    assert!(!claim(&mut connection, second).await.unwrap());
    let end = sqlx::query("UPDATE members SET fenced = 1 WHERE member = $1").bind(first);
    end.execute(&mut connection).await.unwrap();
    assert!(claim(&mut connection, second).await.unwrap());
    release(&mut connection, first).await.unwrap();
    assert!(!claim(&mut connection, Uuid::new_v4()).await.unwrap(), "released by another one");
    release(&mut connection, second).await.unwrap();
    assert!(claim(&mut connection, Uuid::new_v4()).await.unwrap());
}
