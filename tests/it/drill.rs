//! `loangate drill` against a staging gate as a process of its own: sound, and with seeded defects.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::external_program::run;
use crate::support::process::Process;
use crate::support::{AUDIO, File, Scene, Setting};

const FILE_BYTES: u64 = 24 * 1024 * 1024;

async fn scene() -> Scene {
    let scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(FILE_BYTES));
    scene
}

fn drill(scene: &Scene, gate: &Process, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(["drill", "--config"]).arg(scene.config_file());
    command.args(["--path", &format!("/files/{AUDIO}/audio.mp3")]);
    command.args(["--url", &gate.ready_field("base_url")]);
    command.args(["--admin", &gate.ready_field("admin_url")]).args(arguments);
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the sandbox has no fault and these settings.
async fn assert_restored(scene: &Scene, settings: &Value) {
    assert_eq!(scene.sandbox_get("/sandbox/faults").await, json!([]));
    assert_eq!(scene.sandbox_get("/sandbox/settings").await, *settings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_passes_on_a_sound_gate() {
    let mut scene = scene().await;
    let settings = scene.sandbox_get("/sandbox/settings").await;
    relay_storage(&scene);
    let gate = scene.spawn_gate().await;
    let drilled = run(&mut drill(&scene, &gate, &["--json"])).await;
    assert!(drilled.status.success(), "{drilled:?}");
    let result: Value = serde_json::from_slice(&drilled.stdout).unwrap();
    assert_eq!(result["passed"], true, "{result:#}");
    let checks = result["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 12, "{result:#}");
    for check in checks {
        assert!(check["passed"] == true && check["seconds"].is_number(), "{check}");
    }
    assert_restored(&scene, &settings).await;
    let books = scene.books().await;
    assert!(books.len() > 10 && books.iter().all(|loan| loan["status"] != "ACCEPTED"), "{books:?}");
    drop(gate);
    scene.end().await;
}

/// Makes the gate read its storage through the sandbox, and wait for it only shortly.
fn relay_storage(scene: &Scene) {
    let sandbox = scene.sandbox.as_ref().unwrap().url();
    let relayed = format!("url = \"{sandbox}/storage/\"\nfirst_byte = \"2s\"");
    scene.replace_in_config(&format!("url = \"{}/\"", scene.origin.url), &relayed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_finds_a_storage_that_is_not_relayed() {
    // The configuration names the relay, and the running gate reads the storage itself.
    let mut scene = scene().await;
    let gate = scene.spawn_gate().await;
    let skipped = run(&mut drill(&scene, &gate, &[])).await;
    let table = String::from_utf8_lossy(&skipped.stdout);
    assert!(skipped.status.success() && table.contains("skip  slow storage"), "{skipped:?}");
    assert!(table.contains("Start the sandbox with --storage"), "{table}");
    relay_storage(&scene);
    let drilled = run(&mut drill(&scene, &gate, &[])).await;
    let table = String::from_utf8_lossy(&drilled.stdout);
    assert!(table.contains("FAIL  slow storage"), "{table}");
    assert!(table.contains("does not read this file through the sandbox"), "{table}");
    drop(gate);
    scene.end().await;
}

#[cfg(debug_assertions)] // a release has no defects
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_finds_each_seeded_defect() {
    let defects = [
        ("finds-no-loan", "lost answer to a begin"),
        ("accepts-refused-loans", "refused loan"),
        ("sends-no-end", "a loan and its end"),
        ("aborts-no-stream", "loan ended while streaming"),
        ("keeps-duplicates", "duplicate loan"),
    ];
    // At once: a drill waits more than it computes.
    let found = defects.map(|(defect, check)| assert_finds_defect(defect, check));
    futures_util::future::join_all(found).await;
}

#[cfg(debug_assertions)]
async fn assert_finds_defect(defect: &str, check: &str) {
    let mut scene = scene().await;
    let settings = scene.sandbox_get("/sandbox/settings").await;
    let gate = scene.spawn_gate_with("LOANGATE_DEFECT", defect).await;
    let drilled = run(&mut drill(&scene, &gate, &["--patience", "6s"])).await;
    let table = String::from_utf8_lossy(&drilled.stdout);
    assert_eq!(drilled.status.code(), Some(1), "{defect}: {table}{}", errors(&drilled));
    let line = table.lines().find(|line| line.contains(check)).unwrap();
    assert!(line.starts_with("FAIL"), "{defect} is not found by {check}: {table}");
    assert!(errors(&drilled).contains("checks failed"), "{defect}: {}", errors(&drilled));
    assert_restored(&scene, &settings).await;
    drop(gate);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_refuses_what_is_no_sandbox() {
    let mut scene = scene().await;
    let gate = scene.spawn_gate().await;
    let refused = async |why: &str, scene: &Scene| {
        let drilled = run(&mut drill(scene, &gate, &["--patience", "2s"])).await;
        assert_eq!(drilled.status.code(), Some(1), "{drilled:?}");
        assert!(errors(&drilled).contains(why), "not {why}: {}", errors(&drilled));
    };
    let fault = json!({ "call": "begin", "effect": "cut_after" });
    scene.fault(&fault).await;
    refused("has faults already", &scene).await;
    assert_eq!(scene.sandbox_get("/sandbox/faults").await.as_array().unwrap().len(), 1);
    scene.no_faults().await;

    // The running gate has another Bokbasen than the configuration.
    let url = scene.sandbox.as_ref().unwrap().url().to_owned();
    let other = Scene::without_gate(Setting::default()).await;
    let other_url = other.sandbox.as_ref().unwrap().url().to_owned();
    scene.replace_in_config(&url, &other_url);
    refused("does not use the sandbox", &scene).await;
    let begun = scene.books().await;
    assert!(begun.iter().all(|loan| loan["isbn"] != AUDIO), "a real title was lent: {begun:?}");
    assert!(other.books().await.is_empty());

    // A server that is no sandbox, and another machine.
    let origin = scene.origin.url.clone();
    scene.replace_in_config(&other_url, &origin);
    refused("is no sandbox", &scene).await;
    scene.replace_in_config(&origin, "https://api.example.no");
    scene.replace_in_config("settle = \"500ms\"\n", ""); // too short for another machine
    refused("--sandbox-host", &scene).await;
    drop(gate);
    other.end().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_drill_removes_its_faults() {
    let mut scene = scene().await;
    let settings = scene.sandbox_get("/sandbox/settings").await;
    let gate = scene.spawn_gate().await;
    let mut command = drill(&scene, &gate, &[]);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the drill starts");
    scene
        .until("the outage of the drill", || async {
            scene.sandbox_get("/sandbox/settings").await["down"] == true
        })
        .await;
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the drill goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let errors = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&errors.stderr);
    assert!(status.code() == Some(1) && errors.contains("interrupted"), "{status}: {errors}");
    assert_restored(&scene, &settings).await;
    drop(gate);
    scene.end().await;
}
