//! Tests against a real server, directly and through PgBouncer.

use std::sync::Arc;
use std::time::Duration;

use super::super::connect::{Connector, Purpose};
use super::super::pool::{BEGIN, Pool};
use super::super::test_support::support::{PgBouncer, Postgres};
use super::super::test_support::{Node, settings};
use super::*;
use crate::clock::Clock;
use crate::ledger::test_support::{by, key};
use crate::ledger::{Intended, Ledger};
use crate::loan::{Loan, LoanKey};

const DEADLINE: Duration = Duration::from_secs(60);

fn pool(url: &str, size: u32) -> Arc<Pool> {
    Arc::new(Pool::new(Connector::new(&settings(url)), Purpose::Reads, size))
}

/// Runs a statement that two programs have under the same number, but with different texts.
async fn greet(pool: &Pool, greeting: &'static str, number: i64) -> String {
    let sql = format!("SELECT '{greeting} ' || $1::bigint");
    let greeted = pool.transaction(BEGIN, DEADLINE, async |connection| {
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(number);
        query.persistent(prepares(connection)).fetch_one(connection).await
    });
    greeted.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_prepared_on_a_connection_of_the_server() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 1);
    for number in 0..3 {
        assert_eq!(greet(&pool, "hello", number).await, format!("hello {number}"));
    }
    let uses = pool.read(DEADLINE, async |connection| {
        let sql = "SELECT generic_plans + custom_plans FROM pg_prepared_statements \
             WHERE statement LIKE '%hello%'";
        sqlx::query_scalar::<_, i64>(sql).persistent(false).fetch_all(connection).await
    });
    assert_eq!(uses.await.unwrap(), [3], "one statement, used three times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_another_program_runs_behind_a_pooler() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 3).await else { return };
    let database = server.database().await;
    let url = database.url_at(bouncer.port());
    // The settings of both pools say that there is no pooler.
    let pools = [(pool(&url, 4), "hello"), (pool(&url, 4), "hei")];
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8_usize {
        let (pool, greeting) = pools[task % 2].clone();
        tasks.spawn(async move {
            for number in 0..50 {
                assert_eq!(greet(&pool, greeting, number).await, format!("{greeting} {number}"));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preparation_ends_when_a_transaction_runs_on_another_connection() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 3).await else { return };
    let database = server.database().await;
    let connector = Connector::new(&settings(&database.url_at(bouncer.port())));
    let mut first = connector.session(Purpose::Writes).await.unwrap();
    // PgBouncer has only the server connection that the first one has marked.
    let mut second = connector.session(Purpose::Writes).await.unwrap();
    assert!(!prepares(&second), "the name of its first statement is taken");
    let other = second.begin_with(BEGIN).await.unwrap();
    assert!(first.begin_with(BEGIN).await.is_err(), "it got a new server connection");
    other.rollback().await.unwrap();
}

/// Otherwise a lane would take the error of the check for one of the caller's values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_two_gates_succeeds_behind_a_pooler_that_they_do_not_know() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 3).await else { return };
    let database = server.database().await;
    let url = database.url_at(bouncer.port());
    // A start needs a session, and gets it while no other program uses the pooler.
    let heads = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let open = async |heads| {
        for _ in 0..100 {
            if let Ok(ledger) = Node::try_open(settings(&url), heads).await {
                return ledger;
            }
        }
        panic!("no start succeeds");
    };
    let ledgers = [open(&heads[0]).await, open(&heads[1]).await];
    let write = async |ledger: &Ledger, borrower: u8, library: usize| {
        let library = format!("NO-03010{library:02}").parse().unwrap();
        let loan = Loan::intend(LoanKey { library, ..key(borrower) }, Clock::system().now());
        let written = ledger.intend(loan, None, by("reader")).await;
        assert!(matches!(written, Ok(Intended::Written(_))), "{written:?}");
    };
    for borrower in 0..20 {
        let writes = (0..10).map(|library| write(&ledgers[library % 2], borrower, library));
        futures_util::future::join_all(writes).await;
    }
}
