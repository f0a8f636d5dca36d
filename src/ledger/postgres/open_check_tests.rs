//! Tests of the judgement of a database, and of the whole check against real servers.

use super::super::test_support::{Node, settings, support};
use super::*;

fn examined(changed: &[(&str, &str)]) -> Examined {
    let mut parameters: HashMap<String, String> = [
        ("server_version_num", "150000"),
        ("server_version", "15.0"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("server_encoding", "UTF8"),
        ("log_statement", "ddl"),
        ("log_min_duration_statement", "-1"),
        ("log_min_duration_sample", "-1"),
        ("log_parameter_max_length", "-1"),
        ("max_connections", "100"),
        ("superuser_reserved_connections", "3"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for (name, value) in changed {
        parameters.insert((*name).to_owned(), (*value).to_owned());
    }
    Examined { accepts_writes: true, parameters, refusal: None }
}

fn findings(changed: &[(&str, &str)]) -> Vec<DatabaseFinding> {
    let settings = settings("postgres://u@localhost/x?sslmode=disable");
    judge(&settings, "db:5432", &examined(changed))
}

fn failures(findings: &[DatabaseFinding]) -> Vec<&str> {
    let failed = findings.iter().filter_map(|finding| match finding {
        Failed(sentence) => Some(sentence.as_str()),
        _ => None,
    });
    failed.collect()
}

#[test]
fn server_that_can_lose_loans_is_rejected() {
    let good = findings(&[]);
    assert!(good.iter().all(|finding| matches!(finding, Good(_))), "{good:?}");
    for name in ["fsync", "full_page_writes", "synchronous_commit"] {
        let found = findings(&[(name, "off")]);
        let failed = failures(&found);
        assert!(failed.len() == 1 && failed[0].contains(&format!("{name} = off")), "{failed:?}");
    }
    let local = findings(&[("synchronous_commit", "local")]);
    assert!(failures(&local)[0].contains("synchronous_commit = local"), "{local:?}");
    assert!(failures(&findings(&[("synchronous_commit", "remote_apply")])).is_empty());
    let old = findings(&[("server_version_num", "130014"), ("server_version", "13.14")]);
    assert!(failures(&old)[0].contains("Install version 14"), "{old:?}");
}

#[test]
fn database_with_another_encoding_is_rejected() {
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let found = findings(&[("server_encoding", encoding)]);
        let failed = failures(&found);
        assert!(failed.len() == 1 && failed[0].contains(encoding), "{failed:?}");
    }
}

#[test]
fn log_with_parameters_of_statements_is_a_warning() {
    let doubts = |changed: &[(&str, &str)]| {
        let found = findings(changed);
        let doubtful = found.iter().filter_map(|finding| match finding {
            Doubtful(sentence) => Some(sentence.clone()),
            _ => None,
        });
        doubtful.collect::<Vec<_>>()
    };
    for (parameter, value) in [
        ("log_statement", "all"),
        ("log_statement", "mod"),
        ("log_min_duration_statement", "0"),
        ("log_min_duration_sample", "250"),
    ] {
        let found = doubts(&[(parameter, value)]);
        assert!(found.len() == 1 && found[0].contains(&format!("{parameter} = {value}")));
        let quiet = [(parameter, value), ("log_parameter_max_length", "0")];
        assert_eq!(doubts(&quiet), Vec::<String>::new());
    }
}

#[test]
fn connections_are_compared_with_those_of_the_server() {
    let last = |most: &str| findings(&[("max_connections", most)]).pop().unwrap();
    assert!(matches!(last("22"), Failed(sentence) if sentence.contains("share 19")));
    assert!(matches!(last("23"), Doubtful(sentence) if sentence.contains("not for a second")));
    assert!(matches!(last("103"), Good(sentence) if sentence.contains("5 gates")));
}

#[tokio::test]
async fn real_server_is_found_fit_and_an_unsafe_one_is_not() {
    let Some(server) = support::Postgres::shared().await else { return };
    let database = server.database().await;
    let found = check_database(&settings(&database.url())).await;
    assert_eq!(failures(&found.url), Vec::<&str>::new());
    assert!(matches!(&found.url[0], Good(sentence) if sentence.contains("accepts writes")));
    let mut admin = database.connect_as_admin().await;
    let examined = examine(database.connect().await).await.unwrap();
    for name in ["server_encoding", "log_statement", "log_parameter_max_length"] {
        assert_ne!(examined.text(name), "unknown", "{name}");
    }
    let name = database.name();
    for sql in [
        format!("ALTER DATABASE \"{name}\" SET synchronous_commit = off"),
        format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on"),
    ] {
        let unsafe_sql = sqlx::AssertSqlSafe(sql.clone());
        sqlx::raw_sql(unsafe_sql).execute(&mut admin).await.unwrap();
        let found = check_database(&settings(&database.url())).await.url;
        let failed = failures(&found);
        let expected = if sql.contains("read_only") { "accepts writes" } else { "can lose loans" };
        assert!(failed.len() == 1 && failed[0].contains(expected), "{failed:?}");
    }
}

#[tokio::test]
async fn ledger_that_no_gate_may_open_is_found() {
    let Some(server) = support::Postgres::shared().await else { return };
    let database = server.database().await;
    let _heads = Node::open(&database).await.close().await;
    let mut connection = database.connect().await;
    for (name, expected) in [("moved", "was moved"), ("copy in progress", "copy")] {
        let mark = "INSERT INTO meta (name, value) VALUES ($1, '')";
        sqlx::query(mark).bind(name).execute(&mut connection).await.unwrap();
        let found = check_database(&settings(&database.url())).await.url;
        let failed = failures(&found);
        assert!(failed.len() == 1 && failed[0].contains(expected), "{failed:?}");
    }
}

#[tokio::test]
async fn table_of_another_program_is_no_ledger() {
    let Some(server) = support::Postgres::shared().await else { return };
    for table in ["meta", "loans"] {
        let database = server.database().await;
        let other = sqlx::AssertSqlSafe(format!("CREATE TABLE {table} (id bigint)"));
        sqlx::raw_sql(other).execute(&mut database.connect().await).await.unwrap();
        let found = check_database(&settings(&database.url())).await.url;
        assert_eq!(failures(&found), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn dead_host_beside_a_live_one_is_a_warning() {
    let Some(server) = support::Postgres::shared().await else { return };
    let database = server.database().await;
    let url = database.url().replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:");
    let found = check_database(&settings(&url)).await.url;
    assert_eq!(failures(&found), Vec::<&str>::new());
    let doubts = found.iter().filter(|finding| matches!(finding, Doubtful(_))).count();
    assert_eq!(doubts, 1, "{found:?}");
    let dead = check_database(&settings("postgres://u@127.0.0.1:1/x?sslmode=disable")).await.url;
    assert!(failures(&dead)[0].contains("127.0.0.1:1: "), "{dead:?}");
}
