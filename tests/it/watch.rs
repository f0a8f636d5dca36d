//! The gate's own watch: a problem reaches the list, the command and a webhook, and anybody may
//! read the status.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::alerts::receiver;
use crate::support::scene::Setting;
use crate::support::{BOOK, File, LIBRARY, Scene};

async fn problems(scene: &Scene) -> Vec<Value> {
    let list: Value = scene.admin("/api/v1/problems").await.json().await.unwrap();
    list["problems"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problem_reaches_the_list_the_command_and_a_webhook() {
    let (url, received) = receiver().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let admin = leak(format!("admin = \"127.0.0.1:{port}\""));
    let hook = leak(format!(
        "[[alerts.webhooks]]\nurl = \"{url}\"\n\
         secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n\
         \n[admin]"
    ));
    let config = vec![("admin = \"127.0.0.1:0\"", admin), ("[admin]", hook)];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command.args(["problems", "--config"]).arg(scene.config_file()).output().unwrap()
    };
    assert!(problems(&scene).await.is_empty());
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no problems\n");

    // A balance that fails leaves a difference for a person.
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token("kari")).send().await.unwrap();
    answer.bytes().await.unwrap();
    let borrower = scene.ledger().await[0]["borrower"].as_str().unwrap().to_owned();
    scene.fault(&json!({ "call": "list", "effect": "garbage" })).await;
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let balance = format!("{}/api/v1/balance", scene.admin);
    client.post(balance).bearer_auth(token).send().await.unwrap();
    let is_listed = async || problems(&scene).await.iter().any(|p| p["code"] == "books-unbalanced");
    scene.until("the problem is listed", is_listed).await;
    let listed = problems(&scene).await;
    let problem = listed.iter().find(|problem| problem["code"] == "books-unbalanced").unwrap();
    let server = url::Url::parse(&scene.base).unwrap().port().unwrap();
    assert!(problem["node"].as_str().unwrap().ends_with(&format!(":{server}")), "{problem}");
    assert_eq!(problem["runbook"], "docs/runbook.md#books-unbalanced");
    let text = String::from_utf8(run().stdout).unwrap();
    assert!(text.contains("WARNING books-unbalanced on "), "{text}");

    let sent = async || !received.lock().unwrap().is_empty();
    scene.until("the webhook receives it", sent).await;
    let request = received.lock().unwrap()[0].clone();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    for field in ["webhook-id: msg_", "webhook-timestamp: ", "webhook-signature: v1,"] {
        assert!(head.contains(field), "{head}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["type"], &body["data"]), (&json!("problem.opened"), problem));
    for private in ["kari", LIBRARY, BOOK, borrower.as_str()] {
        assert!(!request.contains(private), "{request}");
    }
    scene.end().await;
}

#[tokio::test]
async fn status_is_open_to_every_page_and_has_no_private_data() {
    let scene = Scene::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(format!("{}/status.json", scene.admin));
    let answer = request.header("host", "status.example.no").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.headers()["cache-control"], "public, max-age=10");
    let status: Value = answer.json().await.unwrap();
    let since = &status["since"];
    let ok = json!({ "status": "ok", "since": since });
    let components = json!({ "reading": ok, "borrowing": ok, "returning": ok });
    let updated = &status["updated"];
    let all = json!({
        "status": "ok", "since": since, "updated": updated, "components": components,
    });
    assert_eq!(status, all);
    scene.end().await;
}

#[tokio::test]
async fn series_show_what_the_gate_has_done() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let path = format!("/files/{BOOK}/book.epub");
    for status in [200, 200, 404] {
        let path = if status == 404 { "/nothing" } else { &path };
        let request = scene.get(&scene.http1(), path, &scene.token("kari"));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status);
        answer.bytes().await.unwrap();
    }
    let points = async || {
        let now: Value = scene.admin("/api/v1/now").await.json().await.unwrap();
        assert_eq!(now["resolution"], 10);
        now["points"].as_array().unwrap().clone()
    };
    // The requests are in one interval or in two.
    let sum = |points: &[Value], value: &dyn Fn(&Value) -> f64| -> f64 {
        points.iter().map(|point| value(point) * point["seconds"].as_f64().unwrap()).sum()
    };
    let bytes = |point: &Value| point["bytes_per_second"].as_f64().unwrap();
    let is_there = async || sum(&points().await, &bytes) > 1999.0;
    scene.until("a point has the bytes", is_there).await;
    let points = points().await;
    assert!((sum(&points, &bytes) - 2000.0).abs() < 0.001, "{points:?}");
    let loans = |point: &Value| point["loans_per_minute"].as_f64().unwrap() / 60.0;
    assert!((sum(&points, &loans) - 1.0).abs() < 0.001, "{points:?}");
    let refused: u64 =
        points.iter().filter_map(|point| point["refusals"]["title-not-found"].as_u64()).sum();
    assert_eq!(refused, 1);
    let origins = |point: &Value| point["origins"]["files"]["answered"].as_u64().unwrap();
    assert!(points.iter().map(origins).sum::<u64>() > 0);
    assert!(points.iter().any(|point| point["latency"]["p99"].as_f64().is_some()));
    scene.end().await;
}
