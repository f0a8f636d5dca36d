//! `loangate ledger restore`: a backup in the place of the ledger begins nothing twice.

use std::process::{Command, Output};

use http::StatusCode;
use serde_json::Value;

use crate::support::external_program::{free_ports, run};
use crate::support::{AUDIO, BOOK, File, Scene, Setting};

async fn ask(scene: &Scene, isbn: &str, borrower: &str) -> (StatusCode, String) {
    let path = format!("/files/{isbn}/file");
    let request = scene.get(&scene.http1(), &path, &scene.token(borrower));
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

async fn loangate(scene: &Scene, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.current_dir(scene.dir.path()).args(arguments);
    run(command.arg("--config").arg(scene.config_file())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_backup_begins_no_lost_loan_again_until_a_person_resumes() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let port = free_ports(1);
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"127.0.0.1:{port}\""));
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/file"), File::of(1000));
    }
    let mut gate = scene.spawn_gate().await;
    assert_eq!(ask(&scene, BOOK, "kari").await.0, StatusCode::OK);
    let backup = loangate(&scene, &["ledger", "backup", "monday.db"]).await;
    assert!(backup.status.success());
    assert_eq!(ask(&scene, AUDIO, "ola").await.0, StatusCode::OK);
    let running = loangate(&scene, &["ledger", "restore", "monday.db"]).await;
    assert!(!running.status.success());
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop the gates first"));
    gate.terminate();
    assert!(gate.exit().await.success());

    let restored = loangate(&scene, &["ledger", "restore", "monday.db"]).await;
    let text = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(text.contains("loangate loans balance --since 2"), "{text}");
    let mut gate = scene.spawn_gate().await;
    assert_eq!(ask(&scene, BOOK, "kari").await.0, StatusCode::OK, "a loan of the backup");
    let (status, problem) = ask(&scene, AUDIO, "ola").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert!(problem.contains("lending-paused"), "{problem}");
    assert_eq!(scene.books().await.len(), 2, "and no second one of the lost loan");
    let since = text.split("--since ").nth(1).unwrap().split('`').next().unwrap();
    let balance = loangate(&scene, &["loans", "balance", "--json", "--since", since]).await;
    assert!(!balance.status.success(), "it is not balanced");
    let report: Value = serde_json::from_slice(&balance.stdout).unwrap();
    let books = scene.books().await;
    let lost = books.iter().find(|loan| loan["isbn"] == AUDIO).unwrap();
    assert!(report.to_string().contains(lost["loanId"].as_str().unwrap()), "{report}");
    let resumed = loangate(&scene, &["lending", "resume", "--all"]).await;
    assert!(resumed.status.success());
    assert_eq!(ask(&scene, AUDIO, "ola").await.0, StatusCode::OK);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.stop_sandbox().await;
}
