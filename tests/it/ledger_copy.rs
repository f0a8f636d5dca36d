//! `loangate ledger copy` and `loangate demo --ledger` as an operator uses them.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;

use crate::support::{BOOK, Demo, Postgres};

/// Time for what happens within a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `loangate` with the configuration of the demo.
fn loangate(demo: &Demo, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(arguments)
        .arg("--config")
        .arg(demo.dir().join("config.toml"))
        .output()
        .unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Returns the output of a command that succeeds.
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

async fn get_book(demo: &Demo) -> StatusCode {
    let url = format!("{}/files/{BOOK}/book.epub", demo.base());
    demo.client().get(url).bearer_auth(demo.token("kari")).send().await.unwrap().status()
}

async fn loan_ids(demo: &Demo) -> Vec<String> {
    let listing: Value = serde_json::from_str(&demo.admin("/api/v1/loans").await).unwrap();
    let loans = listing["loans"].as_array().unwrap().iter();
    loans.map(|loan| loan["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn demo_continues_in_postgresql_and_back_in_a_file() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut demo = Demo::start();
    assert_eq!(get_book(&demo).await, StatusCode::OK);
    let loans = loan_ids(&demo).await;
    assert_eq!(loans.len(), 1);
    let file = format!("sqlite:{}", demo.dir().join("data/loangate.db").display());
    let postgres = format!("{}?sslmode=disable", database.url());
    let there = ["ledger", "copy", "--from", &file, "--to", &postgres];
    let refused = loangate(&demo, &there);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("stop all gates"), "{}", text(&refused.stderr));

    let began = Instant::now();
    while !demo.dir().join("data/loangate.db.head").exists() {
        assert!(began.elapsed() < PATIENCE, "no head file");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    demo.kill();
    for _ in 0..2 {
        let copied = succeeds(&loangate(&demo, &there));
        assert!(copied.contains("1 loans in state accepted"), "{copied}");
        assert!(copied.contains("copied from SQLite at "), "{copied}");
    }
    // The configuration of the demo names the file, which was moved.
    let prune = ["ledger", "prune", "--before", "2020-01-01"];
    let refused = text(&loangate(&demo, &prune).stderr);
    assert!(refused.contains("was moved to the database"), "{refused}");
    let release = ["ledger", "copy", "--from", &file, "--to", &postgres, "--release-source"];
    let released = succeeds(&loangate(&demo, &release));
    assert!(released.contains("gates may use"), "{released}");
    succeeds(&loangate(&demo, &prune));
    succeeds(&loangate(&demo, &there));
    let mut demo = demo.restart_with(&["--ledger", &postgres]);
    assert_eq!(get_book(&demo).await, StatusCode::OK);
    assert_eq!(loan_ids(&demo).await, loans);

    // Killed, it does not leave: the copy waits for its lease.
    demo.kill();
    let copy = format!("sqlite:{}", demo.dir().join("data/copy.db").display());
    let output = loangate(&demo, &["ledger", "copy", "--from", &postgres, "--to", &copy]);
    let copied = succeeds(&output);
    assert!(copied.contains("copied from PostgreSQL at "), "{copied}");
    assert!(text(&output.stderr).contains("waiting for the leases"), "{}", text(&output.stderr));
    let demo = demo.restart_with(&["--ledger", &copy]);
    assert_eq!(get_book(&demo).await, StatusCode::OK);
    assert_eq!(loan_ids(&demo).await, loans);
    let verified = succeeds(&loangate(&demo, &["audit", "verify"]));
    assert_eq!(verified.matches("copied from").count(), 2, "{verified}");
}
