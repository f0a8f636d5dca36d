//! Choice of a loan's licence: the configured order, excluded types, and the next licence when the
//! first is taken.

use http::StatusCode;
use loangate::sandbox::{Library, Licence, Title, World};
use serde_json::{Value, json};

use crate::support::scene::Setting;
use crate::support::{BOOK, File, LIBRARY, Scene};

/// Starts a scene whose one book has these licences: (id, type, maximum loans at once).
async fn scene(licences: &[(&str, &str, Option<u32>)], policy: &'static str) -> Scene {
    let licences =
        licences.iter().map(|(id, kind, count)| Licence::new(*id, *kind, *count)).collect();
    let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
    let libraries =
        [LIBRARY, "NO-1103000"].map(|isil| Library { isil: isil.parse().unwrap(), refuse: None });
    let world = World { libraries: libraries.into(), titles: vec![title], ..World::default() };
    let config = vec![("[ledger]", policy)];
    let scene = Scene::start_with(Setting { world, config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

async fn borrow(scene: &Scene, borrower: &str, library: &str) -> (StatusCode, Value) {
    let token = scene.token_with(&json!({ "sub": borrower, "library": library }));
    scene.call_api("PUT", &format!("/loans/{BOOK}"), &token, "").await
}

/// Returns the number of calls of this name, as the gate counts them.
async fn calls(scene: &Scene, call: &str) -> f64 {
    crate::support::metric(
        &scene.metrics().await,
        "loangate_lending_calls_total",
        &format!("\"{call}\""),
    )
}

#[tokio::test]
async fn licence_types_are_used_in_their_configured_order() {
    let policy = "[licences]\norder = [\"IMPORTED\", \"PAY_PER_LOAN\"]\n\n[ledger]";
    let licences = [
        ("L-pay", "PAY_PER_LOAN", None),
        ("L-package", "PACKAGE", None),
        ("L-old", "IMPORTED", Some(1)),
    ];
    let scene = scene(&licences, policy).await;
    for (borrower, kind) in [("kari", "IMPORTED"), ("ola", "PAY_PER_LOAN"), ("per", "PAY_PER_LOAN")]
    {
        let (status, loan) = borrow(&scene, borrower, LIBRARY).await;
        assert_eq!(
            (status, &loan["licence_type"]),
            (StatusCode::CREATED, &kind.into()),
            "{borrower}: {loan}"
        );
    }
    scene.end().await;
}

#[tokio::test]
async fn missing_licence_leads_to_the_next_and_is_recorded() {
    let policy = "[licences]\norder = [\"IMPORTED\", \"PACKAGE\", \"PAY_PER_LOAN\"]\n\n[ledger]";
    let licences = [
        ("L-pay", "PAY_PER_LOAN", None),
        ("L-old", "IMPORTED", None),
        ("L-package", "PACKAGE", None),
    ];
    let scene = scene(&licences, policy).await;
    // Both licences are taken between the query and the begin.
    let gone = |code: &str| {
        json!({ "call": "begin", "times": 1,
        "effect": { "refuse": { "code": code } } })
    };
    scene.fault(&gone("NO_FREE_LICENSE")).await;
    let first = borrow(&scene, "kari", LIBRARY).await;
    assert_eq!(
        (first.0, &first.1["licence_type"]),
        (StatusCode::CREATED, &"PACKAGE".into()),
        "{}",
        first.1
    );
    let books = scene.books().await;
    let statuses: Vec<_> = books.iter().map(|loan| loan["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["REFUSED", "ACCEPTED"], "the first begin was refused");
    assert_eq!(books[0]["reference"], books[1]["reference"], "both begins belong to one loan");

    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let loan: Value = scene.admin(&format!("/api/v1/loans/{id}")).await.json().await.unwrap();
    let history = loan["history"].as_array().unwrap();
    let details: Vec<_> = history.iter().filter_map(|step| step["detail"].as_str()).collect();
    let declined = details
        .iter()
        .find(|detail| detail.contains("L-old") && detail.contains("NO_FREE_LICENSE"));
    assert!(declined.is_some(), "{history:?}");
    assert!(details.iter().any(|detail| detail.contains("L-package")), "{history:?}");

    // A refusal for another reason is final.
    scene.fault(&gone("BUDGET_EXCEEDED")).await;
    let (status, document) = borrow(&scene, "ola", LIBRARY).await;
    assert_eq!((status, &document["reason"]), (StatusCode::FORBIDDEN, &"BUDGET_EXCEEDED".into()));
    assert_eq!(scene.books().await.len(), 3);
    scene.end().await;
}

#[tokio::test]
async fn excluded_licence_types_are_never_requested() {
    let policy = "[licences]\nnever = { \"NO-0301000\" = [\"PAY_PER_LOAN\"] }\n\n[ledger]";
    let scene = scene(&[("L-pay", "PAY_PER_LOAN", None)], policy).await;
    let (status, document) = borrow(&scene, "kari", LIBRARY).await;
    assert_eq!(
        (status, &document["reason"]),
        (StatusCode::FORBIDDEN, &"licence-not-allowed".into())
    );
    assert!(scene.books().await.is_empty(), "nothing was begun");
    let path = format!("/loans/{BOOK}/availability");
    let nothing = json!({ "isbn": BOOK, "available": false, "licences": [] });
    assert_eq!(
        scene.call_api("GET", &path, &scene.token("kari"), "").await,
        (StatusCode::OK, nothing)
    );

    assert_eq!(
        borrow(&scene, "kari", "NO-1103000").await.0,
        StatusCode::CREATED,
        "another library may use it"
    );
    assert_eq!(calls(&scene, "availability").await, 2.0, "no query preceded its begin");
    scene.end().await;
}

#[tokio::test]
async fn nothing_is_begun_if_the_policy_cannot_be_followed() {
    let scene =
        scene(&[("L-1", "PACKAGE", None)], "[licences]\norder = [\"PACKAGE\"]\n\n[ledger]").await;
    scene
        .fault(&json!({ "call": "availability", "effect": { "status": { "status": 500 } } }))
        .await;
    let (status, document) = borrow(&scene, "kari", LIBRARY).await;
    assert_eq!(
        (status, &document["type"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"lending-unavailable".into())
    );
    assert!(scene.books().await.is_empty());
    scene.no_faults().await;
    let served = async || borrow(&scene, "kari", LIBRARY).await.0 == StatusCode::CREATED;
    scene.until("the breaker closes", served).await;
    scene.end().await;
}

#[tokio::test]
async fn lost_response_among_attempts_is_settled_by_reference() {
    let policy = "[licences]\norder = [\"IMPORTED\", \"PACKAGE\"]\n\n[ledger]";
    let licences = [("L-old", "IMPORTED", None), ("L-package", "PACKAGE", None)];
    let scene = scene(&licences, policy).await;
    // The response with the refusal is lost; so is the response that accepts the next reader's
    // begin.
    let refuse = json!({ "call": "begin", "times": 1,
        "effect": { "refuse": { "code": "NO_FREE_LICENSE" } } });
    scene.fault(&json!([refuse, { "call": "begin", "times": 2, "effect": "cut_after" }])).await;
    let (status, document) = borrow(&scene, "kari", LIBRARY).await;
    // The refusal was found by its reference, and holds for a while.
    assert_eq!(
        (status, &document["reason"]),
        (StatusCode::FORBIDDEN, &"NO_FREE_LICENSE".into()),
        "{document}"
    );
    assert_eq!(scene.books().await.len(), 1);

    let (status, loan) = borrow(&scene, "ola", LIBRARY).await;
    assert_eq!(
        (status, &loan["licence_type"]),
        (StatusCode::CREATED, &"IMPORTED".into()),
        "{loan}"
    );
    assert_eq!(scene.books().await.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn availability_is_queried_once_for_many_callers() {
    let licences =
        [("L-1", "PACKAGE", Some(2)), ("L-2", "PACKAGE", Some(1)), ("L-3", "IMPORTED", Some(1))];
    let scene = scene(&licences, "[ledger]").await;
    let path = format!("/loans/{BOOK}/availability");
    let token = scene.token("kari");
    let there = json!({ "isbn": BOOK, "available": true,
        "licences": [{ "type": "PACKAGE", "free": 3 }, { "type": "IMPORTED", "free": 1 }] });
    let answers =
        futures_util::future::join_all((0..20).map(|_| scene.call_api("GET", &path, &token, "")))
            .await;
    assert!(answers.iter().all(|answer| *answer == (StatusCode::OK, there.clone())), "{answers:?}");
    assert_eq!(
        calls(&scene, "availability").await,
        1.0,
        "one call for all waiting callers, then cached"
    );
    let unknown = json!({ "isbn": "9788299999021", "available": false, "licences": [] });
    let other = "/loans/9788299999021/availability";
    assert_eq!(scene.call_api("GET", other, &token, "").await, (StatusCode::OK, unknown));
    assert_eq!(scene.call_api("PUT", &path, &token, "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    scene.end().await;
}

#[tokio::test]
async fn availability_names_the_next_due_time_or_the_outage() {
    let policy = "[lending]\navailability_ttl = \"0s\"";
    let scene =
        Scene::start_with(Setting { config: vec![("[lending]", policy)], ..scene_of_one() }).await;
    assert_eq!(borrow(&scene, "ola", LIBRARY).await.0, StatusCode::CREATED);
    let path = format!("/loans/{BOOK}/availability");
    let token = scene.token("kari");
    let (_, there) = scene.call_api("GET", &path, &token, "").await;
    assert_eq!((&there["available"], &there["licences"][0]["free"]), (&false.into(), &0.into()));
    let next: jiff::Timestamp = there["next_free"].as_str().unwrap().parse().unwrap();
    assert!(next > loangate::clock::Clock::system().now(), "{there}");
    scene
        .fault(&json!({ "call": "availability", "effect": { "status": { "status": 500 } } }))
        .await;
    let (status, document) = scene.call_api("GET", &path, &token, "").await;
    assert_eq!(
        (status, &document["type"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"lending-unavailable".into())
    );
    scene.end().await;
}

/// Returns a world with one copy of the book.
fn scene_of_one() -> Setting {
    let licences = vec![Licence::new("L-1", "EXCLUSIVE", Some(1))];
    let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
    let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
    let world = World { libraries: vec![library], titles: vec![title], ..World::default() };
    Setting { world, ..Setting::default() }
}
