//! Pruning of old loans while a gate runs. The audit trail verifies before and after.

use std::process::{Command, Output};
use std::time::Duration;

use loangate::clock::{self, Clock};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::{BOOK, File, Postgres, Scene, Setting};

const DAY: Duration = Duration::from_secs(86_400);

fn loangate(scene: &Scene, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(arguments).arg("--config").arg(scene.config_file()).output().unwrap()
}

fn output_text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

async fn borrow(scene: &Scene, borrower: &str) -> u16 {
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_loans_are_pruned_beside_a_running_gate() {
    old_loans_are_pruned(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_loans_are_pruned_beside_a_gate_on_postgres() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    old_loans_are_pruned(Some(&format!("{}?sslmode=disable", database.url()))).await;
}

/// Prunes the loans of a gate with a ledger in this database; in a SQLite file without one.
async fn old_loans_are_pruned(database: Option<&str>) {
    let start = clock::before(Clock::system().now(), 100 * DAY);
    let gate_clock = Clock::movable(start);
    let config = vec![
        ("[readers.jwt]", "[readers]\nmax_lifetime = \"2d\"\n\n[readers.jwt]"),
        ("[privacy]", "[privacy]\nretention = \"30d\""),
    ];
    let setting = Setting { config, clock: gate_clock.clone(), ..Setting::default() };
    let mut scene = Scene::without_gate(setting).await;
    if let Some(url) = database {
        scene.replace_in_config("sqlite:data/loangate.db", url);
        scene.make_config_private();
    }
    scene.start_gate().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    assert_eq!(borrow(&scene, "kari").await, 200);
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(scene.token("kari")).send().await.unwrap();
    scene.until("the loan has ended", async || scene.ledger().await[0]["state"] == "ended").await;

    let before = clock::before(Clock::system().now(), 50 * DAY).to_string();
    let prune = ["ledger", "prune", "--before", &before];
    let pruned = loangate(&scene, &prune);
    assert!(
        pruned.status.success() && output_text(&pruned).contains("pruned 0 loans"),
        "{}",
        output_text(&pruned)
    );
    gate_clock.advance(31 * DAY);
    scene
        .until("kari is forgotten", async || scene.ledger().await[0]["forgotten"].is_string())
        .await;
    assert_eq!(borrow(&scene, "ola").await, 200);
    let pruned = loangate(&scene, &prune);
    assert!(
        pruned.status.success() && output_text(&pruned).contains("pruned 1 loans"),
        "{}",
        output_text(&pruned)
    );
    let left = scene.ledger().await;
    assert!(left.len() == 1 && left[0]["state"] == "accepted", "{left:?}");
    assert_eq!([borrow(&scene, "ola").await, borrow(&scene, "per").await], [200, 200]);
    let verified = loangate(&scene, &["audit", "verify"]);
    assert!(
        verified.status.success() && output_text(&verified).contains("were pruned"),
        "{}",
        output_text(&verified)
    );
    if database.is_some() {
        let said = output_text(&verified);
        // The lists of all libraries' loans are accesses in a chain of their own.
        assert!(said.contains("2 chains in 2 libraries"), "{said}");
        assert!(said.contains("compared with 1 head files in"), "{said}");
    }
    let checked = loangate(&scene, &["ledger", "check"]);
    assert!(
        checked.status.success() && output_text(&checked).contains("is good"),
        "{}",
        output_text(&checked)
    );
    for (date, says) in [("tomorrow", "2026-01-31"), ("2999-01-01", "less than a day ago")] {
        let refused = loangate(&scene, &["ledger", "prune", "--before", date]);
        assert!(
            !refused.status.success() && output_text(&refused).contains(says),
            "{date}: {}",
            output_text(&refused)
        );
    }
    scene.end().await;
}

#[tokio::test]
async fn changed_due_time_is_found_by_both_checks() {
    let mut scene = Scene::start_with(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    assert_eq!(borrow(&scene, "kari").await, 200);
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    scene.stop_gate().await;
    let file = scene.dir.path().join("data/loangate.db");
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query(CHANGE).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert_both_checks_name(&scene, &id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_due_time_on_postgres_is_found_by_both_checks() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut scene = Scene::without_gate(Setting::default()).await;
    let url = format!("{}?sslmode=disable", database.url());
    scene.replace_in_config("sqlite:data/loangate.db", &url);
    scene.make_config_private();
    scene.start_gate().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    assert_eq!(borrow(&scene, "kari").await, 200);
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    scene.stop_gate().await;
    sqlx::query(CHANGE).execute(&mut database.connect().await).await.unwrap();
    assert_both_checks_name(&scene, &id);
}

const CHANGE: &str = "UPDATE loans SET due = due + 86400000";

fn assert_both_checks_name(scene: &Scene, id: &str) {
    for arguments in [["ledger", "check"], ["audit", "verify"]] {
        let checked = loangate(scene, &arguments);
        let said = output_text(&checked);
        assert!(!checked.status.success() && said.contains(id), "{arguments:?}: {said}");
        assert!(said.contains("not as its last step left it"), "{arguments:?}: {said}");
    }
}
