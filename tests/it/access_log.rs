//! `[access_log]`: a line for each answered request, in a file that may be rotated, and requests
//! that go on when it cannot be written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use http::StatusCode;
use http::header::{AUTHORIZATION, RANGE};
use loangate::clock::Clock;
use serde_json::Value;

use crate::support::{BOOK, File, Process, Scene, Setting, metric};

const FILE: &str = "access.log";
const RELOADS: &str = "loangate_reloads_total";
const LOST: &str = "loangate_access_lines_lost_total";

/// Starts a gate whose configuration has this table.
async fn gate_with(table: &str) -> (Scene, Process) {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.replace_in_config("[ledger]", &format!("[access_log]\n{table}\n\n[ledger]"));
    let gate = scene.spawn_gate().await;
    (scene, gate)
}

async fn end(scene: Scene, mut gate: Process) {
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

fn log_of(scene: &Scene) -> PathBuf {
    scene.dir.path().join(FILE)
}

fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until the file has this many lines, and returns them.
async fn until_written(scene: &Scene, log: &Path, count: usize) -> Vec<Value> {
    scene.until("written", || async { lines(log).len() >= count }).await;
    let lines = lines(log);
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// Requests the file as this borrower. Returns the status and the id of the request.
async fn ask(scene: &Scene, borrower: &str) -> (StatusCode, String) {
    let path = format!("/files/{BOOK}/book.epub?note=private-words");
    let request = scene.get(&scene.http2(), &path, &scene.token(borrower));
    let response = request.header(RANGE, "bytes=0-99").send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let status = response.status();
    response.bytes().await.unwrap();
    (status, id)
}

async fn refused(scene: &Scene) {
    let url = format!("{}/files/{BOOK}/book.epub", scene.base);
    let request = scene.http1().get(url).header(AUTHORIZATION, "Bearer private.token.here");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn each_request_has_a_line_with_the_chosen_fields_and_no_secret() {
    let (scene, gate) = gate_with("to = \"./access.log\"").await;
    let (status, id) = ask(&scene, "kari-nordmann").await;
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    let log = log_of(&scene);
    let first = until_written(&scene, &log, 1).await.remove(0);
    assert_eq!(first["id"], id);
    assert_eq!((&first["status"], &first["bytes"]), (&206.into(), &100.into()));
    assert_eq!((&first["method"], &first["version"]), (&"GET".into(), &"HTTP/2.0".into()));
    assert_eq!((&first["range"], &first["via"]), (&"bytes=0-99".into(), &"registered".into()));
    assert_eq!((&first["isbn"], &first["end"]), (&BOOK.into(), &"complete".into()));
    assert!(first["total_us"].as_u64() >= first["head_us"].as_u64(), "{first}");
    let age =
        Clock::system().now().duration_since(first["time"].as_str().unwrap().parse().unwrap());
    assert!((0..600).contains(&age.as_secs()), "{first}");
    assert!(first.get("client").is_none(), "not unless it is chosen: {first}");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o640);
    refused(&scene).await;
    let both = until_written(&scene, &log, 2).await;
    assert_eq!(both[1]["outcome"], "reader-unauthenticated");
    // Of its own, and not also in the log of the process.
    assert!(!fs::read_to_string(&gate.log).unwrap().contains(&id));

    // Other fields, by a reload.
    scene.replace_in_config(
        "to = \"./access.log\"",
        "to = \"./access.log\"\nfields = [\"status\", \"client\"]\nformat = \"text\"",
    );
    gate.reload();
    scene
        .until("reloaded", || async { metric(&scene.metrics().await, RELOADS, "applied") == 1.0 })
        .await;
    ask(&scene, "kari-nordmann").await;
    let text = || fs::read_to_string(&log).unwrap();
    scene.until("written", || async { text().lines().count() == 3 }).await;
    assert_eq!(text().lines().last(), Some("status=206 client=127.0.0.1"));
    for secret in ["kari", "private", "book.epub", "eyJ"] {
        assert!(!text().contains(secret), "{secret}: {}", text());
    }
    end(scene, gate).await;
}

#[tokio::test]
async fn rotated_file_loses_no_line_even_if_the_reload_finds_a_mistake() {
    let (scene, gate) = gate_with("to = \"./access.log\"").await;
    let (log, rotated) = (log_of(&scene), scene.dir.path().join("access.log.1"));
    let mut ids = vec![ask(&scene, "kari").await.1];
    until_written(&scene, &log, 1).await;
    fs::rename(&log, &rotated).unwrap();
    ids.push(ask(&scene, "kari").await.1);
    until_written(&scene, &rotated, 2).await;
    scene.replace_in_config("[ledger]", "[nonsense]\n[ledger]");
    gate.reload();
    scene
        .until("refused", || async { metric(&scene.metrics().await, RELOADS, "refused") == 1.0 })
        .await;
    ids.push(ask(&scene, "kari").await.1);
    until_written(&scene, &log, 1).await;
    let written = [lines(&rotated), lines(&log)].concat();
    let written: Vec<_> = written.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(written, ids);
    scene.replace_in_config("[nonsense]\n[ledger]", "[ledger]");
    end(scene, gate).await;
}

#[tokio::test]
async fn only_the_chosen_classes_and_share_are_written() {
    let table = "to = \"./access.log\"\nstatuses = [\"2xx\", \"4xx\"]\nsample = 0";
    let (scene, gate) = gate_with(table).await;
    ask(&scene, "kari").await;
    refused(&scene).await;
    let written = until_written(&scene, &log_of(&scene), 1).await;
    assert_eq!(written[0]["status"], 401, "a part of nothing, and all errors");
    end(scene, gate).await;
}

#[tokio::test]
async fn last_lines_are_written_before_the_process_ends() {
    let (scene, mut gate) = gate_with("to = \"./access.log\"").await;
    let client = scene.http2();
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    for _ in 0..100 {
        let response = scene.get(&client, &path, &token).send().await.unwrap();
        response.bytes().await.unwrap();
    }
    let log = log_of(&scene);
    gate.terminate();
    assert!(gate.exit().await.success());
    assert_eq!(lines(&log).len(), 100);
    scene.end().await;
}

#[tokio::test]
async fn full_disk_costs_lines_but_no_request() {
    let (scene, gate) = gate_with("to = \"/dev/full\"").await;
    for _ in 0..3 {
        assert_eq!(ask(&scene, "kari").await.0, StatusCode::PARTIAL_CONTENT);
    }
    let lost = || async { metric(&scene.metrics().await, LOST, "") };
    scene.until("counted", || async { lost().await == 3.0 }).await;
    assert!(fs::read_to_string(&gate.log).unwrap().contains("the access log cannot be written"));
    // Another file, without a restart.
    scene.replace_in_config("to = \"/dev/full\"", "to = \"./access.log\"");
    gate.reload();
    scene
        .until("reloaded", || async { metric(&scene.metrics().await, RELOADS, "applied") == 1.0 })
        .await;
    ask(&scene, "kari").await;
    until_written(&scene, &log_of(&scene), 1).await;
    end(scene, gate).await;
}
