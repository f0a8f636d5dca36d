//! Title tables: paths without an ISBN, and files that belong to several titles.

use std::fs;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, raw_client};

const SIZE: u64 = 100_000;
/// Path of a file of the book and of the audiobook, in this order.
const SHARED_PATH: &str = "/media/lyd/12/kap%201.mp3";
/// Path of a file of the audiobook only.
const AUDIO_PATH: &str = "/media/lyd/12/kap%202.mp3";

const ROUTE: (&str, &str) = (
    "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
    "path = \"/media/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = { table = \
     \"titles.csv\" }",
);

fn table() -> String {
    format!("path,isbn\n# the audiobook\nlyd/12/,{AUDIO}\nlyd/12/kap 1.mp3,{BOOK},{AUDIO}\n")
}

/// Starts everything around a gate whose one gated route has a table.
async fn without_gate(setting: Setting) -> Scene {
    let mut config = vec![ROUTE];
    config.extend(setting.config.clone());
    let scene = Scene::without_gate(Setting { config, ..setting }).await;
    fs::write(scene.dir.path().join("titles.csv"), table()).unwrap();
    for name in ["kap%201", "kap%202"] {
        scene.origin.put(&format!("m/lyd/12/{name}.mp3"), File::of(SIZE));
    }
    scene
}

async fn start(setting: Setting) -> Scene {
    let mut scene = without_gate(setting).await;
    scene.start_gate().await;
    scene
}

/// Requests a file. Returns the status and the problem.
async fn get(scene: &Scene, path: &str, token: &str) -> (StatusCode, Value) {
    answer(scene.get(&scene.http2(), path, token)).await
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    let document = if status.is_success() {
        assert_eq!(body.len() as u64, SIZE);
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    (status, document)
}

/// Returns the titles of all loans in the sandbox's books.
async fn begun(scene: &Scene) -> Vec<String> {
    let mut begun: Vec<String> =
        scene.books().await.iter().map(|loan| loan["isbn"].as_str().unwrap().to_owned()).collect();
    begun.sort();
    begun
}

async fn put(scene: &Scene, isbn: &str, token: &str) {
    let (status, loan) = scene.call_api("PUT", &format!("/loans/{isbn}"), token, "").await;
    assert_eq!(status, StatusCode::CREATED, "{loan}");
}

async fn return_loan(scene: &Scene, isbn: &str, token: &str) {
    let (status, _) = scene.call_api("DELETE", &format!("/loans/{isbn}"), token, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let ended = async || {
        let ledger = scene.ledger().await;
        ledger.iter().filter(|loan| loan["isbn"] == isbn).all(|loan| loan["state"] == "ended")
    };
    scene.until("the end is acknowledged", ended).await;
}

#[tokio::test]
async fn only_the_first_title_is_begun_and_unlisted_paths_fail() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    for path in ["/media/lyd/1.mp3", "/media/lyd/12", "/media/lyd", "/media/lyd/123/kap%201.mp3"] {
        assert_eq!(get(&scene, path, &token).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(scene.origin.requests().len(), 0);
    assert_eq!(get(&scene, SHARED_PATH, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK]);
    assert_eq!(get(&scene, SHARED_PATH, &token).await.0, StatusCode::OK, "from the cache");
    assert_eq!(get(&scene, AUDIO_PATH, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);

    let (_, loan) = scene.call_api("GET", &format!("/loans/{AUDIO}"), &token, "").await;
    assert_eq!(loan["files"], json!(["/media/lyd/12/", SHARED_PATH]));
    let (_, loan) = scene.call_api("GET", &format!("/loans/{BOOK}"), &token, "").await;
    assert_eq!(loan["files"], json!([SHARED_PATH]));
    scene.end().await;
}

#[tokio::test]
async fn live_loan_of_either_title_opens_the_file() {
    let mut scene = start(Setting::default()).await;
    let (kari, ola) = (scene.token("kari"), scene.token("ola"));
    put(&scene, AUDIO, &kari).await;
    put(&scene, BOOK, &ola).await;
    for token in [&kari, &ola] {
        assert_eq!(get(&scene, SHARED_PATH, token).await.0, StatusCode::OK);
    }
    // A restarted gate has no cached decision.
    scene.stop_gate().await;
    scene.start_gate().await;
    for token in [&kari, &ola] {
        let last = scene
            .get(&scene.http2(), SHARED_PATH, token)
            .header("range", "bytes=-10")
            .send()
            .await
            .unwrap();
        assert_eq!(last.status(), StatusCode::PARTIAL_CONTENT, "a resumed download begins nothing");
        assert_eq!(get(&scene, SHARED_PATH, token).await.0, StatusCode::OK);
    }
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn second_title_opens_the_file_if_the_first_does_not() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let refuse = json!({ "call": "begin", "isbn": BOOK,
        "effect": { "refuse": { "code": "BUDGET_EXCEEDED" } } });
    scene.fault(&refuse).await;
    let (status, document) = get(&scene, SHARED_PATH, &token).await;
    assert_eq!((status, &document["reason"]), (StatusCode::FORBIDDEN, &"BUDGET_EXCEEDED".into()));
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, SHARED_PATH, &token).await.0, StatusCode::OK);
    scene.no_faults().await;

    let pend =
        json!({ "call": "begin", "isbn": BOOK, "effect": { "pending_polls": { "n": 1_000_000 } } });
    scene.fault(&pend).await;
    let token = scene.token("ola");
    put(&scene, AUDIO, &token).await;
    let request = scene.http2().put(format!("{}/loans/{BOOK}", scene.base)).bearer_auth(&token);
    let waiting = tokio::spawn(request.send());
    scene
        .until("the begin of the first title is sent", async || begun(&scene).await.len() == 3)
        .await;
    assert_eq!(
        get(&scene, SHARED_PATH, &token).await.0,
        StatusCode::OK,
        "while the first is pending"
    );
    waiting.abort();
    scene.no_faults().await;
    scene.end().await;
}

#[tokio::test]
async fn end_counts_for_each_title() {
    let clock = movable_clock();
    let scene = start(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let old = scene.token("kari");
    put(&scene, BOOK, &old).await;
    put(&scene, AUDIO, &old).await;
    return_loan(&scene, BOOK, &old).await;
    assert_eq!(
        get(&scene, SHARED_PATH, &old).await.0,
        StatusCode::OK,
        "the loan of the second title is live"
    );
    return_loan(&scene, AUDIO, &old).await;
    for path in [SHARED_PATH, AUDIO_PATH] {
        let (status, document) = get(&scene, path, &old).await;
        assert_eq!((status, &document["type"]), (StatusCode::FORBIDDEN, &"loan-ended".into()));
    }
    // A later credential borrows again, and begins the first title.
    clock.advance(std::time::Duration::from_secs(5));
    let new = scene.token("kari");
    let rest = scene.get(&scene.http2(), SHARED_PATH, &new).header("range", "bytes=10-");
    assert_eq!(answer(rest).await.1["reason"], "continues-download");
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    assert_eq!(get(&scene, SHARED_PATH, &new).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn old_token_begins_no_first_title_after_a_return_of_the_second() {
    let clock = movable_clock();
    let mut scene = start(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let old = scene.token("kari");
    put(&scene, AUDIO, &old).await;
    assert_eq!(get(&scene, SHARED_PATH, &old).await.0, StatusCode::OK);
    return_loan(&scene, AUDIO, &old).await;
    for _ in 0..2 {
        let (status, document) = get(&scene, SHARED_PATH, &old).await;
        assert_eq!((status, &document["type"]), (StatusCode::FORBIDDEN, &"loan-ended".into()));
        scene.stop_gate().await;
        scene.start_gate().await; // with an empty cache
    }
    assert_eq!(begun(&scene).await, [AUDIO]);
    clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(get(&scene, SHARED_PATH, &scene.token("kari")).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn stream_under_the_second_title_ends_with_that_loan_only() {
    let scene = start(Setting::default()).await;
    scene.origin.put("m/lyd/12/kap%201.mp3", File { stall_after: Some(1000), ..File::of(SIZE) });
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    let answer = scene.get(&scene.http1(), SHARED_PATH, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    return_loan(&scene, AUDIO, &token).await;
    assert!(answer.bytes().await.is_err(), "an aborted body must not look complete");
    scene.end().await;
}

#[tokio::test]
async fn link_opens_the_file_only_by_a_title_it_covers() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let link = |arguments: &[&str]| scene.link(arguments);
    let (book, audio) = (link(&["--isbn", BOOK]), link(&["--isbn", AUDIO]));
    let below = link(&["--prefix", "/media/lyd/12/"]);
    let beside = link(&["--prefix", "/media/lyd/1/"]);
    let client = scene.http2();
    let by = |link: &str, path: &str| answer(client.get(format!("{}/~{link}{path}", scene.base)));

    // Without a loan, a link to the second title begins nothing, since only the first title is
    // begun.
    assert_eq!(by(&audio, SHARED_PATH).await.1["reason"], "explicit-begin-required");
    assert_eq!(by(&beside, SHARED_PATH).await.1["reason"], "outside-of-link");
    let problem = by(&book, AUDIO_PATH).await.1;
    assert_eq!(problem["reason"], "outside-of-link");
    assert!(
        problem["detail"].as_str().unwrap().contains("link does not open this file"),
        "{problem}"
    );
    assert_eq!(begun(&scene).await, [""; 0]);

    put(&scene, AUDIO, &token).await;
    for link in [&audio, &below] {
        assert_eq!(by(link, SHARED_PATH).await.0, StatusCode::OK);
    }
    assert_eq!(begun(&scene).await, [AUDIO]);
    // With a link to the first title, the loan of the other does not count.
    assert_eq!(by(&book, SHARED_PATH).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn path_tricks_reach_no_other_title_or_prefix() {
    let scene = start(Setting::default()).await;
    scene.origin.put("m/lyd/13/kap.mp3", File::of(SIZE));
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    let link = scene.link(&["--prefix", "/media/lyd/1/"]);
    let (address, ca) = (scene.address(), scene.dir.path().join("certs/ca.pem"));
    let before = scene.origin.requests().len();
    for (target, status) in [
        (format!("/~{link}/media/lyd/12/kap%202.mp3"), 403),
        (format!("/~{link}/media/lyd/1/../12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1/%2e%2e/12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1%2f..%2f12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1//kap%202.mp3"), 400),
        // The reader has the audiobook, which must not open paths outside its prefix.
        ("/media/lyd/12/../13/kap.mp3".to_owned(), 400),
        ("/media/lyd/12%2f..%2f13/kap.mp3".to_owned(), 400),
        ("/media/lyd/12\\13/kap.mp3".to_owned(), 400),
        ("/media/lyd/12;/13/kap.mp3".to_owned(), 400),
        ("/media/lyd/13/kap.mp3".to_owned(), 404),
        ("/media/LYD/12/kap%202.mp3".to_owned(), 404),
    ] {
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: localhost:{}\r\n", address.port());
        if !target.starts_with("/~") {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        let (answered, _) = raw_client::exchange(address, &ca, "localhost", head.as_bytes()).await;
        assert_eq!(answered, status, "{target}");
    }
    assert_eq!(scene.origin.requests().len(), before, "a request reached the storage");
    assert_eq!(begun(&scene).await, [AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn operators_list_paths_of_a_title_and_mint_its_link() {
    let scene = start(Setting::default()).await;
    put(&scene, BOOK, &scene.token("kari")).await;
    assert_eq!(scene.ledger().await[0]["files"], json!([SHARED_PATH]));
    let admin_token = fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let link_request = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let minted = client
        .post(format!("{}/api/v1/links", scene.admin))
        .bearer_auth(admin_token)
        .json(&link_request);
    let minted: Value = minted.send().await.unwrap().json().await.unwrap();
    let url = minted["url"].as_str().unwrap();
    assert!(url.ends_with(SHARED_PATH), "{url}");
    assert_eq!(answer(scene.http2().get(url)).await.0, StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn explicit_route_begins_no_loan_of_several_titles() {
    let explicit = ("title = {", "registration = \"explicit\"\ntitle = {");
    let scene = start(Setting { config: vec![explicit], ..Setting::default() }).await;
    let token = scene.token("kari");
    assert_eq!(get(&scene, SHARED_PATH, &token).await.1["reason"], "explicit-begin-required");
    assert_eq!(begun(&scene).await, [""; 0]);
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, SHARED_PATH, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn concurrent_requests_for_two_titles_begin_one_loan() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let requests: Vec<_> = (0..20).map(|_| get(&scene, SHARED_PATH, &token)).collect();
    for (status, document) in futures_util::future::join_all(requests).await {
        assert_eq!(status, StatusCode::OK, "{document}");
    }
    assert_eq!(begun(&scene).await, [BOOK]);
    scene.end().await;
}

#[tokio::test]
async fn reload_applies_a_valid_table_and_keeps_the_old_one_otherwise() {
    let mut scene = without_gate(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let file = scene.dir.path().join("titles.csv");
    let token = scene.token("kari");
    let logged = |text: &str| fs::read_to_string(&gate.log).unwrap().contains(text);
    scene.origin.put("m/ny.mp3", File::of(SIZE));
    assert_eq!(get(&scene, AUDIO_PATH, &token).await.0, StatusCode::OK);
    assert_eq!(get(&scene, "/media/ny.mp3", &token).await.0, StatusCode::NOT_FOUND);

    fs::write(&file, format!("ny.mp3,{AUDIO}\n\nlyd/../x,{AUDIO}\n")).unwrap();
    gate.reload();
    scene
        .until("the mistake is logged", async || logged("titles.csv:3: no request has such a path"))
        .await;
    assert_eq!(
        get(&scene, AUDIO_PATH, &token).await.0,
        StatusCode::OK,
        "the old table stays in use"
    );
    assert_eq!(get(&scene, "/media/ny.mp3", &token).await.0, StatusCode::NOT_FOUND);

    fs::write(&file, format!("ny.mp3,{AUDIO}\n")).unwrap();
    gate.reload();
    scene
        .until("the new table is in use", async || {
            get(&scene, "/media/ny.mp3", &token).await.0 == StatusCode::OK
        })
        .await;
    assert_eq!(get(&scene, AUDIO_PATH, &token).await.0, StatusCode::NOT_FOUND);
    assert_eq!(begun(&scene).await, [AUDIO]);

    // The log names the title that opened the file, and not the file.
    let log = fs::read_to_string(&gate.log).unwrap();
    assert!(log.contains(&format!("isbn={AUDIO}")) && !log.contains("ny.mp3"), "{log}");
    drop(gate);
    scene.end().await;
}

#[tokio::test]
async fn log_names_the_title_that_opened_the_file() {
    let mut scene = without_gate(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, SHARED_PATH, &token).await.0, StatusCode::OK);
    let line = || {
        let log = fs::read_to_string(&gate.log).unwrap();
        log.lines().find(|line| line.contains("route=\"/media/{*file}\"")).map(str::to_owned)
    };
    scene.until("the line is written", async || line().is_some()).await;
    let line = line().unwrap();
    assert!(line.contains(AUDIO) && !line.contains(BOOK), "{line}");
    drop(gate);
    scene.end().await;
}
