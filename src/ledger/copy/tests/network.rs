//! Copies whose connection to PostgreSQL fails.

use super::*;
use crate::ledger::copy::exclusive::ExclusiveLedger;
use crate::ledger::postgres::test_support::support::{Link, TcpProxy};
use tokio::time::timeout;

/// Far longer than the deadlines below.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns a proxy of the server, and settings that use it.
async fn behind_proxy(store: &TestStore) -> (TcpProxy, StoreSettings) {
    let (TestStore::Postgres { database, .. }, StoreSettings::Postgres(mut settings)) =
        (store, store.settings())
    else {
        panic!("SQLite has no server");
    };
    let port = database.url().rsplit_once(':').unwrap().1.split_once('/').unwrap().0.to_owned();
    let target = format!("127.0.0.1:{port}").parse().unwrap();
    let proxy = TcpProxy::start(target).await;
    let url = database.url_at(proxy.port());
    settings.endpoint = crate::ledger::postgres::test_support::settings(&url).endpoint;
    (proxy, StoreSettings::Postgres(settings))
}

async fn copy_with(
    from: &StoreSettings,
    to: &StoreSettings,
    deadlines: Deadlines,
    report: &mut (dyn FnMut(CopyProgress) + Send),
) -> Result<Copied, CopyError> {
    let keys = keys();
    let running = Copy { keys: &keys, batch: 5, deadlines, now: second(5000), report };
    timeout(PATIENCE, Box::pin(running.run(from, to))).await.expect("the copy hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_server_ends_a_copy_that_can_be_continued() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    let (proxy, of_there) = behind_proxy(&there).await;
    let [page, table, batch] = [1, 1, 1].map(Duration::from_secs);
    let deadlines = Deadlines { page, table, batch };
    for (from, to) in [(first.settings(), of_there.clone()), (of_there, back.settings())] {
        let mut stall = |progress| {
            if let CopyProgress::Copying { .. } = progress {
                proxy.set(Link::Blocked);
            }
        };
        let copied = copy_with(&from, &to, deadlines, &mut stall).await;
        let Err(CopyError::Interrupted(_)) = &copied else { panic!("{copied:?}") };
        let sentence = refused(copied);
        assert!(sentence.contains("run the same command again"), "{sentence}");
        proxy.set(Link::Open);
        copy_with(&from, &to, Deadlines::default(), &mut |_| {}).await.unwrap();
    }
    back.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transaction_has_a_deadline() {
    const STALL: &str = "SELECT pg_sleep(600)";
    let Some((_, there, _)) = stores().await else { return };
    let limit = Duration::from_millis(300);
    let deadlines = Deadlines { page: limit, table: limit, batch: limit };
    let opened = ExclusiveLedger::open(&there.settings(), &keys(), deadlines).await;
    let Ok(ExclusiveLedger::Postgres(database)) = opened else { panic!("PostgreSQL") };
    let stall = async |connection: &mut sqlx::PgConnection| {
        sqlx::raw_sql(STALL).execute(connection).await.map(drop)
    };
    let stalled = async {
        [database.read(stall).await, database.read_table(stall).await, database.write(stall).await]
    };
    // The server itself would end a statement later.
    for result in timeout(PATIENCE / 2, stalled).await.expect("a transaction hangs") {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("no response within"), "{error}");
    }
    database.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_replaces_lost_connections() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    let (proxy, of_there) = behind_proxy(&there).await;
    for (from, to) in [(first.settings(), of_there.clone()), (of_there, back.settings())] {
        // At every step: each side is idle while the other works.
        let mut abort = |_| proxy.abort();
        copy_with(&from, &to, Deadlines::default(), &mut abort).await.unwrap();
    }
    back.assert_sound().await;
}
