//! Crashes at each point: before and after every commit and every call to Bokbasen, of begin,
//! settle and end.
//!
//! After each crash the gate restarts on the same ledger. In the end there is one loan that a
//! reader requested, in the ledger and at Bokbasen. An ended loan stays ended, and no old token
//! opens it. The crash points exist in debug builds only (`src/crash.rs`).
#![cfg(debug_assertions)]

use std::os::unix::process::ExitStatusExt;

use http::StatusCode;
use loangate::sandbox::{Bounds, Library, Licence, Title, World};
use serde_json::{Value, json};

use crate::kills::until_served;
use crate::support::{BOOK, File, LIBRARY, Process, Scene, Setting};

const PATH: &str = "/files/9788299999014/book.epub";
const SIGABRT: i32 = 6;

/// Returns the crash points before and after each action.
fn both(actions: &[&str]) -> Vec<String> {
    actions.iter().flat_map(|deed| [format!("{deed} before"), format!("{deed} after")]).collect()
}

/// Starts a scene whose begins take effect and are listed late, within `lending.settle` (500 ms).
async fn scene(pending_polls: u32, faults: &Value) -> Scene {
    let bounds = Bounds { list_lag_ms: 60, post_bound_ms: 60, pending_polls, ..Bounds::quick() };
    scene_of(Setting { bounds, ..Setting::default() }, faults).await
}

async fn scene_of(setting: Setting, faults: &Value) -> Scene {
    let scene = Scene::without_gate(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    if faults.as_array().is_none_or(|faults| !faults.is_empty()) {
        scene.fault(faults).await;
    }
    scene
}

/// Waits until the gate has crashed at this point.
async fn died(gate: &mut Process, place: &str) {
    assert_eq!(gate.exit().await.signal(), Some(SIGABRT), "{place} was not reached");
}

async fn stop(mut gate: Process, scene: Scene) {
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Requests the book until the gate crashes at this point, then again. Returns the books.
async fn crash_during_begin(mut scene: Scene, place: &str) -> Vec<Value> {
    let token = scene.token("kari");
    let mut gate = scene.spawn_gate_until(place).await;
    let asking = tokio::spawn(scene.get(&scene.http1(), PATH, &token).send());
    died(&mut gate, place).await;
    let answer = asking.await.unwrap();
    assert!(answer.is_err(), "{place}: the reader was served before the crash");
    let gate = scene.spawn_gate().await;
    until_served(scene.get(&scene.http2(), PATH, &token)).await;
    let books = scene.books().await;
    let accepted = books.iter().filter(|loan| loan["status"] == "ACCEPTED").count();
    let live = books.iter().filter(|loan| loan["status"] == "PENDING").count() + accepted;
    assert_eq!((live, accepted), (1, 1), "{place}: {books:#?}");
    let ledger = scene.ledger().await;
    assert_eq!(
        ledger.iter().filter(|loan| loan["state"] == "accepted").count(),
        1,
        "{place}: {ledger:#?}"
    );
    stop(gate, scene).await;
    books
}

#[tokio::test]
async fn begin_leaves_one_loan_after_a_crash_at_each_point() {
    for place in
        both(&["commit intended", "send begin", "commit begun", "send loan", "commit accepted"])
    {
        let books = crash_during_begin(scene(1, &json!([])).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: not exactly one loan: {books:#?}");
    }
}

#[tokio::test]
async fn settling_leaves_one_loan_after_a_crash_at_each_point() {
    let lost = json!({ "call": "begin", "times": 1, "effect": "cut_after" });
    for place in both(&["commit lost", "send find", "commit accepted"]) {
        let books = crash_during_begin(scene(0, &lost).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: {books:#?}");
    }
    for place in both(&["commit begun"]) {
        let books = crash_during_begin(scene(5, &lost).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: {books:#?}");
    }
    let never_made = json!({ "call": "begin", "times": 1, "effect": "cut_before" });
    for place in both(&["send find", "commit not-found"]) {
        let books = crash_during_begin(scene(0, &never_made).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: not begun again exactly once: {books:#?}");
    }
}

#[tokio::test]
async fn recovery_leaves_one_loan_after_a_crash_at_each_point() {
    for place in both(&["commit adopted", "commit lost", "send find", "commit accepted"]) {
        let mut scene = scene(0, &json!([])).await;
        let mut gate = scene.spawn_gate_until("send begin after").await;
        let token = scene.token("kari");
        let asking = tokio::spawn(scene.get(&scene.http1(), PATH, &token).send());
        died(&mut gate, "send begin after").await;
        assert!(asking.await.unwrap().is_err());
        // This process crashes without a request, perhaps before it is ready.
        let status = Process::serve_until_death(&scene.config_file(), &place).await;
        assert_eq!(status.signal(), Some(SIGABRT), "{place} was not reached");
        let gate = scene.spawn_gate().await;
        until_served(scene.get(&scene.http2(), PATH, &token)).await;
        let books = scene.books().await;
        assert_eq!(
            (books.len(), &books[0]["status"]),
            (1, &"ACCEPTED".into()),
            "{place}: {books:#?}"
        );
        stop(gate, scene).await;
    }
}

#[tokio::test]
async fn duplicate_loan_is_returned_despite_a_crash_at_each_point() {
    let twice = json!([
        { "call": "begin", "times": 1, "effect": "duplicate" },
        { "call": "begin", "times": 1, "effect": "cut_after" },
    ]);
    for place in both(&["send cancel"]) {
        let books = crash_during_begin(scene(0, &twice).await, &place).await;
        assert_eq!(books.len(), 2, "{place}: {books:#?}");
        assert!(books.iter().any(|loan| loan["status"] == "CANCELLED"), "{place}: {books:#?}");
    }
}

#[tokio::test]
async fn crash_between_two_licences_leaves_one_loan() {
    for place in both(&["send availability", "commit declined"]) {
        let licences =
            vec![Licence::new("L-1", "PACKAGE", None), Licence::new("L-2", "IMPORTED", None)];
        let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
        let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
        let setting = Setting {
            world: World { libraries: vec![library], titles: vec![title], ..World::default() },
            // Time for which a settled refusal holds.
            config: vec![(
                "[ledger]",
                "[gate]\nrefusal_ttl = \"100ms\"\n\n[licences]\norder = [\"PACKAGE\", \
                 \"IMPORTED\"]\n\n[ledger]",
            )],
            ..Setting::default()
        };
        let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE", "retry_after": 0 } });
        let scene =
            scene_of(setting, &json!({ "call": "begin", "times": 1, "effect": refuse })).await;
        let books = crash_during_begin_or_refusal(scene, &place).await;
        let accepted = books.iter().filter(|loan| loan["status"] == "ACCEPTED").count();
        assert_eq!(accepted, 1, "{place}: {books:#?}");
    }
}

/// Like [`crash_during_begin`], where a refusal may be the result for a moment.
async fn crash_during_begin_or_refusal(mut scene: Scene, place: &str) -> Vec<Value> {
    let token = scene.token("kari");
    let mut gate = scene.spawn_gate_until(place).await;
    let asking = tokio::spawn(scene.get(&scene.http1(), PATH, &token).send());
    died(&mut gate, place).await;
    assert!(asking.await.unwrap().is_err());
    let gate = scene.spawn_gate().await;
    let client = scene.http2();
    let served =
        async || scene.get(&client, PATH, &token).send().await.unwrap().status() == StatusCode::OK;
    scene.until("served", served).await;
    let books = scene.books().await;
    stop(gate, scene).await;
    books
}

/// Begins a loan, returns it while the gate crashes at this point, and restarts the gate. Returns
/// the loan in the books.
async fn crash_during_end(with_a_file: bool, place: &str) -> Value {
    let mut scene = scene(0, &json!([])).await;
    let token = scene.token("kari");
    let loan = format!("/loans/{BOOK}");
    let client = scene.http1();
    let mut gate = scene.spawn_gate_until(place).await;
    if with_a_file {
        until_served(scene.get(&client, PATH, &token)).await;
    } else {
        let begun =
            client.put(format!("{}{loan}", scene.base)).bearer_auth(&token).send().await.unwrap();
        assert_eq!(begun.status(), StatusCode::CREATED);
    }
    let returning =
        tokio::spawn(client.delete(format!("{}{loan}", scene.base)).bearer_auth(&token).send());
    died(&mut gate, place).await;
    let returned =
        returning.await.unwrap().is_ok_and(|answer| answer.status() == StatusCode::NO_CONTENT);

    let gate = scene.spawn_gate().await;
    let requests = scene.origin.requests().len();
    let again = scene.get(&scene.http1(), PATH, &token).send().await.unwrap();
    let never_written = place == "commit ending before";
    assert_eq!(again.status() == StatusCode::OK, never_written, "{place}: {}", again.status());
    assert!(!(returned && never_written), "{place}: an acknowledged return was lost");
    if never_written {
        let url = format!("{}{loan}", scene.base);
        scene
            .http1()
            .delete(url)
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
    } else {
        assert_eq!(scene.origin.requests().len(), requests, "{place}: a byte after the end");
    }
    scene.until("over here", async || scene.ledger().await[0]["state"] == "ended").await;
    let again = scene.get(&scene.http2(), PATH, &token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::FORBIDDEN, "{place}: the old token begins nothing");
    let mut books = scene.books().await;
    assert_eq!(books.len(), 1, "{place}: {books:#?}");
    assert!(books[0]["ends"].as_u64() >= Some(1), "{place}: {books:#?}");
    stop(gate, scene).await;
    books.remove(0)
}

#[tokio::test]
async fn return_ends_the_loan_despite_a_crash_at_each_point() {
    for place in both(&["commit ending", "send return", "commit end-acknowledged"]) {
        let loan = crash_during_end(true, &place).await;
        assert_eq!(loan["status"], "RETURNED", "{place}");
    }
}

#[tokio::test]
async fn cancel_frees_the_licence_despite_a_crash_at_each_point() {
    for place in both(&["send cancel", "commit end-acknowledged"]) {
        let loan = crash_during_end(false, &place).await;
        assert_eq!(loan["status"], "CANCELLED", "{place}");
    }
}
