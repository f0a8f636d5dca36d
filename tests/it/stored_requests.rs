//! Requests in the ledger: each gate explains what another one answered, until the time is over.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::console::Browser;
use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Postgres, Process, Scene, metric};

const STORED: (&str, &str) = ("[tls]", "[server]\nstore_requests = \"24h\"\n\n[tls]");

async fn prepared(setting: Setting) -> Scene {
    let scene = Scene::without_gate(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

/// Makes a request, and returns its id.
async fn read(scene: &Scene, borrower: &str) -> String {
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap();
    answer.headers()["x-request-id"].to_str().unwrap().to_owned()
}

/// Explains a request at the gate with this admin address.
async fn explain(scene: &Scene, admin: &str, id: &str) -> (StatusCode, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{admin}/api/v1/explain")).bearer_auth(scene.admin_token());
    let answer = request.json(&json!({ "request": id })).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// Waits until a gate explains a request that another one answered.
async fn explained(scene: &Scene, admin: &str, id: &str) -> Value {
    let found = async || explain(scene, admin, id).await.0 == StatusCode::OK;
    scene.until("the request is stored", found).await;
    explain(scene, admin, id).await.1
}

/// Two gates on one ledger: the first one answers, and the other one explains.
async fn other_gate_explains(mut scene: Scene) {
    scene.start_gate().await;
    let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE", "message": "Alle er utlånt" } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    let refused = read(&scene, "kari").await;
    scene.no_faults().await;
    let sent = read(&scene, "ola").await;
    let other = Process::serve(&scene.config_file()).await;
    let admin = other.ready_field("admin_url");
    for (id, kind) in [(&refused, Some("loan-refused")), (&sent, None)] {
        let at_other = explained(&scene, &admin, id).await;
        let (_, at_own) = explain(&scene, &scene.admin, id).await;
        assert_eq!(at_other["type"].as_str(), kind, "{at_other}");
        for name in ["status", "reason", "would_begin", "steps", "advice"] {
            assert_eq!(at_other[name], at_own[name], "{name}: {at_other} {at_own}");
        }
        for name in ["id", "method", "library", "borrower", "isbn", "issued"] {
            assert_eq!(at_other["request"][name], at_own["request"][name], "{name}");
        }
        // Of a file that may not be there, only the title is stored.
        let file = if kind.is_some() { "…" } else { "book.epub" };
        assert_eq!(at_other["request"]["path"], format!("/files/{BOOK}/{file}"));
        assert!(!at_other.to_string().contains("kari"), "{at_other}");
    }
    let mut browser = Browser::new(&admin);
    browser.enter(&scene.admin_token()).await;
    let seen = browser.find(&refused, "").await;
    let page = browser.follow(seen).await;
    assert!(page.body.contains("NO_FREE_LICENSE") && page.body.contains("are on loan"));
    let (status, _) = explain(&scene, &admin, "f81d4fae-7dec-41d0-a765-00a0c91e6bf6").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let stored = metric(&scene.metrics().await, "loangate_stored_requests_total", "stored");
    assert!(stored >= 2.0, "{stored}");
    // A gate that has just answered stores its last requests before it ends.
    let last = read(&scene, "liv").await;
    scene.stop_gate().await;
    assert_eq!(explain(&scene, &admin, &last).await.0, StatusCode::OK);
    drop(other);
    scene.start_gate().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_is_explained_by_another_gate_of_a_file() {
    let setting = Setting { config: vec![STORED], ..Setting::default() };
    other_gate_explains(prepared(setting).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_is_explained_by_another_gate_of_a_database() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let setting = Setting { config: vec![STORED], ..Setting::default() };
    let scene = prepared(setting).await;
    scene.use_database(&format!("{}?sslmode=disable", database.url()));
    other_gate_explains(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_request_is_forgotten_after_its_time() {
    let clock = movable_clock();
    let setting = Setting { clock: clock.clone(), config: vec![STORED], ..Setting::default() };
    let mut scene = prepared(setting).await;
    scene.start_gate().await;
    let id = read(&scene, "kari").await;
    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(explain(&scene, &scene.admin, &id).await.0, StatusCode::OK);
    clock.advance(std::time::Duration::from_secs(25 * 3600));
    assert_eq!(explain(&scene, &scene.admin, &id).await.0, StatusCode::NOT_FOUND);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_stored_unless_that_is_configured() {
    let mut scene = prepared(Setting::default()).await;
    scene.start_gate().await;
    let id = read(&scene, "kari").await;
    assert_eq!(explain(&scene, &scene.admin, &id).await.0, StatusCode::OK);
    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(explain(&scene, &scene.admin, &id).await.0, StatusCode::NOT_FOUND);
    scene.end().await;
}
