//! Death at each place, one by one: before and after every commit, and every call to Bokbasen, of
//! begin, settle and end.
//!
//! After each the gate starts again on what was left, and in the end there is one loan, there as
//! here, that a reader wanted; what was ended is over, and no old token opens it. The places are in
//! debug builds only (`src/crash.rs`).
#![cfg(debug_assertions)]

use std::os::unix::process::ExitStatusExt;

use http::StatusCode;
use loangate::sandbox::{Bounds, Library, Licence, Title, World};
use serde_json::{Value, json};

use crate::kills::until_served;
use crate::support::{BOOK, File, LIBRARY, Process, Scene, Setting};

const PATH: &str = "/files/9788299999014/book.epub";
const SIGABRT: i32 = 6;

/// Each place before and after.
fn both(deeds: &[&str]) -> Vec<String> {
    deeds.iter().flat_map(|deed| [format!("{deed} before"), format!("{deed} after")]).collect()
}

/// A scene whose begin takes its time to land and to show, well within the 500 ms of settle.
async fn scene(pending_polls: u32, faults: &Value) -> Scene {
    let bounds = Bounds { list_lag_ms: 60, post_bound_ms: 60, pending_polls, ..Bounds::quick() };
    scene_of(Setting { bounds, ..Setting::default() }, faults).await
}

async fn scene_of(setting: Setting, faults: &Value) -> Scene {
    let scene = Scene::around(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    if faults.as_array().is_none_or(|faults| !faults.is_empty()) {
        scene.fault(faults).await;
    }
    scene
}

/// Waits until the gate has died at its place.
async fn died(gate: &mut Process, place: &str) {
    assert_eq!(gate.exit().await.signal(), Some(SIGABRT), "{place} was never reached");
}

async fn stop(mut gate: Process, scene: Scene) {
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Asks for the book until the gate dies at this place, starts another, and asks again: what the
/// books have then.
async fn dies_while_beginning(mut scene: Scene, place: &str) -> Vec<Value> {
    let token = scene.token("kari");
    let mut gate = scene.spawn_gate_until(place).await;
    let asking = tokio::spawn(scene.get(&scene.http1(), PATH, &token).send());
    died(&mut gate, place).await;
    let answer = asking.await.unwrap();
    assert!(answer.is_err(), "{place}: nobody was served before it died");
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
async fn a_begin_dies_at_each_place_and_there_is_one_loan() {
    for place in
        both(&["commit intended", "send begin", "commit begun", "send loan", "commit accepted"])
    {
        let books = dies_while_beginning(scene(1, &json!([])).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: nothing was registered twice: {books:#?}");
    }
}

#[tokio::test]
async fn a_lost_answer_dies_at_each_place_of_its_settling_and_there_is_one_loan() {
    let lost = json!({ "call": "begin", "times": 1, "effect": "cut_after" });
    for place in both(&["commit lost", "send find", "commit accepted"]) {
        let books = dies_while_beginning(scene(0, &lost).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: {books:#?}");
    }
    for place in both(&["commit begun"]) {
        let books = dies_while_beginning(scene(5, &lost).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: {books:#?}");
    }
    let never_made = json!({ "call": "begin", "times": 1, "effect": "cut_before" });
    for place in both(&["send find", "commit not-found"]) {
        let books = dies_while_beginning(scene(0, &never_made).await, &place).await;
        assert_eq!(books.len(), 1, "{place}: begun anew, once: {books:#?}");
    }
}

#[tokio::test]
async fn what_a_dead_process_left_is_taken_up_by_one_that_dies_at_each_place_and_there_is_one_loan()
{
    for place in both(&["commit adopted", "commit lost", "send find", "commit accepted"]) {
        let mut scene = scene(0, &json!([])).await;
        let mut gate = scene.spawn_gate_until("send begin after").await;
        let token = scene.token("kari");
        let asking = tokio::spawn(scene.get(&scene.http1(), PATH, &token).send());
        died(&mut gate, "send begin after").await;
        assert!(asking.await.unwrap().is_err());
        // It dies by itself, with no reader asking, perhaps before it is ready.
        let status = Process::serve_until_death(&scene.config_file(), &place).await;
        assert_eq!(status.signal(), Some(SIGABRT), "{place} was never reached");
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
async fn two_loans_of_one_reference_become_one_also_where_it_dies_giving_one_back() {
    let twice = json!([
        { "call": "begin", "times": 1, "effect": "duplicate" },
        { "call": "begin", "times": 1, "effect": "cut_after" },
    ]);
    for place in both(&["send cancel"]) {
        let books = dies_while_beginning(scene(0, &twice).await, &place).await;
        assert_eq!(books.len(), 2, "{place}: {books:#?}");
        assert!(books.iter().any(|loan| loan["status"] == "CANCELLED"), "{place}: {books:#?}");
    }
}

#[tokio::test]
async fn between_two_licences_it_dies_and_there_is_one_loan() {
    for place in both(&["send availability", "commit declined"]) {
        let licences =
            vec![Licence::new("L-1", "PACKAGE", None), Licence::new("L-2", "IMPORTED", None)];
        let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
        let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
        let setting = Setting {
            world: World { libraries: vec![library], titles: vec![title], ..World::default() },
            // A refusal that was settled holds for this long.
            config: vec![(
                "[ledger]",
                "[gate]\nrefusal_ttl = \"100ms\"\n\n[licences]\norder = [\"PACKAGE\", \"IMPORTED\"]\n\n[ledger]",
            )],
            ..Setting::default()
        };
        let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE", "retry_after": 0 } });
        let scene =
            scene_of(setting, &json!({ "call": "begin", "times": 1, "effect": refuse })).await;
        let books = dies_while_beginning_and_refused(scene, &place).await;
        let accepted = books.iter().filter(|loan| loan["status"] == "ACCEPTED").count();
        assert_eq!(accepted, 1, "{place}: {books:#?}");
    }
}

/// As [`dies_while_beginning`], where a refusal may be the last word for a moment.
async fn dies_while_beginning_and_refused(mut scene: Scene, place: &str) -> Vec<Value> {
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

/// Begins a loan, gives it back while the gate dies at this place, and starts another: how the loan
/// stands in the books.
async fn dies_while_ending(with_a_file: bool, place: &str) -> Value {
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
    let asked = scene.origin.asked().len();
    let again = scene.get(&scene.http1(), PATH, &token).send().await.unwrap();
    let never_written = place == "commit ending before";
    assert_eq!(again.status() == StatusCode::OK, never_written, "{place}: {}", again.status());
    assert!(!(returned && never_written), "{place}: what was answered is kept");
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
        assert_eq!(scene.origin.asked().len(), asked, "{place}: a byte after the end");
    }
    scene.until("over here", async || scene.ledger().await[0]["state"] == "ended").await;
    let again = scene.get(&scene.http2(), PATH, &token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::FORBIDDEN, "{place}: the old token starts nothing");
    let mut books = scene.books().await;
    assert_eq!(books.len(), 1, "{place}: {books:#?}");
    assert!(books[0]["ends"].as_u64() >= Some(1), "{place}: {books:#?}");
    stop(gate, scene).await;
    books.remove(0)
}

#[tokio::test]
async fn a_return_dies_at_each_place_and_the_loan_is_over_there_as_here() {
    for place in both(&["commit ending", "send return", "commit end-acknowledged"]) {
        let loan = dies_while_ending(true, &place).await;
        assert_eq!(loan["status"], "RETURNED", "{place}");
    }
}

#[tokio::test]
async fn a_cancel_dies_at_each_place_and_gives_its_licence_back() {
    for place in both(&["send cancel", "commit end-acknowledged"]) {
        let loan = dies_while_ending(false, &place).await;
        assert_eq!(loan["status"], "CANCELLED", "{place}");
    }
}
