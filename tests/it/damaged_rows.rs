//! Unreadable rows of the ledger: other loans live and end as usual.

use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use crate::support::{BOOK, File, Scene, Setting, metric};

/// Adds 200 due copies of the one loan with an invalid title, and makes the loan itself due.
const DAMAGE: &str = "CREATE TEMP TABLE copy AS SELECT * FROM loans; \
     WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) \
     INSERT INTO loans (id, library, borrower, isbn, reference, lending_id, state, begun, \
                      accepted, due, changed, owner) \
     SELECT 'damaged-' || i, library, randomblob(16), 7, 'damaged-' || i, 'L' || i, state, begun, \
                      accepted, 1, changed, owner \
     FROM copy, n; UPDATE loans SET due = 2 WHERE isbn > 7";

#[tokio::test]
async fn damaged_due_rows_block_no_good_loan_from_ending() {
    let mut scene = Scene::start_with(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token("kari")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    scene.stop_gate().await;
    let file = scene.dir.path().join("data/loangate.db");
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::raw_sql(DAMAGE).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    scene.start_gate().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while scene.ledger().await.iter().any(|loan| loan["state"] != "ended") {
        assert!(Instant::now() < deadline, "{:?}", scene.ledger().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metric(&scene.metrics().await, "loangate_ledger_damaged_rows", ""), 200.0);
    let ready = scene.admin("/readyz").await;
    assert_eq!(ready.status(), 200);
    let said: Value = ready.json().await.unwrap();
    assert!(
        said["missing"][0].as_str().unwrap().starts_with("200 rows of the ledger are damaged"),
        "{said}"
    );
    scene.stop_gate().await;
}
