//! Bokbasen's reads lag behind its writes: a loan that is not yet visible is neither begun again
//! nor treated as ended.

use http::StatusCode;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};

use crate::support::{BOOK, File, Scene, Setting};

const PATH: &str = "/files/9788299999014/book.epub";

/// Starts a scene whose `lending.settle` is longer than the sandbox's lags.
async fn scene(bounds: Bounds, settle: &'static str) -> Scene {
    let config = vec![("settle = \"500ms\"", settle)];
    let scene = Scene::start_with(Setting { bounds, config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    scene
}

/// Repeats the request as an app does until the book is served.
async fn until_served(scene: &Scene, reader: &str) {
    let (client, token) = (scene.http2(), scene.token(reader));
    let served = async || {
        let status = scene.get(&client, PATH, &token).send().await.unwrap().status();
        assert!(matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{status}");
        status == StatusCode::OK
    };
    scene.until("the reader is served", served).await;
}

/// Returns the states in the history of this ledger row.
async fn states(scene: &Scene, row: &Value) -> Vec<String> {
    let path = format!("/api/v1/loans/{}", row["id"].as_str().unwrap());
    let loan: Value = scene.admin(&path).await.json().await.unwrap();
    let steps = loan["history"].as_array().unwrap().clone();
    steps.iter().map(|step| step["to"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn five_readers_get_five_loans_while_reads_by_id_lag() {
    // One replica lags by 50 ms, one by a second, and the listing lags as well.
    for (get_lag_ms, list_lag_ms) in [(50, 0), (1000, 0), (1000, 1000)] {
        let bounds = Bounds { get_lag_ms, list_lag_ms, ..Bounds::quick() };
        let scene = scene(bounds, "settle = \"3s\"").await;
        let readers = ["kari", "ola", "per", "anne", "liv"];
        futures_util::future::join_all(readers.map(|reader| until_served(&scene, reader))).await;
        let books = scene.books().await;
        assert_eq!(books.len(), 5, "get {get_lag_ms}, list {list_lag_ms}: {books:#?}");
        for row in scene.ledger().await {
            let states = states(&scene, &row).await;
            let lagged = states.contains(&"unknown".to_owned());
            // On a busy machine the first read may come 50 ms late.
            assert!(lagged || get_lag_ms == 50, "a read never lagged: {states:?}");
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn one_empty_listing_does_not_discard_a_named_loan() {
    // The read by id never shows the loan. The listing shows it after its first query, before two
    // empty listings could discard it.
    let bounds = Bounds { get_lag_ms: 3_600_000, list_lag_ms: 3500, ..Bounds::quick() };
    let scene = scene(bounds, "settle = \"2s\"").await;
    until_served(&scene, "kari").await;
    let books = scene.books().await;
    assert_eq!(books.len(), 1, "begun again: {books:#?}");
    assert_eq!(scene.ledger().await.len(), 1);
    scene.end().await;
}

#[tokio::test]
async fn end_of_a_loan_not_yet_visible_is_sent_again() {
    let scene = scene(Bounds::quick(), "settle = \"3s\"").await;
    let lag = |call: &str| json!({ "call": call, "effect": { "lag": { "ms": 1000 } } });
    scene.fault(&json!([lag("cancel"), lag("return")])).await;
    let (token, loan) = (scene.token("kari"), format!("/loans/{BOOK}"));
    assert_eq!(scene.call_api("PUT", &loan, &token, "").await.0, StatusCode::CREATED);
    assert_eq!(scene.call_api("DELETE", &loan, &token, "").await.0, StatusCode::NO_CONTENT);
    let over = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the end is acknowledged", over).await;
    let books = scene.books().await;
    assert_eq!(books[0]["status"], "CANCELLED", "the end never arrived: {books:#?}");
    scene.end().await;
}
