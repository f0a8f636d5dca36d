//! Migrations on real databases.

use super::super::contraction::contract;
use super::super::settings::PostgresSettings;
use super::super::test_support::settings;
use super::super::test_support::support::{Database, Postgres};
use super::*;

const EXPANSION: Migration =
    Migration::Expansion { sql: "ALTER TABLE members ADD COLUMN address text" };
const CONTRACTION: Migration = Migration::Contraction {
    removes: "the addresses of members",
    sql: "ALTER TABLE members DROP COLUMN address",
};
/// In place of the index of the program, for which a contraction would wait.
const NO_INDEX: Migration = Migration::Expansion { sql: "" };
const WITH_EXPANSION: &[Migration] =
    &[MIGRATIONS[0], MIGRATIONS[1], NO_INDEX, MIGRATIONS[3], EXPANSION];
const ALL: &[Migration] =
    &[MIGRATIONS[0], MIGRATIONS[1], NO_INDEX, MIGRATIONS[3], EXPANSION, CONTRACTION];

async fn has_address(database: &Database) -> bool {
    const QUERY: &str = "SELECT EXISTS (SELECT 1 FROM pg_attribute \
         WHERE attrelid = 'members'::regclass AND attname = 'address')";
    sqlx::query_scalar(QUERY).fetch_one(&mut database.connect().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_first_migrations_all_succeed() {
    let Some(server) = Postgres::shared().await else { return };
    for _ in 0..5 {
        let database = server.database().await;
        let migrate = async || {
            let mut connection = database.connect().await;
            let migrated = run(&mut connection, MIGRATIONS).await;
            connection.close().await.unwrap();
            migrated
        };
        for migrated in futures_util::future::join_all((0..10).map(|_| migrate())).await {
            assert_eq!(migrated.unwrap(), Schema::Usable);
        }
    }
}

#[tokio::test]
async fn only_a_contraction_refuses_older_programs() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    for programs in [WITH_EXPANSION, MIGRATIONS, ALL, WITH_EXPANSION, MIGRATIONS] {
        assert_eq!(run(&mut connection, programs).await.unwrap(), Schema::Usable);
    }
    assert!(has_address(&database).await, "a start removed something");
    let settings = PostgresSettings { migrations: ALL, ..settings(&database.url()) };
    assert_eq!(contract(&settings).await.unwrap(), ["the addresses of members"]);
    assert!(!has_address(&database).await);
    for older in [WITH_EXPANSION, MIGRATIONS] {
        assert_eq!(run(&mut connection, older).await.unwrap(), Schema::TooNew);
        let schema = read_version(&mut connection).await.unwrap();
        assert_eq!(schema.usability(older), Schema::TooNew);
    }
    assert_eq!(run(&mut connection, ALL).await.unwrap(), Schema::Usable);
    connection.close().await.unwrap();
}

/// A release after one that contracts must start although nobody has run the command.
#[tokio::test]
async fn expansion_after_a_pending_contraction_applies() {
    const LATER: &[Migration] = &[
        MIGRATIONS[0],
        MIGRATIONS[1],
        NO_INDEX,
        MIGRATIONS[3],
        EXPANSION,
        CONTRACTION,
        Migration::Expansion { sql: "CREATE TABLE later ()" },
    ];
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    assert_eq!(run(&mut connection, LATER).await.unwrap(), Schema::Usable);
    assert!(has_address(&database).await);
    let version = read_version(&mut connection).await.unwrap();
    assert_eq!(version, SchemaVersion { version: 7, min_program: 1 });
    sqlx::raw_sql("SELECT FROM later").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn migration_that_waits_for_a_table_lets_running_gates_work() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    run(&mut connection, MIGRATIONS).await.unwrap();
    let (mut reader, mut gate) = (database.connect().await, database.connect().await);
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM members").execute(&mut reader).await.unwrap();
    let migrating = tokio::spawn(async move { run(&mut connection, WITH_EXPANSION).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let query = sqlx::raw_sql("SELECT count(*) FROM members").execute(&mut gate);
    tokio::time::timeout(Duration::from_secs(4), query).await.unwrap().unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    assert_eq!(migrating.await.unwrap().unwrap(), Schema::Usable);
}

#[tokio::test]
async fn failed_migration_leaves_the_version() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let broken = Migration::Expansion { sql: "CREATE TABLE half (); SELECT 1 / 0" };
    run(&mut connection, &[broken]).await.unwrap_err();
    assert_eq!(run(&mut connection, MIGRATIONS).await.unwrap(), Schema::Usable);
    let half: bool = sqlx::query_scalar("SELECT to_regclass('half') IS NOT NULL")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!half);
    connection.close().await.unwrap();
}
