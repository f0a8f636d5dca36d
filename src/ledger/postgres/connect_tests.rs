//! Tests of the choice of the host and of TLS, against real servers.

use super::super::test_support::{settings, support};
use super::*;
use support::{Authority, Database, Link, Postgres, TcpProxy};

async fn connect(url: &str) -> Result<PgConnection, String> {
    let connector = Connector::new(&settings(url));
    connector.connect(Purpose::Command).await.map_err(|error| phrase(&error))
}

/// Returns the URL with more hosts before its own.
fn behind(url: &str, hosts: &str) -> String {
    let (credentials, rest) = url.rsplit_once('@').unwrap();
    format!("{credentials}@{hosts},{rest}")
}

async fn name(connection: &mut PgConnection) -> String {
    let query = sqlx::query_scalar("SELECT current_setting('application_name')");
    query.persistent(false).fetch_one(connection).await.unwrap()
}

async fn set_read_only(database: &Database, value: &str) {
    let mut admin = database.connect_as_admin().await;
    let name = database.name();
    // The database may be read-only for this connection too.
    let allow = sqlx::raw_sql("SET default_transaction_read_only = off");
    allow.execute(&mut admin).await.unwrap();
    let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
}

#[tokio::test]
async fn dead_host_is_skipped_and_the_good_one_remembered() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let connector = Connector::new(&settings(&behind(&database.url(), "127.0.0.1:1")));
    let mut connection = connector.connect(Purpose::Lease).await.unwrap();
    assert_eq!(name(&mut connection).await, "loangate lease");
    assert_eq!(connector.route.preferred.load(Ordering::Relaxed), 1);
    assert!(connector.connect(Purpose::Reads).await.is_ok());
    let shown = format!("{connector:?}");
    assert!(shown.contains("127.0.0.1:1") && !shown.contains(database.name()), "{shown}");
}

#[tokio::test]
async fn read_only_host_is_passed_over() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    set_read_only(&database, "on").await;
    let error = connect(&database.url()).await.unwrap_err();
    assert!(error.contains("accepts no writes"), "{error}");
    // The other host is the same server through a proxy that aborts the first connection.
    let target = format!("127.0.0.1:{}", server.port()).parse().unwrap();
    let proxy = TcpProxy::start(target).await;
    let url = behind(&database.url(), &format!("127.0.0.1:{}", proxy.port()));
    let connector = Connector::new(&settings(&url));
    let error = phrase(&connector.connect(Purpose::Reads).await.unwrap_err());
    assert_eq!(error.matches("accepts no writes").count(), 2, "{error}");
    set_read_only(&database, "off").await;
    proxy.refuse(true);
    connector.connect(Purpose::Reads).await.unwrap();
    assert_eq!(connector.route.preferred.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn silent_host_leaves_time_for_the_next() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let target = format!("127.0.0.1:{}", server.port()).parse().unwrap();
    let proxy = TcpProxy::start(target).await;
    proxy.set(Link::Blocked);
    let silent = format!("127.0.0.1:{}", proxy.port());
    let began = Instant::now();
    connect(&behind(&database.url(), &silent)).await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(2), "{took:?}");
    let began = Instant::now();
    let error = connect(&database.url_at(proxy.port())).await.unwrap_err();
    assert!(error.contains("no response within") && error.contains(&silent), "{error}");
    assert!(began.elapsed() < Duration::from_millis(5500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn silent_host_hides_no_other_from_impatient_callers() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let target = format!("127.0.0.1:{}", server.port()).parse().unwrap();
    let proxy = TcpProxy::start(target).await;
    proxy.set(Link::Blocked);
    let url = behind(&database.url(), &format!("127.0.0.1:{}", proxy.port()));
    let patient = format!("{url}?sslmode=disable&connect_timeout=30");
    let began = Instant::now();
    connect(&patient).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let connector = Connector::new(&settings(&patient));
    let impatient = timeout(Duration::from_millis(100), connector.connect(Purpose::Reads));
    assert!(impatient.await.is_err());
    let began = Instant::now();
    connector.connect(Purpose::Reads).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn tls_verifies_the_certificate_and_the_name() {
    let authority = Authority::create();
    let Some(server) = Postgres::start_with_tls(&authority).await else { return };
    let database = server.database().await;
    let right = authority.file().to_str().unwrap().to_owned();
    let other = Authority::create();
    let wrong = other.file().to_str().unwrap();
    let url =
        |host: &str, query: &str| format!("{}?{query}", database.url().replace("127.0.0.1", host));
    for host in ["127.0.0.1", "localhost"] {
        connect(&url(host, &format!("sslrootcert={right}"))).await.unwrap();
    }
    // The server listens on 127.0.0.1 only. Its certificate does not name this other address.
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let elsewhere = listener.local_addr().unwrap().to_string();
    let original = format!("127.0.0.1:{}", server.port());
    let target = original.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = tokio::net::TcpStream::connect(&target).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    let wrong_name = url("127.0.0.1", &format!("sslrootcert={right}"));
    for (url, expected) in [
        (wrong_name.replace(&original, &elsewhere), "not valid for"),
        (url("127.0.0.1", &format!("sslrootcert={wrong}")), "invalid peer certificate"),
        (url("127.0.0.1", "sslrootcert=system"), "UnknownIssuer"),
        (url("127.0.0.1", "sslmode=disable"), "no encryption"),
    ] {
        let error = connect(&url).await.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn server_without_tls_is_rejected() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let error = connect(&format!("{}?sslmode=verify-full", database.url())).await.unwrap_err();
    assert!(error.contains("server does not support TLS"), "{error}");
}

#[tokio::test]
async fn migrations_connect_directly() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut settings = settings("postgres://gate@127.0.0.1:1/pooler");
    let direct = super::super::test_support::settings(&database.url()).endpoint;
    settings.direct = Some(Box::new(direct));
    let connector = Connector::new(&settings);
    connector.connect(Purpose::Migrations).await.unwrap();
    assert!(connector.connect(Purpose::Writes).await.is_err());
}
