//! A pause of lending stops begins, and nothing else.

use std::process::Command;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::external_program::run;
use crate::support::{AUDIO, BOOK, File, Scene};

const ELSEWHERE: &str = "NO-1103000";

async fn ask(scene: &Scene, borrower: &str, library: &str) -> reqwest::Response {
    let token = scene.token_with(&json!({ "sub": borrower, "library": library }));
    scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &token).send().await.unwrap()
}

async fn change(scene: &Scene, action: &str, body: &Value) -> (StatusCode, Value) {
    let response = scene.admin_post(&format!("/api/v1/lending/{action}"), body).await;
    (response.status(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_stops_begins_until_it_is_resumed() {
    let mut scene = Scene::start().await;
    for file in [format!("{BOOK}/book.epub"), format!("{AUDIO}/audio.mp3")] {
        scene.origin.put(&file, File::of(1000));
    }
    assert_eq!(ask(&scene, "kari", "NO-0301000").await.status(), StatusCode::OK);
    let pause = json!({ "library": "NO-0301000", "reason": "the budget is spent" });
    let (status, pauses) = change(&scene, "pause", &pause).await;
    assert_eq!(status, StatusCode::OK, "{pauses}");
    assert_eq!(pauses["pauses"][0]["why"], "the budget is spent", "{pauses}");

    let refused = ask(&scene, "ola", "NO-0301000").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "60");
    let document: Value = refused.json().await.unwrap();
    assert_eq!(document["type"], "lending-paused", "{document}");
    let begin = scene.http1().put(format!("{}/loans/{BOOK}", scene.base));
    let begin = begin.bearer_auth(scene.token("ola")).send().await.unwrap();
    assert_eq!(begin.status(), StatusCode::SERVICE_UNAVAILABLE);
    let question = json!({ "path": format!("/files/{BOOK}/book.epub"), "library": "NO-0301000",
        "borrower": "ola" });
    let explained = scene.admin_post("/api/v1/explain", &question).await;
    let explained: Value = explained.json().await.unwrap();
    assert_eq!(explained["type"], "lending-paused", "{explained}");
    assert_eq!(ask(&scene, "kari", "NO-0301000").await.status(), StatusCode::OK, "a live loan");
    assert_eq!(ask(&scene, "ola", ELSEWHERE).await.status(), StatusCode::OK, "another library");

    // A pause outlives the gate. The reader's loan can still be returned.
    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(ask(&scene, "ola", "NO-0301000").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let loan = format!("{}/loans/{BOOK}", scene.base);
    let give_back = scene.http1().delete(loan).bearer_auth(scene.token("kari"));
    assert_eq!(give_back.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(ask(&scene, "kari", "NO-0301000").await.status(), StatusCode::FORBIDDEN, "ended");
    let begun = scene.books().await.len();
    assert_eq!(begun, 2, "one of each library");

    // The pause of all is another one.
    let everything = json!({ "all": true, "reason": "a fault" });
    assert_eq!(change(&scene, "pause", &everything).await.1["all"], true);
    let (_, left) = change(&scene, "resume", &json!({ "library": "NO-0301000" })).await;
    assert_eq!((&left["all"], left["pauses"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(ask(&scene, "ola", "NO-0301000").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(change(&scene, "resume", &json!({ "all": true })).await.1["all"], false);
    assert_eq!(ask(&scene, "ola", "NO-0301000").await.status(), StatusCode::OK);
    for wrong in [
        json!({}),
        json!({ "reason": "", "all": true }),
        json!({ "reason": "a" }),
        json!({ "reason": "a", "library": null }),
        json!({ "reason": "a", "library": "x" }),
        json!({ "reason": "a", "library": "no-0301000" }),
        json!({ "reason": "a", "library": "NO-0301000", "all": true }),
    ] {
        assert_eq!(change(&scene, "pause", &wrong).await.0, StatusCode::BAD_REQUEST, "{wrong}");
    }
    let accesses: Value = scene.admin("/api/v1/accesses").await.json().await.unwrap();
    assert!(accesses.to_string().contains("\"what\":\"pause-lending\""), "{accesses}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_pauses_lists_and_resumes() {
    let mut scene = Scene::without_gate(crate::support::Setting::default()).await;
    let ports = crate::support::external_program::free_ports(1);
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"127.0.0.1:{ports}\""));
    let _gate = scene.spawn_gate().await;
    let lending = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command.arg("lending").args(arguments).arg("--config").arg(scene.config_file());
        let output = run(&mut command).await;
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(lending(&["list"]).await, (true, "lending is not paused\n".to_owned()));
    assert!(!lending(&["pause", "--reason", "a fault"]).await.0, "it names no library, nor all");
    let (_, paused) = lending(&["pause", "--all", "--reason", "a fault"]).await;
    assert!(paused.starts_with("all libraries paused since 2"), "{paused}");
    assert!(paused.ends_with("by admin token: a fault\n"), "{paused}");
    let problem = async || {
        let problems: Value = scene.admin("/api/v1/problems").await.json().await.unwrap();
        problems.to_string().contains("lending-paused")
    };
    while !problem().await {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let (_, one) = lending(&["pause", "--library", "NO-0301000", "--reason", "b"]).await;
    assert_eq!(one.lines().count(), 2, "{one}");
    let (_, left) = lending(&["resume", "--all"]).await;
    assert!(left.starts_with("NO-0301000 paused"), "{left}");
    scene.end().await;
}
