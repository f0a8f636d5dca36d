//! Time until a gate is ready whose ledger has many loans.

use sqlx::{AssertSqlSafe, Executor};
use tokio::time::Instant;

use super::support::{Postgres, Process, Scene, Setting};

const LOANS: u64 = 1_000_000;
/// Loans of one statement, so that no transaction fills the disk.
const LOANS_AT_ONCE: u64 = 100_000;
const LIBRARIES: u64 = 400;
/// Starts of a gate.
const STARTS: usize = 3;

pub(crate) async fn run(loans: Option<u64>) {
    let loans = loans.unwrap_or(LOANS);
    let server =
        Postgres::start_with(&[("max_wal_size", "1GB"), ("synchronous_commit", "on")]).await;
    let server = server.unwrap();
    let database = server.database().await;
    let scene = Scene::without_gate(Setting::default()).await;
    let url = format!("{}?sslmode=disable", database.url());
    scene.replace_in_config("sqlite:data/loangate.db", &url);
    scene.make_config_private();
    stop(Process::serve(&scene.config_file()).await).await; // creates the tables
    let began = Instant::now();
    fill(&database, loans).await;
    let mut connection = database.connect().await;
    let size: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let size = size as f64 / 1e9;
    let what = format!("{loans} loans, filled in {:.0?}", began.elapsed());
    println!("{what:<52} {size:>8.2} GB");
    for _ in 0..STARTS {
        let gate = Process::serve(&scene.config_file()).await;
        println!("{:<52} {:>8.0} ms", "ready", gate.took.as_secs_f64() * 1e3);
        let memory = gate.memory() as f64 / 1024.0;
        println!("{:<52} {memory:>8.1} MiB", "memory then");
        stop(gate).await;
    }
}

async fn stop(mut gate: Process) {
    gate.terminate();
    assert!(gate.exit().await.success());
}

/// Inserts loans with three steps each. One in ten is live; the others were returned. The indexes
/// are built at the end, which takes a fraction of the time.
async fn fill(database: &super::support::postgres::Database, loans: u64) {
    let mut connection = database.connect().await;
    let indexes = "SELECT indexname, indexdef FROM pg_indexes \
         WHERE tablename IN ('loans', 'history') \
         AND indexname NOT IN (SELECT conname FROM pg_constraint)";
    let indexes: Vec<(String, String)> =
        sqlx::query_as(indexes).fetch_all(&mut connection).await.unwrap();
    for (name, _) in &indexes {
        connection.execute(AssertSqlSafe(format!("DROP INDEX {name}"))).await.unwrap();
    }
    for first in (0..loans).step_by(LOANS_AT_ONCE as usize) {
        let last = (first + LOANS_AT_ONCE).min(loans) - 1;
        let made = format!(
            "SELECT n, 'NO-' || lpad((n % {LIBRARIES})::text, 7, '0') AS library, \
             md5(n::text)::uuid AS id, 1790000000000 + n * 1000::bigint AS begun, \
             n % 10 > 0 AS over FROM generate_series({first}::bigint, {last}::bigint) AS n"
        );
        let insert = format!(
            "INSERT INTO loans (library, id, bucket, borrower, isbn, reference, lending_id, state, \
             begun, accepted, due, ended, end_reason, changed, closed, owner) \
             SELECT library, id, n % 1024, decode(md5((n / 4)::text), 'hex'), \
             9780000000000 + (n * 7919) % 5000 * 4 + n % 4, 'R' || n, 'L' || n, \
             CASE WHEN over THEN 'ended' ELSE 'accepted' END, begun, begun, \
             4000000000000, CASE WHEN over THEN begun + 900000 END, \
             CASE WHEN over THEN 'returned' END, begun, CASE WHEN over THEN begun + 900000 END, \
             md5('owner')::uuid FROM ({made}) AS made"
        );
        let steps = format!(
            "INSERT INTO history (library, chain, number, loan, at, to_state, cause, version, mac) \
             SELECT library, md5(library)::uuid, n * 3 + step, id, begun, 'accepted', 'reader', 2, \
             decode(repeat(md5('m'), 2), 'hex') FROM ({made}) AS made, \
             generate_series(0, 2) AS step"
        );
        for sql in [insert, steps] {
            connection.execute(AssertSqlSafe(sql)).await.unwrap();
        }
    }
    connection.execute("SET maintenance_work_mem = '512MB'").await.unwrap();
    for (_, definition) in indexes {
        connection.execute(AssertSqlSafe(definition)).await.unwrap();
    }
    connection.execute("ANALYZE").await.unwrap();
}
