//! Contractions beside gates of older and newer programs.

use std::time::Duration;

use super::super::epoch::EpochSeals;
use super::super::members_table::{JoiningProcess, MemberTable, PostgresMembers};
use super::super::migrations::{MIGRATIONS, SchemaTooNew, run};
use super::super::test_support::support::{Database, Postgres};
use super::super::test_support::{Node, settings, until};
use super::*;
use crate::ledger::Brake;
use crate::ledger::test_support::audit_key;

/// A program with three more versions of the schema.
const NEXT: &[Migration] = &[
    MIGRATIONS[0],
    MIGRATIONS[1],
    // In place of an index, of which this is no test.
    Migration::Expansion { sql: "" },
    MIGRATIONS[3],
    Migration::Expansion { sql: "CREATE TABLE shelves (name text)" },
    Migration::Index {
        name: "loans_of_licence",
        sql: "CREATE INDEX CONCURRENTLY IF NOT EXISTS loans_of_licence ON loans (licence_id)",
    },
    Migration::Contraction {
        removes: "the index loans_of_title",
        sql: "DROP INDEX loans_of_title",
    },
];
const REMOVED: [&str; 1] = ["the index loans_of_title"];
const MISSING: Obstacle = Obstacle::MissingIndex("loans_of_licence");

fn of_program(database: &Database, migrations: &'static [Migration]) -> PostgresSettings {
    PostgresSettings { migrations, ..settings(&database.url()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contraction_waits_for_older_gates_and_indexes() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let (old, next) = (of_program(&database, MIGRATIONS), of_program(&database, NEXT));
    let older = Node::open_with(old.clone(), Brake::default()).await;
    assert_eq!(plan_contraction(&old).await.unwrap(), None);
    assert_eq!(contract(&old).await.unwrap(), [""; 0]);
    let plan = plan_contraction(&next).await.unwrap().unwrap();
    let not_expanded = Obstacle::NotExpanded { version: 4, program: 7 };
    assert!(plan.obstacles.contains(&not_expanded), "{plan:?}");

    // The build of the index waits for it, and the start of the gate does not.
    let mut writer = database.connect().await;
    let write = "BEGIN; LOCK TABLE loans IN ROW EXCLUSIVE MODE";
    sqlx::raw_sql(write).execute(&mut writer).await.unwrap();
    let newer = Node::open_with(next.clone(), Brake::default()).await;
    let plan = plan_contraction(&next).await.unwrap().unwrap();
    assert_eq!((&plan.removals[..], plan.min_program), (&REMOVED[..], 7));
    let [MISSING, older_gate @ Obstacle::OlderGate { program: 4, .. }] = &plan.obstacles[..] else {
        panic!("{plan:?}")
    };
    sqlx::raw_sql("COMMIT").execute(&mut writer).await.unwrap();
    until("the index is built", async || {
        let plan = plan_contraction(&next).await.unwrap().unwrap();
        plan.obstacles.as_slice() == std::slice::from_ref(older_gate)
    })
    .await;
    let refused = contract(&next).await.unwrap_err();
    assert_eq!(refused.to_string(), older_gate.to_string());

    let heads = older.close().await;
    assert_eq!(contract(&next).await.unwrap(), REMOVED);
    assert_eq!(plan_contraction(&next).await.unwrap(), None);
    let refused = Node::try_open(old.clone(), &heads).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NewerSchema), "{refused}");
    let refused = plan_contraction(&old).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NewerSchema), "{refused}");
    Node::try_open(next, &heads).await.unwrap().close().await;
    newer.close().await;
}

/// Otherwise an older gate could join between the read of the members and the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_waits_for_a_contraction_and_is_refused() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut contracting = database.connect().await;
    run(&mut contracting, NEXT).await.unwrap();
    let mut transaction = contracting.begin_with(BEGIN).await.unwrap();
    lock_version(&mut transaction).await.unwrap();
    let connector = Connector::new(&settings(&database.url()));
    let seals = EpochSeals::new(audit_key(), Uuid::nil());
    let mut table = PostgresMembers::new(connector, Duration::from_secs(60), seals);
    let joining = tokio::spawn(async move {
        let lease = Duration::from_secs(30);
        let id = Uuid::new_v4();
        let older = JoiningProcess { id, lease, freshness: lease, program: 5 };
        let newer = JoiningProcess { program: 6, ..older };
        (table.join(id, older).await, table.join(id, newer).await)
    });
    let mut observer = database.connect_as_admin().await;
    until("the older gate waits", async || {
        let waiting = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)";
        joining.is_finished() || sqlx::query_scalar(waiting).fetch_one(&mut observer).await.unwrap()
    })
    .await;
    let schema = read_version(&mut transaction).await.unwrap();
    let older = obstacles(&mut transaction, NEXT, schema, 6);
    // The index is missing, since no gate has built it.
    assert_eq!(older.await.unwrap(), [MISSING]);
    let record = "UPDATE schema_version SET min_program = 6";
    sqlx::raw_sql(record).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let (older, newer) = joining.await.unwrap();
    let refused = older.unwrap_err();
    assert!(
        matches!(&refused, sqlx::Error::Configuration(source) if source.is::<SchemaTooNew>()),
        "{refused}"
    );
    newer.unwrap();
}
