//! Balanced books: every way in which the ledger and Bokbasen's books can differ is found, and repaired by a rule or left
//! for a person; and nothing that is right is touched.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::scene::{Setting, movable};
use crate::support::{BOOK, File, LIBRARY, Scene, metric};

/// Longer than a loan is young, and far shorter than it lasts.
const QUIET: Duration = Duration::from_secs(60);

async fn scene() -> (Scene, Clock) {
    // The command finds the gate by its configuration, so that the port must stand there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let admin: &'static str = Box::leak(format!("admin = \"127.0.0.1:{port}\"").into_boxed_str());
    let (clock, config) = (movable(), vec![("admin = \"127.0.0.1:0\"", admin)]);
    let scene = Scene::set(Setting { config, clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    (scene, clock)
}

async fn read(scene: &Scene, borrower: &str) -> StatusCode {
    let path = format!("/files/{BOOK}/book.epub");
    scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap().status()
}

/// A loan of this borrower, by Bokbasen's id of it.
async fn borrow(scene: &Scene, borrower: &str) -> String {
    assert_eq!(read(scene, borrower).await, StatusCode::OK, "{borrower}");
    scene.books().await.last().unwrap()["loanId"].as_str().unwrap().to_owned()
}

/// Changes Bokbasen's books behind everybody's back: each loan as `change` leaves it, or gone where it says so.
async fn rewrite(scene: &mut Scene, change: impl Fn(&mut Value) -> bool) {
    scene.stop_sandbox().await;
    let file = scene.dir.path().join("sandbox/books.jsonl");
    let mut loans: BTreeMap<String, Value> = BTreeMap::new();
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        loans.insert(entry["loan"]["id"].as_str().unwrap().to_owned(), entry);
    }
    let mut lines = String::new();
    for mut entry in loans.into_values() {
        if change(&mut entry["loan"]) {
            lines += &format!("{entry}\n");
        }
    }
    std::fs::write(&file, lines).unwrap();
    scene.start_sandbox().await;
}

async fn balance(scene: &Scene) -> Value {
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(format!("{}/api/v1/balance", scene.admin)).bearer_auth(token).send().await;
    answer.unwrap().error_for_status().unwrap().json().await.unwrap()
}

/// Kind and what was done, by Bokbasen's id.
fn findings(report: &Value) -> BTreeMap<&str, (&str, &str)> {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let [id, kind, done] = ["lending_id", "kind", "done"].map(|name| finding[name].as_str().unwrap());
            (id, (kind, done))
        })
        .collect()
}

#[tokio::test]
async fn each_difference_is_found_and_repaired_where_a_rule_says_what_is_right() {
    let (mut scene, clock) = scene().await;
    let mut ids = BTreeMap::new();
    for borrower in ["well", "gone", "ended", "refused", "live", "twice", "longer"] {
        ids.insert(borrower, borrow(&scene, borrower).await);
    }
    let token = scene.token("live");
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(&token).send().await.unwrap().error_for_status().unwrap();
    let ledger = async |state: &'static str| {
        let ledger = scene.ledger().await;
        ledger.iter().filter(|loan| loan["state"] == state).count()
    };
    scene.until("it has ended", async || ledger("ended").await == 1).await;

    clock.advance(QUIET);
    let reference = |id: &str, books: &[Value]| {
        books.iter().find(|loan| loan["loanId"] == id).unwrap()["reference"].clone()
    };
    let books = scene.books().await;
    let make = |reference: Option<Value>| {
        let borrower = uuid::Uuid::new_v4().to_string();
        let mut loan =
            json!({ "library": LIBRARY, "isbn": BOOK, "borrower": borrower, "status": "ACCEPTED" });
        if let Some(reference) = reference {
            loan["reference"] = reference;
        }
        loan
    };
    let lost = format!("lg-{}", uuid::Uuid::new_v4().simple());
    for foreign in [make(None), make(Some(reference(&ids["twice"], &books))), make(Some(json!(lost)))] {
        scene.control("POST", "/sandbox/loans", &foreign).await;
    }
    clock.advance(QUIET);
    let named = ids.clone();
    rewrite(&mut scene, move |loan| {
        let id = loan["id"].as_str().unwrap();
        let who = named.iter().find(|(_, other)| *other == id).map(|(borrower, _)| *borrower);
        match who {
            Some("gone") => return false,
            Some("ended") => loan["status"] = json!("RETURNED"),
            Some("refused") => {
                loan["status"] = json!("REFUSED");
                loan["verdict"] =
                    json!({ "refuse": { "code": "BUDGET_EXCEEDED", "message": "", "retry_after": null } });
            }
            Some("live") => {
                loan["status"] = json!("ACCEPTED");
                loan["ended"] = Value::Null;
            }
            Some("longer") => loan["verdict"]["accept"]["due"] = json!("2099-01-01T00:00:00Z"),
            _ => {}
        }
        true
    })
    .await;

    let report = balance(&scene).await;
    let found = findings(&report);
    let books = scene.books().await;
    let twin = books
        .iter()
        .find(|loan| {
            loan["reference"] == reference(&ids["twice"], &books) && loan["loanId"] != ids["twice"].as_str()
        })
        .unwrap();
    let lost = books.iter().find(|loan| loan["reference"] == lost.as_str()).unwrap();
    let expected: BTreeMap<&str, (&str, &str)> = [
        (ids["gone"].as_str(), ("unknown-there", "ended-here")),
        (ids["ended"].as_str(), ("ended-there", "ended-here")),
        (ids["refused"].as_str(), ("ended-there", "ended-here")),
        (ids["live"].as_str(), ("live-there", "ended-there")),
        (ids["longer"].as_str(), ("due-differs", "reported")),
        (twin["loanId"].as_str().unwrap(), ("twice-there", "ended-there")),
        (lost["loanId"].as_str().unwrap(), ("unknown-here", "reported")),
    ]
    .into();
    assert_eq!(found, expected, "{report:#}");
    assert_eq!(
        (&report["balanced"], &report["libraries"][0]["foreign"]),
        (&false.into(), &1.into()),
        "{report:#}"
    );
    let status =
        |id: &str| books.iter().find(|loan| loan["loanId"] == id).map(|loan| loan["status"].clone()).unwrap();
    assert_eq!(status(&ids["live"]), "RETURNED");
    assert_eq!(twin["status"], "CANCELLED", "its licence is free again");
    assert_eq!((status(&ids["twice"]), &lost["status"]), ("ACCEPTED".into(), &"ACCEPTED".into()));

    // What was ended here opens nothing, and what is right goes on.
    for (borrower, status) in [("well", 200), ("twice", 200), ("longer", 200), ("gone", 403), ("ended", 403)]
    {
        assert_eq!(read(&scene, borrower).await.as_u16(), status, "{borrower}");
    }
    let id = report["findings"].as_array().unwrap().iter().find(|of| of["kind"] == "unknown-there").unwrap()
        ["loan"]
        .clone();
    let loan: Value =
        scene.admin(&format!("/api/v1/loans/{}", id.as_str().unwrap())).await.json().await.unwrap();
    assert_eq!(loan["end_reason"], "rejected");
    assert_eq!(loan["history"].as_array().unwrap().last().unwrap()["cause"], "balance", "{loan}");

    // A second look finds nothing but what a person has to see to.
    clock.advance(QUIET);
    let again = balance(&scene).await;
    let kinds: Vec<_> = findings(&again).into_values().collect();
    assert_eq!(kinds.len(), 2, "{again:#}");
    assert!(kinds.iter().all(|(_, done)| *done == "reported"), "{again:#}");
    scene.end().await;
}

#[tokio::test]
async fn a_listing_that_lacks_nearly_everything_is_not_believed_and_one_that_fails_is_no_balance() {
    let (mut scene, clock) = scene().await;
    for number in 0..12 {
        borrow(&scene, &format!("reader-{number}")).await;
    }
    clock.advance(QUIET);
    let books = scene.dir.path().join("sandbox/books.jsonl");
    let whole = std::fs::read(&books).unwrap();
    rewrite(&mut scene, |_| false).await;
    let report = balance(&scene).await;
    let all = report["findings"].as_array().unwrap();
    assert_eq!(all.len(), 12, "{report:#}");
    assert!(all.iter().all(|finding| finding["done"] == "reported" && finding["kind"] == "unknown-there"));
    assert_eq!(metric(&scene.metrics().await, "loangate_balance_unbalanced", ""), 1.0);
    assert_eq!(read(&scene, "reader-1").await, StatusCode::OK, "nothing was ended on its word");

    scene.fault(&json!({ "call": "list", "effect": "garbage" })).await;
    let report = balance(&scene).await;
    assert!(report["libraries"][0]["failed"].as_str().unwrap().contains("cannot be read"), "{report:#}");
    assert_eq!((&report["balanced"], &report["findings"]), (&false.into(), &json!([])));

    scene.stop_sandbox().await;
    std::fs::write(&books, whole).unwrap();
    scene.start_sandbox().await;
    let report = balance(&scene).await;
    assert_eq!((&report["balanced"], &report["findings"]), (&true.into(), &json!([])), "{report:#}");
    scene.end().await;
}

#[tokio::test]
async fn what_changes_at_the_moment_is_left_alone_and_each_night_it_runs_by_itself() {
    let (scene, clock) = scene().await;
    borrow(&scene, "kari").await;
    let report = balance(&scene).await;
    assert_eq!(
        (&report["libraries"][0]["young"], &report["balanced"]),
        (&1.into(), &true.into()),
        "{report:#}"
    );
    let last = async || metric(&scene.metrics().await, "loangate_balance_last_seconds", "");
    let by_hand = last().await;
    clock.advance(Duration::from_secs(86_400));
    scene.until("it ran by itself", async || last().await > by_hand).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_tells_what_differs_and_fails_where_something_is_left() {
    let (mut scene, clock) = scene().await;
    borrow(&scene, "kari").await;
    let gone = borrow(&scene, "ola").await;
    clock.advance(QUIET);
    let run = |scene: &Scene, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command.args(["loans", "balance"]).args(arguments).arg("--config").arg(scene.config_file());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (balanced, said, _) = run(&scene, &[]);
    assert!(balanced && said.contains("lists 2 loans") && said.contains("nothing differs"), "{said}");
    rewrite(&mut scene, move |loan| loan["id"] != gone.as_str()).await;
    let (balanced, said, _) = run(&scene, &[]);
    assert!(balanced && said.contains("unknown-there") && said.contains("ended-here"), "{said}");
    let lost = json!({ "library": LIBRARY, "isbn": BOOK, "status": "ACCEPTED",
        "reference": format!("lg-{}", uuid::Uuid::new_v4().simple()) });
    scene.control("POST", "/sandbox/loans", &lost).await;
    let (balanced, said, errors) = run(&scene, &["--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["findings"][0]["kind"], "unknown-here", "{report:#}");
    assert!(!balanced && errors.contains("do not balance"), "{errors}");
    let (_, _, errors) = run(&scene, &["--since", "yesterday"]);
    assert!(errors.contains("since cannot be read"), "{errors}");
    scene.end().await;
}
