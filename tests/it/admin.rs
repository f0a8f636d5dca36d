//! The admin listener: authorization, filters and paging of loans, and readiness.

use std::collections::BTreeSet;

use jiff::Timestamp;
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene};

/// Another library for the filters.
const OTHER: &str = "NO-1103000";

/// Returns the status for this Authorization field.
async fn status(scene: &Scene, path: &str, authorization: Option<&str>) -> u16 {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(format!("{}{path}", scene.admin));
    if let Some(field) = authorization {
        request = request.header("authorization", field);
    }
    request.send().await.unwrap().status().as_u16()
}

/// Returns the first page of the loans that match a query.
async fn found(scene: &Scene, query: &str) -> Vec<Value> {
    let answer = scene.admin(&format!("/api/v1/loans?{query}")).await;
    assert_eq!(answer.status(), 200, "{query}");
    let page: Value = answer.json().await.unwrap();
    page["loans"].as_array().unwrap().clone()
}

/// Requests a title's file as this borrower and returns the status.
async fn borrow(scene: &Scene, library: &str, borrower: &str, isbn: &str) -> u16 {
    let token = scene.token_with(&json!({ "sub": borrower, "library": library }));
    let path = format!("/files/{isbn}/file");
    let answer = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    status
}

async fn scene_with_files(setting: Setting) -> Scene {
    let scene = Scene::start_with(setting).await;
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/file"), File::of(100));
    }
    scene
}

#[tokio::test]
async fn everything_but_health_and_readiness_needs_the_token() {
    let scene = Scene::start().await;
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let (good, cut) = (format!("Bearer {token}"), format!("Bearer {}", &token[1..]));
    let reader = format!("Bearer {}", scene.token("kari"));
    let basic = format!("Basic {token}");
    let id = uuid::Uuid::now_v7();
    for (path, with_token) in [
        ("/metrics".to_owned(), 200),
        ("/api/v1/loans".to_owned(), 200),
        (format!("/api/v1/loans/{id}"), 404),
        ("/api/v1/loans/".to_owned(), 404),
        ("/api/v1/nothing".to_owned(), 404),
    ] {
        for wrong in
            [None, Some("Bearer"), Some("Bearer x"), Some(&*cut), Some(&*reader), Some(&*basic)]
        {
            assert_eq!(status(&scene, &path, wrong).await, 401, "{path}");
        }
        assert_eq!(status(&scene, &path, Some(&good)).await, with_token, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(&scene, path, None).await, 200, "{path}");
        assert_eq!(status(&scene, path, Some("Bearer x")).await, 200, "{path}");
    }
    scene.end().await;
}

#[tokio::test]
async fn metrics_alone_can_be_made_public() {
    let config = vec![("[admin]", "[admin]\nopen_metrics = true")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    assert_eq!(status(&scene, "/metrics", None).await, 200);
    assert_eq!(status(&scene, "/api/v1/loans", None).await, 401);
    scene.end().await;
}

#[tokio::test]
async fn loans_are_found_by_each_filter_and_by_all_combined() {
    let scene = scene_with_files(Setting::default()).await;
    let refused = json!({ "refuse": "BUDGET_EXCEEDED" });
    scene.control("PUT", "/sandbox/libraries/NO-5000", &refused).await;
    assert_eq!(borrow(&scene, LIBRARY, "kari", BOOK).await, 200);
    assert_eq!(borrow(&scene, LIBRARY, "kari", AUDIO).await, 200);
    assert_eq!(borrow(&scene, LIBRARY, "ola", BOOK).await, 200);
    assert_eq!(borrow(&scene, "NO-5000", "liv", BOOK).await, 403);
    // The ledger stores milliseconds; the next loan must begin in a later one.
    let newest: Timestamp = found(&scene, "").await[0]["begun"].as_str().unwrap().parse().unwrap();
    let later = Timestamp::from_millisecond(newest.as_millisecond() + 1).unwrap();
    scene.until("the next millisecond", async || Clock::system().now() >= later).await;
    assert_eq!(borrow(&scene, OTHER, "kari", BOOK).await, 200);

    let all = found(&scene, "").await;
    assert_eq!(all.len(), 5);
    let begun: Vec<Timestamp> =
        all.iter().map(|loan| loan["begun"].as_str().unwrap().parse().unwrap()).collect();
    assert!(begun.is_sorted_by(|one, next| one >= next), "not sorted newest first: {begun:?}");
    let kari = all.iter().find(|loan| loan["isbn"] == AUDIO).unwrap()["borrower"].as_str().unwrap();
    assert!(
        !all.iter().any(|loan| loan.to_string().contains("kari")),
        "borrowers are shown by pseudonym only"
    );
    for (query, count) in [
        (format!("library={LIBRARY}"), 3),
        (format!("library={OTHER}"), 1),
        ("library=NO-9".to_owned(), 0),
        (format!("isbn={BOOK}"), 4),
        (format!("isbn={AUDIO}"), 1),
        ("state=accepted".to_owned(), 4),
        ("state=refused".to_owned(), 1),
        ("state=ended".to_owned(), 0),
        // The pseudonym of a person differs between libraries.
        (format!("borrower={kari}"), 2),
        (format!("since={later}"), 1),
        ("since=2999-01-01T00:00:00Z".to_owned(), 0),
        (format!("library={LIBRARY}&isbn={BOOK}&state=accepted&borrower={kari}"), 1),
        (format!("library={OTHER}&borrower={kari}"), 0),
    ] {
        assert_eq!(found(&scene, &query).await.len(), count, "{query}");
    }
    let refused = &found(&scene, "state=refused").await[0];
    assert_eq!(refused["refusal"]["code"], "BUDGET_EXCEEDED", "{refused}");
    scene.end().await;
}

#[tokio::test]
async fn paging_skips_and_repeats_no_loan() {
    let scene = scene_with_files(Setting::default()).await;
    for number in 0..25 {
        assert_eq!(borrow(&scene, LIBRARY, &format!("reader-{number}"), BOOK).await, 200);
    }
    // A metering flush would change the loans while the pages are read.
    let has_delivered =
        |loan: &Value| loan["delivered"].as_object().is_some_and(|files| !files.is_empty());
    let flushed = async || found(&scene, "limit=1000").await.iter().all(has_delivered);
    scene.until("deliveries are in the ledger", flushed).await;
    let whole: Vec<Value> = found(&scene, "limit=1000").await;
    assert_eq!(whole.len(), 25);
    let mut made_late = false;
    // Some page sizes divide the total: the last page must not announce another one.
    for limit in [1, 25, 4, 2, 13, 25, 26] {
        let (mut walked, mut turned, mut cursor) = (Vec::new(), 0, String::new());
        loop {
            let path = format!("/api/v1/loans?state=accepted&limit={limit}{cursor}");
            let page: Value = scene.admin(&path).await.json().await.unwrap();
            let loans = page["loans"].as_array().unwrap();
            assert!((1..=limit).contains(&loans.len()), "{limit}: {page}");
            walked.extend(loans.iter().cloned());
            turned += 1;
            // A loan that begins during the walk is newer than all pages and changes none of them.
            if limit == 4 && turned == 2 {
                assert_eq!(borrow(&scene, OTHER, "late", BOOK).await, 200);
                made_late = true;
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        // Later walks show that loan first.
        let late = walked.len() - 25;
        assert_eq!(walked[late..], whole[..], "limit {limit}");
        assert_eq!(late, usize::from(made_late && limit != 4), "limit {limit}");
        assert_eq!(turned, walked.len().div_ceil(limit), "limit {limit}");
        let ids: BTreeSet<&str> = walked.iter().map(|loan| loan["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), walked.len(), "limit {limit}");
    }
    scene.end().await;
}

#[tokio::test]
async fn invalid_queries_are_refused_without_echoing_them() {
    let scene = Scene::start().await;
    for (query, says) in [
        ("library=kari.nordmann", "library cannot be read"),
        ("isbn=kari.nordmann", "isbn cannot be read"),
        ("isbn=9788299999015", "isbn cannot be read"),
        ("state=kari.nordmann", "state cannot be read"),
        ("borrower=kari.nordmann", "borrower cannot be read"),
        ("borrower=", "borrower cannot be read"),
        ("since=kari.nordmann", "since cannot be read"),
        ("limit=kari.nordmann", "limit cannot be read"),
        ("limit=0", "limit is out of bounds"),
        ("limit=1001", "limit is out of bounds"),
        ("limit=-1", "limit cannot be read"),
        ("cursor=kari.nordmann", "cursor cannot be read"),
        ("library=NO-1&library=kari.nordmann", "library"),
        // An unknown filter would otherwise list every loan.
        ("borower=kari.nordmann", "unknown"),
        ("token=kari.nordmann", "unknown"),
    ] {
        let answer = scene.admin(&format!("/api/v1/loans?{query}")).await;
        assert_eq!(answer.status(), 400, "{query}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{query}");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(document["type"], "request-malformed", "{query}");
        let detail = document["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{query}: {detail}");
        assert!(!document.to_string().contains("kari"), "{query}: {detail}");
        assert!(!detail.contains("9788299999015"), "{query}: {detail}");
    }
    scene.end().await;
}

#[tokio::test]
async fn loan_is_shown_with_its_full_history() {
    let scene = scene_with_files(Setting::default()).await;
    assert_eq!(borrow(&scene, LIBRARY, "kari", BOOK).await, 200);
    let listed = found(&scene, "").await.remove(0);
    assert!(listed.get("history").is_none(), "{listed}");
    let id = listed["id"].as_str().unwrap();
    let loan: Value = scene.admin(&format!("/api/v1/loans/{id}")).await.json().await.unwrap();
    let history = loan["history"].as_array().unwrap();
    let steps: Vec<_> =
        history.iter().map(|step| (step["from"].as_str(), step["to"].as_str())).collect();
    assert_eq!(steps.first(), Some(&(None, Some("intended"))), "{loan}");
    assert_eq!(steps.last().unwrap().1, Some("accepted"), "{loan}");
    for pair in steps.windows(2) {
        assert_eq!(
            pair[0].1, pair[1].0,
            "each step starts in the state of the previous one: {loan}"
        );
    }
    let time = |step: &Value| step["at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let times: Vec<Timestamp> = history.iter().map(time).collect();
    assert!(times.is_sorted(), "{times:?}");
    // Except for its history it equals the listed loan and the one in the books.
    for (name, value) in listed.as_object().unwrap() {
        assert_eq!(&loan[name], value, "{name}");
    }
    let books = scene.books().await;
    assert_eq!(books[0]["loanId"], loan["lending_id"]);
    assert_eq!(books[0]["borrower"], loan["borrower"]);
    assert_eq!(loan["files"], json!([format!("/files/{BOOK}/")]));
    scene.end().await;
}

#[tokio::test]
async fn unknown_loan_id_is_not_found() {
    let scene = Scene::start().await;
    for id in [
        uuid::Uuid::now_v7().to_string(),
        "kari".to_owned(),
        "%00".to_owned(),
        "..%2floans".to_owned(),
    ] {
        let answer = scene.admin(&format!("/api/v1/loans/{id}")).await;
        assert_eq!(answer.status(), 404, "{id}");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(document["type"], "loan-not-found", "{id}");
        assert!(!document.to_string().contains("kari"), "{document}");
    }
    scene.end().await;
}

#[tokio::test]
async fn readiness_reports_a_bokbasen_outage_and_its_end() {
    let mut scene = scene_with_files(Setting::default()).await;
    assert_eq!(borrow(&scene, LIBRARY, "kari", BOOK).await, 200);
    let readiness = async |scene: &Scene| {
        let answer = scene.admin("/readyz").await;
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    assert_eq!(readiness(&scene).await, (200, json!({ "ready": true, "missing": [] })));
    scene.stop_sandbox().await;
    // Requests of new readers open the breaker; readiness then names the outage.
    let (mut number, mut seen) = (0, (200, json!({ "missing": [] })));
    while seen.1["missing"] == json!([]) {
        assert!(number < 20, "the breaker did not open");
        assert_eq!(borrow(&scene, LIBRARY, &format!("reader-{number}"), BOOK).await, 503);
        seen = readiness(&scene).await;
        number += 1;
    }
    // The gate stays ready: a load balancer that removed it would stop readers who have loans.
    assert_eq!((seen.0, &seen.1["ready"]), (200, &json!(true)), "{}", seen.1);
    let missing = seen.1["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(
        missing[0].as_str().unwrap().starts_with("Bokbasen refuses the connection"),
        "{missing:?}"
    );
    assert_eq!(status(&scene, "/healthz", None).await, 200, "the process is healthy");
    assert_eq!(
        borrow(&scene, LIBRARY, "kari", BOOK).await,
        200,
        "a reader with a loan is still served"
    );
    scene.start_sandbox().await;
    let back = async || borrow(&scene, LIBRARY, "late", BOOK).await == 200;
    scene.until("a new reader is served", back).await;
    assert_eq!(readiness(&scene).await, (200, json!({ "ready": true, "missing": [] })));
    scene.end().await;
}

#[tokio::test]
async fn unconfigured_host_names_are_misdirected() {
    let config = vec![("[admin]", "[admin]\nopen_metrics = true\nhosts = [\"gate.example.no\"]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let port = scene.admin.rsplit(':').next().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let status = async |path: &str, host: &str| {
        let request =
            client.get(format!("{}{path}", scene.admin)).bearer_auth(&token).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    for path in ["/metrics", "/api/v1/loans", "/openapi.json"] {
        for host in ["127.0.0.1", "localhost", "[::1]", "gate.example.no"] {
            assert_eq!(status(path, &format!("{host}:{port}")).await, 200, "{host}{path}");
        }
        for host in ["rebound.example.com", "gate.example.no.example.com", "localhost.example.com"]
        {
            assert_eq!(status(path, &format!("{host}:{port}")).await, 421, "{host}{path}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(path, "rebound.example.com").await, 200, "{path}");
    }
    scene.end().await;
}

#[tokio::test]
async fn wrong_tokens_are_slowed_and_logged_once() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let wrong = "wrong-token-0123456789abcdef0123456789";
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = std::time::Instant::now();
    for _ in 0..12 {
        let answer =
            client.get(format!("{}/metrics", scene.admin)).bearer_auth(wrong).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        assert!(answer.text().await.unwrap().contains("This is not the admin token."));
    }
    // Each response takes longer than the previous one.
    assert!(began.elapsed() > std::time::Duration::from_millis(1500), "{:?}", began.elapsed());
    assert_eq!(scene.admin("/metrics").await.status(), 200, "the right token is not slowed");
    let log = std::fs::read_to_string(&gate.log).unwrap();
    assert_eq!(log.matches("had a wrong token").count(), 1, "{log}");
    assert!(!log.contains("wrong-token"), "{log}");
}

#[tokio::test]
async fn silent_admin_connections_make_room() {
    let scene = Scene::start().await;
    let address = scene.admin.trim_start_matches("http://");
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(status(&scene, "/healthz", None).await, 200);
    assert_eq!(scene.admin("/api/v1/loans").await.status(), 200);
    scene.end().await;
}
