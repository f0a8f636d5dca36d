//! Tests of the pool against real servers.

use std::sync::Arc;

use super::super::test_support::{settings, support};
use super::*;
use support::{Link, PgBouncer, Postgres, TcpProxy};

const SECOND: Duration = Duration::from_secs(1);

fn pool(url: &str, size: u32) -> Arc<Pool> {
    Arc::new(Pool::new(Connector::new(&settings(url)), Purpose::Reads, size))
}

async fn number(connection: &mut PgConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await
}

async fn backend(pool: &Pool) -> Result<i64, sqlx::Error> {
    pool.read(TRANSACTION, async |connection| {
        number(connection, "SELECT pg_backend_pid()::bigint").await
    })
    .await
}

async fn sleeping(pool: &Pool, deadline: Duration) -> Result<i64, sqlx::Error> {
    let sql = "SELECT count(*) FROM (SELECT pg_sleep(3)) AS slept";
    pool.read(deadline, async |connection| number(connection, sql).await).await
}

/// Waits until the database has this number of connections with this purpose.
async fn wait_for_backends(database: &support::Database, expected: i64) {
    let mut admin = database.connect_as_admin().await;
    let end = Instant::now() + 10 * SECOND;
    loop {
        let open = number(
            &mut admin,
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'loangate reads'",
        );
        let open = open.await.unwrap();
        if open == expected {
            return;
        }
        assert!(Instant::now() < end, "{open} connections");
        tokio::time::sleep(SECOND / 20).await;
    }
}

#[tokio::test]
async fn connections_are_reused_and_errors_roll_back() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 2);
    let first = backend(&pool).await.unwrap();
    let failed: Result<(), _> = pool
        .transaction(BEGIN, TRANSACTION, async |connection| {
            sqlx::raw_sql("CREATE TABLE t (n int)").execute(&mut *connection).await?;
            sqlx::raw_sql("SELECT 1 / 0").execute(connection).await.map(drop)
        })
        .await;
    assert!(failed.unwrap_err().as_database_error().unwrap().code().unwrap() == "22012");
    // A borrow of the caller may be used in the transaction, on any thread.
    let name = String::from("t");
    let tables = pool.read(TRANSACTION, async |connection| {
        let query = sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relname = $1");
        query.bind(&name).persistent(false).fetch_one(connection).await
    });
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    let tables: i64 = is_send(tables).await.unwrap();
    assert_eq!((tables, backend(&pool).await.unwrap()), (0, first));
    let write = pool.read(TRANSACTION, async |connection| {
        sqlx::raw_sql("CREATE TABLE t (n int)").execute(connection).await.map(drop)
    });
    assert!(write.await.is_err(), "a read-only transaction");
    pool.close().await;
    assert!(matches!(backend(&pool).await, Err(sqlx::Error::PoolClosed)));
    wait_for_backends(&database, 0).await;
}

#[tokio::test]
async fn call_past_its_deadline_closes_its_connection() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 1);
    let first = backend(&pool).await.unwrap();
    let began = Instant::now();
    let error = sleeping(&pool, SECOND).await.unwrap_err();
    assert!(began.elapsed() < 2 * SECOND && error.to_string().contains("no response"), "{error}");
    assert_ne!(backend(&pool).await.unwrap(), first, "the connection was not reused");
    wait_for_backends(&database, 1).await;
}

#[tokio::test]
async fn dropped_call_closes_its_connection() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 1);
    let first = backend(&pool).await.unwrap();
    let dropped = tokio::time::timeout(SECOND / 2, sleeping(&pool, TRANSACTION)).await;
    assert!(dropped.is_err());
    assert_ne!(backend(&pool).await.unwrap(), first);
}

#[tokio::test]
async fn full_pool_fails_within_two_seconds() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 2);
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { sleeping(&pool, TRANSACTION).await })
        })
        .collect();
    wait_for_backends(&database, 2).await;
    let began = Instant::now();
    let error = backend(&pool).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error}");
    assert!(began.elapsed() < ACQUIRE + SECOND / 4, "{:?}", began.elapsed());
    for task in busy {
        task.await.unwrap().unwrap();
    }
    assert_eq!(pool.waiters.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn overloaded_pool_keeps_its_connections() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let pool = pool(&database.url_at(proxy.port()), 1);
    let first = backend(&pool).await.unwrap();
    // A transaction takes three round trips. Ten at once cannot all be served in time.
    proxy.set(Link::Delayed(Duration::from_millis(110)));
    let callers = (0..10).map(|_| backend(&pool));
    let served = futures_util::future::join_all(callers).await;
    assert!(served.iter().filter(|one| one.is_ok()).count() >= 2, "{served:?}");
    assert!(served.iter().any(Result::is_err), "the pool was not overloaded");
    proxy.set(Link::Open);
    assert_eq!(backend(&pool).await.unwrap(), first, "the connection was not broken");
}

#[tokio::test]
async fn statement_and_lock_timeouts_end_a_transaction() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 2);
    let shown = pool.read(TRANSACTION, async |connection| {
        let query = sqlx::query_scalar::<_, String>(
            "SELECT concat_ws(' ', current_setting('statement_timeout'), \
             current_setting('lock_timeout'), \
             current_setting('idle_in_transaction_session_timeout'))",
        );
        query.persistent(false).fetch_one(connection).await
    });
    assert_eq!(shown.await.unwrap(), "4s 3s 5s");
}

#[tokio::test]
async fn killed_connections_cost_no_error() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 4);
    let first = backend(&pool).await.unwrap();
    assert!(database.terminate_backends().await > 0);
    assert_ne!(backend(&pool).await.unwrap(), first);
}

/// As by something between that resets the connections of the server.
#[tokio::test]
async fn connection_without_its_prepared_statements_is_replaced() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 1);
    let prepared = async || {
        let read = pool.read(TRANSACTION, async |connection| {
            let query = sqlx::query_scalar::<_, i64>("SELECT $1::bigint").bind(7_i64);
            query.persistent(true).fetch_one(connection).await
        });
        read.await
    };
    assert_eq!(prepared().await.unwrap(), 7);
    let deallocated = pool.read(TRANSACTION, async |connection| {
        sqlx::raw_sql("DEALLOCATE ALL").execute(connection).await.map(drop)
    });
    deallocated.await.unwrap();
    let error = prepared().await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "26000");
    assert_eq!(prepared().await.unwrap(), 7);
}

#[tokio::test]
async fn read_only_server_discards_all_connections() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 4);
    // Two idle connections.
    let (one, two) = tokio::join!(backend(&pool), backend(&pool));
    assert_ne!(one.unwrap(), two.unwrap());
    wait_for_backends(&database, 2).await;
    let failed: Result<(), _> = pool
        .transaction(BEGIN, TRANSACTION, async |connection| {
            let sql = "SET TRANSACTION READ ONLY; CREATE TABLE t (n int)";
            sqlx::raw_sql(sql).execute(connection).await.map(drop)
        })
        .await;
    assert!(failed.unwrap_err().as_database_error().unwrap().code().unwrap() == "25006");
    wait_for_backends(&database, 0).await;
    backend(&pool).await.unwrap();
}

#[tokio::test]
async fn stopped_server_fails_fast_and_is_found_again() {
    let Some(server) = Postgres::start_with(&[("fsync", "off")]).await else { return };
    let database = server.database().await;
    let pool = pool(&database.url(), 4);
    backend(&pool).await.unwrap();
    server.stop_immediately().await;
    for _ in 0..3 {
        let began = Instant::now();
        assert!(backend(&pool).await.is_err());
        assert!(began.elapsed() < ACQUIRE + SECOND / 4, "{:?}", began.elapsed());
    }
    server.restart().await;
    let began = Instant::now();
    while backend(&pool).await.is_err() {}
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn silent_connection_is_replaced_within_the_deadline() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let target = format!("127.0.0.1:{}", server.port()).parse().unwrap();
    let proxy = TcpProxy::start(target).await;
    let pool = pool(&database.url_at(proxy.port()), 2);
    backend(&pool).await.unwrap();
    proxy.set(Link::Blocked);
    let began = Instant::now();
    assert!(backend(&pool).await.is_err());
    assert!(began.elapsed() < ACQUIRE + SECOND / 4, "{:?}", began.elapsed());
    proxy.set(Link::Open);
    backend(&pool).await.unwrap();
}

#[tokio::test]
async fn connection_that_takes_longer_than_its_caller_waits_serves_the_next() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let pool = pool(&database.url_at(proxy.port()), 1);
    // A login and a query take four round trips, and the `BEGIN` of a transaction takes one.
    proxy.set(Link::Delayed(Duration::from_millis(270)));
    let began = Instant::now();
    assert!(backend(&pool).await.is_err());
    assert!(began.elapsed() < ACQUIRE + SECOND / 4, "{:?}", began.elapsed());
    let end = Instant::now() + 10 * SECOND;
    while backend(&pool).await.is_err() {
        assert!(Instant::now() < end, "no caller gets a connection");
    }
}

#[tokio::test]
async fn transactions_work_behind_pgbouncer() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 2).await else { return };
    let database = server.database().await;
    let pool = pool(&database.url_at(bouncer.port()), 4);
    let create = pool.transaction(BEGIN, TRANSACTION, async |connection| {
        let sql = "CREATE TABLE t (n bigint)";
        sqlx::raw_sql(sql).execute(connection).await.map(drop)
    });
    create.await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for number in 0..50_i64 {
                    let insert = pool.transaction(BEGIN, TRANSACTION, async |connection| {
                        let query = sqlx::query("INSERT INTO t (n) VALUES ($1)").bind(number);
                        query.persistent(false).execute(&mut *connection).await?;
                        let query = sqlx::query_scalar::<_, String>("SHOW statement_timeout");
                        query.persistent(false).fetch_one(connection).await
                    });
                    assert_eq!(insert.await.unwrap(), "4s");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let sql = "SELECT count(*) FROM t";
    let rows = pool.read(TRANSACTION, async |connection| number(connection, sql).await);
    assert_eq!(rows.await.unwrap(), 400);
}
