//! Balance of the ledger with Bokbasen's books: each kind of difference is found, and repaired by a
//! rule or left to a person. Correct loans are not touched.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::bokbasen::Answer;
use crate::support::console::Browser;
use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, Bokbasen, File, LIBRARY, Scene, metric};

/// Longer than a loan counts as too recent, and far shorter than it lasts.
const QUIET: Duration = Duration::from_secs(60);

async fn scene() -> (Scene, Clock) {
    // The command finds the gate by its configuration, which therefore needs the port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let admin: &'static str = Box::leak(format!("admin = \"127.0.0.1:{port}\"").into_boxed_str());
    let (clock, config) = (movable_clock(), vec![("admin = \"127.0.0.1:0\"", admin)]);
    let scene =
        Scene::start_with(Setting { config, clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    (scene, clock)
}

async fn read(scene: &Scene, borrower: &str) -> StatusCode {
    let path = format!("/files/{BOOK}/book.epub");
    scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap().status()
}

/// Begins a loan for this borrower and returns Bokbasen's id of it.
async fn borrow(scene: &Scene, borrower: &str) -> String {
    assert_eq!(read(scene, borrower).await, StatusCode::OK, "{borrower}");
    scene.books().await.last().unwrap()["loanId"].as_str().unwrap().to_owned()
}

/// Rewrites Bokbasen's books while the sandbox is stopped. `change` edits a loan; false removes it.
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

/// Runs a balance when no nightly balance is running.
async fn balance(scene: &Scene) -> Value {
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    loop {
        let request = client.post(format!("{}/api/v1/balance", scene.admin)).bearer_auth(&token);
        let answer = request.send().await.unwrap();
        if answer.status() != StatusCode::CONFLICT {
            return answer.error_for_status().unwrap().json().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns kind and action of each finding, by Bokbasen's id.
fn findings(report: &Value) -> BTreeMap<&str, (&str, &str)> {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let [id, kind, done] =
                ["lending_id", "kind", "done"].map(|name| finding[name].as_str().unwrap());
            (id, (kind, done))
        })
        .collect()
}

#[tokio::test]
async fn balance_finds_each_difference_and_repairs_by_rule() {
    let (mut scene, clock) = scene().await;
    let mut ids = BTreeMap::new();
    for borrower in ["well", "gone", "ended", "refused", "live", "twice", "longer"] {
        ids.insert(borrower, borrow(&scene, borrower).await);
    }
    // A balance ends at most one loan in 20, so three need 60 loans.
    for number in 0..60 {
        borrow(&scene, &format!("other-{number}")).await;
    }
    let token = scene.token("live");
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(&token).send().await.unwrap().error_for_status().unwrap();
    let ledger = async |state: &'static str| {
        let ledger = scene.ledger().await;
        ledger.iter().filter(|loan| loan["state"] == state).count()
    };
    scene.until("the loan has ended", async || ledger("ended").await == 1).await;

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
    for foreign in
        [make(None), make(Some(reference(&ids["twice"], &books))), make(Some(json!(lost)))]
    {
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
                loan["verdict"] = json!({ "refuse":
                        { "code": "BUDGET_EXCEEDED", "message": "", "retry_after": null } });
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
            loan["reference"] == reference(&ids["twice"], &books)
                && loan["loanId"] != ids["twice"].as_str()
        })
        .unwrap();
    let lost = books.iter().find(|loan| loan["reference"] == lost.as_str()).unwrap();
    let expected: BTreeMap<&str, (&str, &str)> = [
        (ids["gone"].as_str(), ("unknown-there", "reported")),
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
    let status = |id: &str| {
        books.iter().find(|loan| loan["loanId"] == id).map(|loan| loan["status"].clone()).unwrap()
    };
    assert_eq!(status(&ids["live"]), "RETURNED");
    assert_eq!(twin["status"], "CANCELLED", "its licence is free again");
    assert_eq!((status(&ids["twice"]), &lost["status"]), ("ACCEPTED".into(), &"ACCEPTED".into()));

    // Ended loans open nothing, and correct ones still do.
    let opens = async |expected: [(&str, u16); 5]| {
        for (borrower, status) in expected {
            assert_eq!(read(&scene, borrower).await.as_u16(), status, "{borrower}");
        }
    };
    opens([("well", 200), ("twice", 200), ("longer", 200), ("gone", 200), ("ended", 403)]).await;
    // A missing loan is ended when a later run finds it missing again.
    clock.advance(QUIET);
    let report = balance(&scene).await;
    assert_eq!(
        findings(&report)[ids["gone"].as_str()],
        ("unknown-there", "ended-here"),
        "{report:#}"
    );
    assert_eq!(read(&scene, "gone").await, StatusCode::FORBIDDEN);
    let id = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["kind"] == "unknown-there")
        .unwrap()["loan"]
        .clone();
    let loan: Value =
        scene.admin(&format!("/api/v1/loans/{}", id.as_str().unwrap())).await.json().await.unwrap();
    assert_eq!(loan["end_reason"], "rejected");
    assert_eq!(loan["history"].as_array().unwrap().last().unwrap()["cause"], "balance", "{loan}");

    // Another run finds only what a person must resolve.
    clock.advance(QUIET);
    let again = balance(&scene).await;
    let kinds: Vec<_> = findings(&again).into_values().collect();
    assert_eq!(kinds.len(), 2, "{again:#}");
    assert!(kinds.iter().all(|(_, done)| *done == "reported"), "{again:#}");
    scene.end().await;
}

#[tokio::test]
async fn balance_distrusts_a_nearly_empty_or_failed_listing() {
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
    assert!(
        all.iter()
            .all(|finding| finding["done"] == "reported" && finding["kind"] == "unknown-there")
    );
    assert_eq!(metric(&scene.metrics().await, "loangate_balance_unbalanced", ""), 1.0);
    assert_eq!(
        read(&scene, "reader-1").await,
        StatusCode::OK,
        "no loan was ended because of this listing"
    );

    scene.fault(&json!({ "call": "list", "effect": "garbage" })).await;
    let report = balance(&scene).await;
    assert!(
        report["libraries"][0]["failed"].as_str().unwrap().contains("cannot be read"),
        "{report:#}"
    );
    assert_eq!((&report["balanced"], &report["findings"]), (&false.into(), &json!([])));

    scene.stop_sandbox().await;
    std::fs::write(&books, whole).unwrap();
    scene.start_sandbox().await;
    let report = balance(&scene).await;
    assert_eq!(
        (&report["balanced"], &report["findings"]),
        (&true.into(), &json!([])),
        "{report:#}"
    );
    scene.end().await;
}

#[tokio::test]
async fn balance_skips_recent_loans_and_runs_each_night() {
    let (scene, clock) = scene().await;
    borrow(&scene, "kari").await;
    let report = balance(&scene).await;
    assert_eq!(
        (&report["libraries"][0]["too_recent"], &report["balanced"]),
        (&1.into(), &true.into()),
        "{report:#}"
    );
    let last = async || metric(&scene.metrics().await, "loangate_balance_last_seconds", "");
    let by_hand = last().await;
    clock.advance(Duration::from_secs(86_400));
    scene.until("the nightly balance has run", async || last().await > by_hand).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balance_command_lists_differences_and_fails_if_any_remain() {
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
    assert!(
        balanced && said.contains("lists 2 loans") && said.contains("nothing differs"),
        "{said}"
    );
    rewrite(&mut scene, move |loan| loan["id"] != gone.as_str()).await;
    let (balanced, said, _) = run(&scene, &[]);
    assert!(!balanced && said.contains("for the first time"), "{said}");
    clock.advance(QUIET);
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

/// Starts a gate behind a proxy that rewrites Bokbasen's responses.
async fn rewritten_scene() -> (Scene, Bokbasen, Clock) {
    let clock = movable_clock();
    let mut scene =
        Scene::without_gate(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let front = scene.rewritten().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.start_gate().await;
    (scene, front, clock)
}

fn is_listing(path: &str) -> bool {
    path.starts_with("/v1/loans?")
}

#[tokio::test]
async fn status_shows_how_far_a_running_balance_is() {
    let (scene, _clock) = scene().await;
    assert_eq!(read(&scene, "kari").await, StatusCode::OK);
    let shown = async || {
        let status: Value = scene.admin("/api/v1/status").await.json().await.unwrap();
        status["balance"].clone()
    };
    assert_eq!(shown().await, Value::Null);
    scene.fault(&json!({ "call": "list", "effect": { "delay": { "ms": 1500 } } })).await;
    let watching = scene.until("a balance that runs", async || shown().await["loans"] == 0);
    let (report, ()) = tokio::join!(balance(&scene), watching);
    assert_eq!(report["libraries"].as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!(shown().await, Value::Null);
    scene.end().await;
}

fn is_by_id(path: &str) -> bool {
    path.starts_with("/v1/loans/")
}

async fn accepted(scene: &Scene) -> usize {
    scene.ledger().await.iter().filter(|loan| loan["state"] == "accepted").count()
}

/// Runs three balances, far enough apart. Checks that each only reports the difference.
async fn ends_nothing(scene: &Scene, clock: &Clock, what: &str, kind: &str) {
    let before = accepted(scene).await;
    for _ in 0..3 {
        clock.advance(QUIET);
        let report = balance(scene).await;
        assert_eq!(accepted(scene).await, before, "{what}: {report:#}");
        assert_eq!(report["balanced"], false, "{what}: {report:#}");
        assert_eq!(
            metric(&scene.metrics().await, "loangate_balance_unbalanced", ""),
            1.0,
            "{what}"
        );
        let found = report["findings"].as_array().unwrap();
        assert!(found.iter().any(|finding| finding["kind"] == kind), "{what}: {report:#}");
        let shown: Value = scene.admin("/api/v1/balance").await.json().await.unwrap();
        assert_eq!(shown, report, "the admin listener shows the last report");
    }
}

/// Runs a balance that finds nothing, since Bokbasen responds correctly again.
async fn balances(scene: &Scene, front: &Bokbasen) {
    front.rewrite(|_, answer| answer);
    let report = balance(scene).await;
    assert_eq!(
        (&report["balanced"], &report["findings"]),
        (&true.into(), &json!([])),
        "{report:#}"
    );
    assert_eq!(metric(&scene.metrics().await, "loangate_balance_unbalanced", ""), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_that_misses_loans_ends_no_good_loan() {
    let (scene, front, clock) = rewritten_scene().await;
    let (client, path) = (scene.http2(), format!("/files/{BOOK}/book.epub"));
    for library in 0..30 {
        let library = format!("NO-03{library:05}");
        let reads = (0..8).map(|number| {
            let token =
                scene.token_with(&json!({ "sub": format!("reader-{number}"), "library": library }));
            scene.get(&client, &path, &token).send()
        });
        for read in futures_util::future::join_all(reads).await {
            assert_eq!(read.unwrap().status(), StatusCode::OK);
        }
    }
    assert_eq!(accepted(&scene).await, 240);
    front.rewrite(|path, answer| match path {
        path if is_listing(path) => Answer { next: None, body: json!([]), ..answer },
        path if is_by_id(path) => Answer::unknown(),
        _ => answer,
    });
    ends_nothing(&scene, &clock, "nothing is listed or known", "unknown-there").await;
    // One loan of each library is listed, and Bokbasen does not know the other seven.
    front.rewrite(|path, mut answer| match path {
        path if is_listing(path) => {
            answer.rows().truncate(1);
            Answer { next: None, ..answer }
        }
        path if is_by_id(path) => Answer::unknown(),
        _ => answer,
    });
    ends_nothing(&scene, &clock, "the listing stops after one row", "unknown-there").await;
    front.rewrite(|path, mut answer| {
        let rows = if is_listing(path) {
            answer.rows().as_mut_slice()
        } else {
            std::slice::from_mut(&mut answer.body)
        };
        rows.iter_mut().for_each(|row| row["status"] = json!("RETURNED"));
        answer
    });
    ends_nothing(&scene, &clock, "every loan is returned, listed and by id", "ended-there").await;
    // One loan of each library is hidden. Each alone may be gone, but all of them exceed the limit.
    front.rewrite(|path, mut answer| {
        if !is_listing(path) {
            return Answer::unknown();
        }
        let rows = answer.rows();
        rows.drain(..rows.len().min(1));
        answer
    });
    for _ in 0..3 {
        clock.advance(QUIET);
        assert_eq!(balance(&scene).await["balanced"], false);
    }
    assert!(
        accepted(&scene).await >= 228,
        "at most one in twenty of all loans per night: {}",
        accepted(&scene).await
    );
    scene.end().await;
}

#[tokio::test]
async fn absence_needs_two_runs_and_other_loans() {
    let (mut scene, front, clock) = rewritten_scene().await;
    let mut ids = Vec::new();
    for number in 0..4 {
        clock.advance(Duration::from_secs(1));
        ids.push(borrow(&scene, &format!("reader-{number}")).await);
    }
    clock.advance(QUIET);
    let hide = |hidden: &[String], listed: bool| {
        let hidden = hidden.to_vec();
        move |path: &str, mut answer: Answer| {
            if is_listing(path) && !listed {
                answer.rows().clear();
            } else if is_listing(path) {
                answer.rows().retain(|row| !hidden.iter().any(|id| row["loanId"] == id.as_str()));
            } else if hidden.iter().any(|id| path.ends_with(id.as_str())) {
                return Answer::unknown();
            }
            answer
        }
    };
    let run = async |scene: &Scene, id: &str| {
        let report = balance(scene).await;
        let found = report["findings"].as_array().unwrap().iter().find(|of| of["lending_id"] == id);
        let found = found.unwrap_or_else(|| panic!("{id}: {report:#}"));
        (found["done"].as_str().unwrap().to_owned(), found["detail"].as_str().unwrap().to_owned())
    };
    let gone = ids[1].clone();
    front.rewrite(hide(&ids[1..2], true));
    let (done, why) = run(&scene, &gone).await;
    assert!(done == "reported" && why.contains("for the first time"), "{why}");
    let (done, why) = run(&scene, &gone).await;
    assert!(
        done == "reported" && why.contains("found absent since"),
        "consecutive runs count as one: {why}"
    );
    // After a run that sees the loan, the next absence is the first again.
    balances(&scene, &front).await;
    clock.advance(QUIET);
    front.rewrite(hide(&ids[1..2], true));
    let (done, why) = run(&scene, &gone).await;
    assert!(done == "reported" && why.contains("for the first time"), "{why}");
    // The same holds after a failed listing, which may have contained the loan.
    clock.advance(QUIET);
    front.rewrite(|path, mut answer| {
        if is_listing(path) {
            answer.status = StatusCode::INTERNAL_SERVER_ERROR;
        }
        answer
    });
    assert!(balance(&scene).await["libraries"][0]["failed"].is_string());
    front.rewrite(hide(&ids[1..2], true));
    let (done, why) = run(&scene, &gone).await;
    assert!(done == "reported" && why.contains("for the first time"), "{why}");
    // A run whose listing has no other loan does not count as the second.
    clock.advance(QUIET);
    front.rewrite(hide(&ids, false));
    assert_eq!(balance(&scene).await["balanced"], false);
    front.rewrite(hide(&ids[1..2], true));
    let (done, why) = run(&scene, &gone).await;
    assert!(done == "reported" && why.contains("for the first time"), "{why}");
    // The first absence is remembered across a restart.
    scene.stop_gate().await;
    scene.start_gate().await;
    clock.advance(QUIET);
    let (done, why) = run(&scene, &gone).await;
    assert!(done == "ended-here", "{why}");
    assert_eq!(read(&scene, "reader-1").await, StatusCode::FORBIDDEN);
    assert_eq!(read(&scene, "reader-2").await, StatusCode::OK);
    // A library with four loans may lose one per night. The next night has an allowance of its own.
    front.rewrite(hide(&ids[1..3], true));
    for _ in 0..2 {
        clock.advance(QUIET);
        let (done, why) = run(&scene, &ids[2]).await;
        assert!(done == "reported" && why.contains("within a night"), "{why}");
    }
    let last = async || metric(&scene.metrics().await, "loangate_balance_last_seconds", "");
    let before = last().await;
    clock.advance(Duration::from_secs(86_400));
    scene
        .until("the nightly balance is the first to find it", async || last().await > before)
        .await;
    assert_eq!(accepted(&scene).await, 3);
    clock.advance(QUIET);
    let (done, why) = run(&scene, &ids[2]).await;
    assert!(done == "ended-here", "{why}");
    scene.gate.unwrap().stop().await; // the hidden loan is still in the books
}

#[tokio::test]
async fn empty_listing_is_no_evidence_of_absence() {
    let (scene, front, clock) = rewritten_scene().await;
    let gone = borrow(&scene, "kari").await;
    clock.advance(QUIET);
    let hidden = gone.clone();
    front.rewrite(move |path, mut answer| {
        if is_listing(path) {
            answer.rows().retain(|row| row["loanId"] != hidden.as_str());
        } else if path.ends_with(&hidden) {
            return Answer::unknown();
        }
        answer
    });
    ends_nothing(&scene, &clock, "the only loan of a library", "unknown-there").await;
    // A later loan is evidence, even when it has ended.
    borrow(&scene, "ola").await;
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(scene.token("ola")).send().await.unwrap();
    let ended = async || scene.ledger().await.iter().any(|loan| loan["state"] == "ended");
    scene.until("the later loan has ended", ended).await;
    clock.advance(QUIET);
    for done in ["reported", "ended-here"] {
        let report = balance(&scene).await;
        assert_eq!(findings(&report)[gone.as_str()], ("unknown-there", done), "{report:#}");
        clock.advance(QUIET);
    }
    scene.gate.unwrap().stop().await; // the hidden loan is still in the books
}

/// Change of one listing row, or of one loan by id.
type Change = fn(&str, &mut Answer);

#[tokio::test]
async fn wrong_rows_are_reported_and_end_nothing() {
    let cases: [(&str, &str, Change); 12] = [
        ("unknown status", "unknown-status", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["status"] = json!("UNDER_REVIEW");
            }
        }),
        ("no reference", "no-reference", |path, answer| {
            if is_listing(path) {
                answer.rows()[0].as_object_mut().unwrap().remove("reference");
            }
        }),
        ("another reference", "row-differs", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["reference"] = json!("portal-7");
            }
        }),
        ("garbage begin", "unreadable-row", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["begin"] = json!("yesterday");
            }
        }),
        ("begin in the future", "row-differs", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["begin"] = json!("9000-01-01T00:00:00Z");
            }
        }),
        ("no due time", "unreadable-row", |path, answer| {
            if is_listing(path) {
                answer.rows()[0].as_object_mut().unwrap().remove("due");
            }
        }),
        ("a row that is no loan", "unreadable-row", |path, answer| {
            if is_listing(path) {
                answer.rows()[0] = json!("loan");
            } else {
                *answer = Answer::unknown();
            }
        }),
        ("another library", "row-differs", |path, answer| {
            if is_listing(path) {
                answer.rows().iter_mut().for_each(|row| row["library"] = json!("NO-9999999"));
            }
        }),
        ("listed twice", "listed-twice", |path, answer| {
            if is_listing(path) {
                let mut again = answer.rows()[0].clone();
                again["status"] = json!("CANCELLED");
                answer.rows().push(again);
            }
        }),
        ("listed as returned", "row-differs", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["status"] = json!("RETURNED");
            }
        }),
        ("not listed, known by id", "not-listed", |path, answer| {
            if is_listing(path) {
                answer.rows().remove(0);
            }
        }),
        ("another id", "row-differs", |path, answer| {
            if is_listing(path) {
                answer.rows()[0]["loanId"] = json!("other");
            } else {
                *answer = Answer::unknown();
            }
        }),
    ];
    let (scene, front, clock) = rewritten_scene().await;
    for number in 0..3 {
        borrow(&scene, &format!("reader-{number}")).await;
    }
    clock.advance(QUIET);
    for (what, kind, change) in cases {
        front.rewrite(move |path, mut answer| {
            // The empty last page is not changed.
            if !is_listing(path) || answer.body.as_array().is_some_and(|rows| !rows.is_empty()) {
                change(path, &mut answer);
            }
            answer
        });
        ends_nothing(&scene, &clock, what, kind).await;
        balances(&scene, &front).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn listing_without_an_end_is_stopped_and_reported() {
    let (scene, front, clock) = rewritten_scene().await;
    borrow(&scene, "kari").await;
    clock.advance(QUIET);
    for (fresh, why) in [(false, "was given before"), (true, "listed before")] {
        let first = std::sync::Mutex::new(None::<Value>);
        let count = std::sync::atomic::AtomicUsize::new(0);
        front.rewrite(move |path, mut answer| {
            if is_listing(path) {
                // The sandbox refuses foreign cursors, so the first page is served again.
                answer.body = first.lock().unwrap().get_or_insert(answer.body).clone();
                answer.status = StatusCode::OK;
                let count = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                answer.next =
                    Some(if fresh { format!("page-{count}") } else { "stuck".to_owned() });
            }
            answer
        });
        let report = balance(&scene).await;
        let failed = report["libraries"][0]["failed"].as_str().unwrap();
        assert!(failed.contains("does not end") && failed.contains(why), "{failed}");
        assert_eq!(report["balanced"], false);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(accepted(&scene).await, 1);
    balances(&scene, &front).await;
    scene.end().await;
}

#[tokio::test]
async fn loan_at_bokbasen_is_ended_only_under_its_own_id() {
    let (scene, front, clock) = rewritten_scene().await;
    let returned = borrow(&scene, "kari").await;
    let good = borrow(&scene, "ola").await;
    let token = scene.token("kari");
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(&token).send().await.unwrap().error_for_status().unwrap();
    let books = scene.books().await;
    let reference =
        books.iter().find(|loan| loan["loanId"] == returned.as_str()).unwrap()["reference"].clone();
    scene
        .until("it has ended", async || {
            scene.ledger().await.iter().any(|loan| loan["state"] == "ended")
        })
        .await;
    clock.advance(QUIET);
    // The listing shows the returned loan as live, under the id of a good loan.
    let id = good.clone();
    front.rewrite(move |path, mut answer| {
        if is_listing(path) {
            answer.rows().retain(|row| row["loanId"] == id.as_str());
            answer.rows().iter_mut().for_each(|row| row["reference"] = reference.clone());
        }
        answer
    });
    for _ in 0..2 {
        let report = balance(&scene).await;
        assert_eq!(report["balanced"], false, "{report:#}");
        clock.advance(QUIET);
    }
    let books = scene.books().await;
    assert_eq!(
        books.iter().find(|loan| loan["loanId"] == good.as_str()).unwrap()["status"],
        "ACCEPTED"
    );
    assert_eq!(read(&scene, "ola").await, StatusCode::OK);
    scene.end().await;
}

/// Marks a loan in the console, with this reason.
async fn mark(scene: &Scene, loan: &str, reason: &str) {
    let mut browser = Browser::sign_in(scene).await;
    browser.post("/purpose", &[("purpose", "case"), ("next", "/")]).await;
    let seen = browser.post(&format!("/loans/{loan}/balance"), &[("reason", "")]).await;
    assert!(seen.location().ends_with("done=reason-missing"), "{}", seen.location());
    let seen = browser.post(&format!("/loans/{loan}/balance"), &[("reason", reason)]).await;
    let page = browser.follow(seen).await.body;
    assert!(page.contains("marked for the next balance") && page.contains(reason), "{page}");
}

/// Returns cause and detail of the last step of a loan.
async fn last_step(scene: &Scene, loan: &str) -> (String, String) {
    let loan: Value = scene.admin(&format!("/api/v1/loans/{loan}")).await.json().await.unwrap();
    let step = loan["history"].as_array().unwrap().last().unwrap();
    let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
    (text("cause"), text("detail"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marked_loan_is_examined_whatever_the_listing_shows() {
    let (scene, front, clock) = rewritten_scene().await;
    let returned = borrow(&scene, "kari").await;
    borrow(&scene, "ola").await;
    let token = scene.token("kari");
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(&token).send().await.unwrap().error_for_status().unwrap();
    scene
        .until("it has ended", async || {
            scene.ledger().await.iter().any(|loan| loan["state"] == "ended")
        })
        .await;
    let loans = scene.ledger().await;
    let of = |state: &str| {
        let loan = loans.iter().find(|loan| loan["state"] == state).unwrap();
        loan["id"].as_str().unwrap().to_owned()
    };
    let (ended, live) = (of("ended"), of("accepted"));
    clock.advance(QUIET);
    // Bokbasen has the returned loan as live, but does not list it.
    let (listed, id) = (returned.clone(), returned.clone());
    front.rewrite(move |path, mut answer| {
        if is_listing(path) {
            answer.rows().retain(|row| row["loanId"] != listed.as_str());
        } else if path == format!("/v1/loans/{id}") {
            answer.body["status"] = json!("ACCEPTED");
            answer.body["due"] = json!("2099-01-01T00:00:00Z");
        }
        answer
    });
    let report = balance(&scene).await;
    assert_eq!(report["findings"], json!([]), "a balance sees what is listed");
    mark(&scene, &ended, "the library sees it in its portal").await;
    mark(&scene, &live, "the reader doubts it").await;
    let expected = ("examination-requested".to_owned(), "the reader doubts it".to_owned());
    assert_eq!(last_step(&scene, &live).await, expected);
    let report = balance(&scene).await;
    let expected = BTreeMap::from([(&*returned, ("live-there", "ended-there"))]);
    assert_eq!(findings(&report), expected, "{report:#}");
    let (cause, found) = last_step(&scene, &ended).await;
    assert_eq!(cause, "examination");
    assert!(found.starts_with("Bokbasen has accepted it, due 2099"), "{found}");
    assert!(found.contains("it is ended here; ended at Bokbasen:"), "{found}");
    let (cause, found) = last_step(&scene, &live).await;
    assert_eq!(cause, "examination");
    assert!(found.ends_with("it is accepted here; no difference"), "{found}");
    // Each is examined once.
    balances(&scene, &front).await;
    assert_eq!(last_step(&scene, &live).await, (cause, found));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marked_loan_waits_until_bokbasen_answers() {
    let (scene, front, clock) = rewritten_scene().await;
    borrow(&scene, "kari").await;
    let loan = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    clock.advance(QUIET);
    mark(&scene, &loan, "a doubt").await;
    front.rewrite(|path, answer| match path {
        path if is_by_id(path) => Answer { status: StatusCode::BAD_GATEWAY, ..answer },
        _ => answer,
    });
    let report = balance(&scene).await;
    assert!(report["libraries"][0]["failed"].is_null(), "the others balance: {report:#}");
    assert_eq!(last_step(&scene, &loan).await.0, "examination-requested");
    // Of another title than it was begun for, its row proves nothing.
    front.rewrite(|path, mut answer| {
        if is_by_id(path) {
            answer.body["isbn"] = json!(AUDIO);
        }
        answer
    });
    clock.advance(QUIET);
    let report = balance(&scene).await;
    assert_eq!(report["findings"][0]["kind"], "row-differs", "{report:#}");
    assert_eq!(report["findings"][0]["done"], "reported", "{report:#}");
    assert_eq!(last_step(&scene, &loan).await.0, "examination");
    mark(&scene, &loan, "another doubt").await;
    // A person decides what Bokbasen alone says.
    front.rewrite(|path, mut answer| {
        if is_by_id(path) {
            answer.body["status"] = json!("RETURNED");
        }
        answer
    });
    clock.advance(QUIET);
    let report = balance(&scene).await;
    assert_eq!(report["findings"][0]["kind"], "ended-there", "{report:#}");
    assert_eq!(report["findings"][0]["done"], "reported", "{report:#}");
    let (cause, found) = last_step(&scene, &loan).await;
    assert_eq!(cause, "examination");
    assert!(found.contains("it is accepted here; reported to the operator"), "{found}");
    assert_eq!(accepted(&scene).await, 1);
    scene.end().await;
}
