//! The database servers that other tests use: they are separate, can fail and recover, and end with
//! the test process.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};

use crate::support::external_program::OwnedProcess;
use crate::support::postgres::Authority;
use crate::support::tcp_proxy::Link;
use crate::support::{PgBouncer, Postgres, TcpProxy};

/// Time after which a statement that should stall is taken to stall.
const STALL: Duration = Duration::from_millis(500);
/// Timeout for what happens at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Makes the child test start a server.
const CHILD: &str = "LOANGATE_TEST_POSTGRES_CHILD";

async fn one(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT 1").fetch_one(connection).await
}

#[tokio::test]
async fn databases_are_separate_and_their_role_is_restricted() {
    let Some(server) = Postgres::shared().await else { return };
    let (first, second) = (server.database().await, server.database().await);
    assert_ne!(first.name(), second.name());
    let mut connection = first.connect().await;
    connection.execute("CREATE TABLE t (id int)").await.unwrap();
    assert!(second.connect().await.execute("SELECT * FROM t").await.is_err());
    let mut by_url = PgConnection::connect(&first.url()).await.unwrap();
    by_url.execute("SELECT * FROM t").await.unwrap();
    let is_superuser: String =
        sqlx::query_scalar("SHOW is_superuser").fetch_one(&mut by_url).await.unwrap();
    assert_eq!(is_superuser, "off");
}

#[tokio::test]
async fn database_is_dropped_with_its_connections() {
    let Some(server) = Postgres::shared().await else { return };
    let (database, watcher) = (server.database().await, server.database().await);
    let mut connection = database.connect().await;
    let name = database.name().to_owned();
    drop(database);
    let deadline = Instant::now() + PATIENCE;
    let mut admin = watcher.connect_as_admin().await;
    let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    while sqlx::query_scalar(exists).bind(&name).fetch_one(&mut admin).await.unwrap() {
        assert!(Instant::now() < deadline, "{name} still exists");
        sleep(Duration::from_millis(20)).await;
    }
    one(&mut connection).await.unwrap_err();
}

#[tokio::test]
async fn terminated_backends_are_those_of_one_database() {
    let Some(server) = Postgres::shared().await else { return };
    let (first, second) = (server.database().await, server.database().await);
    let (mut terminated, mut other) = (first.connect().await, second.connect().await);
    assert_eq!(first.terminate_backends().await, 1);
    one(&mut terminated).await.unwrap_err();
    assert_eq!(one(&mut other).await.unwrap(), 1);
}

#[tokio::test]
async fn killed_server_recovers_its_committed_data() {
    let Some(server) = Postgres::start_with(&[("full_page_writes", "off")]).await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let setting: String =
        sqlx::query_scalar("SHOW full_page_writes").fetch_one(&mut connection).await.unwrap();
    assert_eq!(setting, "off");
    connection.execute("CREATE TABLE t (id int)").await.unwrap();
    for stops_cleanly in [false, true] {
        connection.execute("INSERT INTO t VALUES (1)").await.unwrap();
        if stops_cleanly {
            server.stop().await
        } else {
            server.stop_immediately().await
        }
        connection.execute("SELECT 1").await.unwrap_err();
        PgConnection::connect(&database.url()).await.unwrap_err();
        server.restart().await;
        connection = PgConnection::connect(&database.url()).await.unwrap();
    }
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 2);
    assert!(server.log().contains("database system was not properly shut down"));
}

#[tokio::test]
async fn paused_server_stalls_until_it_resumes() {
    let Some(server) = Postgres::start().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    server.pause();
    {
        let mut statement = std::pin::pin!(one(&mut connection));
        timeout(STALL, &mut statement).await.unwrap_err();
        let mut connecting = std::pin::pin!(PgConnection::connect(server_url(&server)));
        timeout(STALL, &mut connecting).await.unwrap_err();
        server.resume();
        assert_eq!(timeout(PATIENCE, statement).await.unwrap().unwrap(), 1);
        timeout(PATIENCE, connecting).await.unwrap().unwrap();
    }
    // A paused server must not delay the end of a test.
    server.pause();
    let folder = server.folder().to_owned();
    drop(database);
    drop(server);
    assert!(!folder.exists());
}

/// Leaks the URL, for a future that borrows it.
fn server_url(server: &Postgres) -> &'static str {
    server.admin_url().leak()
}

#[tokio::test]
async fn pgbouncer_shares_connections_between_transactions() {
    let Some(server) = Postgres::shared().await else { return };
    let Some(bouncer) = PgBouncer::start(server, 2).await else { return };
    let database = server.database().await;
    let options = PgConnectOptions::from_str(&database.url_at(bouncer.port())).unwrap();
    let options = options.extra_float_digits(None);
    let mut clients = Vec::new();
    let mut backends = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let mut client = options.connect().await.unwrap();
        let mut transaction = client.begin().await.unwrap();
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()").persistent(false);
        backends.insert(backend.fetch_one(&mut *transaction).await.unwrap());
        transaction.commit().await.unwrap();
        clients.push(client);
    }
    let backends: Vec<i32> = backends.into_iter().collect();
    assert!(backends.len() <= 2, "{backends:?}");
}

#[tokio::test]
async fn tls_server_requires_tls_by_its_authority() {
    let (authority, other) = (Authority::create(), Authority::create());
    let Some(server) = Postgres::start_with_tls(&authority).await else { return };
    let database = server.database().await;
    let options = PgConnectOptions::from_str(&database.url()).unwrap();
    let verified = options.clone().ssl_mode(PgSslMode::VerifyFull);
    let mut connection = verified.clone().ssl_root_cert(authority.file()).connect().await.unwrap();
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let is_encrypted: bool =
        sqlx::query_scalar(is_encrypted).fetch_one(&mut connection).await.unwrap();
    assert!(is_encrypted);
    verified.ssl_root_cert(other.file()).connect().await.unwrap_err();
    options.ssl_mode(PgSslMode::Disable).connect().await.unwrap_err();
}

#[tokio::test]
async fn proxy_delays_blocks_and_aborts_connections() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let url = database.url_at(proxy.port());
    let mut connection = PgConnection::connect(&url).await.unwrap();

    let delay = Duration::from_millis(100);
    proxy.set(Link::Delayed(delay));
    let began = Instant::now();
    assert_eq!(one(&mut connection).await.unwrap(), 1);
    assert!(began.elapsed() >= 2 * delay, "{:?}", began.elapsed());

    proxy.set(Link::Blocked);
    {
        let mut statement = std::pin::pin!(one(&mut connection));
        timeout(STALL, &mut statement).await.unwrap_err();
        timeout(STALL, PgConnection::connect(&url)).await.unwrap_err();
        proxy.set(Link::Open);
        assert_eq!(timeout(PATIENCE, statement).await.unwrap().unwrap(), 1);
    }

    proxy.abort();
    one(&mut connection).await.unwrap_err();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(one(&mut connection).await.unwrap(), 1);
    proxy.refuse(true);
    PgConnection::connect(&url).await.unwrap_err();
    assert_eq!(one(&mut connection).await.unwrap(), 1);
}

/// A commit whose response is lost has happened, although the client saw an error.
#[tokio::test]
async fn proxy_loses_the_response_to_a_commit() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut direct = database.connect().await;
    direct.execute("CREATE TABLE t (id int)").await.unwrap();
    let proxy = TcpProxy::start(([127, 0, 0, 1], server.port()).into()).await;
    let mut connection = PgConnection::connect(&database.url_at(proxy.port())).await.unwrap();
    connection.execute("BEGIN").await.unwrap();
    connection.execute("INSERT INTO t VALUES (1)").await.unwrap();
    proxy.set_to_client(Link::Blocked);
    let commit = tokio::spawn(async move { connection.execute("COMMIT").await });
    let deadline = Instant::now() + PATIENCE;
    while direct.fetch_all("SELECT * FROM t").await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "no commit");
        sleep(Duration::from_millis(10)).await;
    }
    proxy.abort();
    commit.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn killed_test_process_leaves_nothing_behind() {
    if Postgres::shared().await.is_none() {
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres_support::child_that_starts_a_server", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = OwnedProcess(child);
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let reading = tokio::task::spawn_blocking(move || {
        output.lines().map_while(Result::ok).find_map(|line| {
            let (_, folder) = line.split_once("folder=")?;
            Some(PathBuf::from(folder))
        })
    });
    let folder = timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap();
    assert!(folder.join("data").is_dir());
    assert_ne!(processes_of(&folder), 0);
    child.0.kill().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while folder.exists() || processes_of(&folder) != 0 {
        assert!(Instant::now() < deadline, "{} remains", folder.display());
        sleep(Duration::from_millis(20)).await;
    }
}

/// The process that `killed_test_process_leaves_nothing_behind` kills. Passes if run alone.
#[tokio::test]
async fn child_that_starts_a_server() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Postgres::shared().await.unwrap();
    writeln!(std::io::stdout(), "folder={}", server.folder().display()).unwrap();
    sleep(PATIENCE).await;
}

/// Returns how many processes have this folder in their command line.
fn processes_of(folder: &Path) -> usize {
    let folder = folder.as_os_str().as_encoded_bytes();
    let contains = |text: &[u8]| text.windows(folder.len()).any(|window| window == folder);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let command_lines =
        processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| contains(line)).count()
}
