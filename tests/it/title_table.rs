//! Titles by a table: paths that are no ISBN, and files that belong to several titles.

use std::fs;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::{Setting, movable};
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, raw_client};

const SIZE: u64 = 100_000;
/// Belongs to the book and to the audiobook, in this order.
const BOTH: &str = "/media/lyd/12/kap%201.mp3";
/// Belongs to the audiobook alone.
const ONE: &str = "/media/lyd/12/kap%202.mp3";

const ROUTE: (&str, &str) = (
    "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
    "path = \"/media/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = { table = \"titles.csv\" }",
);

fn table() -> String {
    format!("path,isbn\n# the audiobook\nlyd/12/,{AUDIO}\nlyd/12/kap 1.mp3,{BOOK},{AUDIO}\n")
}

/// Everything around a gate whose one gated route has a table.
async fn around(setting: Setting) -> Scene {
    let mut config = vec![ROUTE];
    config.extend(setting.config.clone());
    let scene = Scene::around(Setting { config, ..setting }).await;
    fs::write(scene.dir.path().join("titles.csv"), table()).unwrap();
    for name in ["kap%201", "kap%202"] {
        scene.origin.put(&format!("m/lyd/12/{name}.mp3"), File::of(SIZE));
    }
    scene
}

async fn start(setting: Setting) -> Scene {
    let mut scene = around(setting).await;
    scene.start_gate().await;
    scene
}

/// The status of a request for a file, and what its problem is.
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

/// The titles of all loans in the sandbox's books.
async fn begun(scene: &Scene) -> Vec<String> {
    let mut begun: Vec<String> =
        scene.books().await.iter().map(|loan| loan["isbn"].as_str().unwrap().to_owned()).collect();
    begun.sort();
    begun
}

async fn put(scene: &Scene, isbn: &str, token: &str) {
    let (status, loan) = scene.ask("PUT", &format!("/loans/{isbn}"), token, "").await;
    assert_eq!(status, StatusCode::CREATED, "{loan}");
}

async fn give_back(scene: &Scene, isbn: &str, token: &str) {
    let (status, _) = scene.ask("DELETE", &format!("/loans/{isbn}"), token, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let ended = async || {
        let ledger = scene.ledger().await;
        ledger.iter().filter(|loan| loan["isbn"] == isbn).all(|loan| loan["state"] == "ended")
    };
    scene.until("the end is acknowledged", ended).await;
}

#[tokio::test]
async fn only_the_first_named_title_is_begun_and_what_no_line_names_is_not_found() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    for path in ["/media/lyd/1.mp3", "/media/lyd/12", "/media/lyd", "/media/lyd/123/kap%201.mp3"] {
        assert_eq!(get(&scene, path, &token).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(scene.origin.asked().len(), 0);
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK]);
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK, "from the cache");
    assert_eq!(get(&scene, ONE, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);

    let (_, loan) = scene.ask("GET", &format!("/loans/{AUDIO}"), &token, "").await;
    assert_eq!(loan["files"], json!(["/media/lyd/12/", BOTH]));
    let (_, loan) = scene.ask("GET", &format!("/loans/{BOOK}"), &token, "").await;
    assert_eq!(loan["files"], json!([BOTH]));
    scene.end().await;
}

#[tokio::test]
async fn a_live_loan_of_either_title_opens_the_file_also_from_the_ledger_alone() {
    let mut scene = start(Setting::default()).await;
    let (kari, ola) = (scene.token("kari"), scene.token("ola"));
    put(&scene, AUDIO, &kari).await;
    put(&scene, BOOK, &ola).await;
    for token in [&kari, &ola] {
        assert_eq!(get(&scene, BOTH, token).await.0, StatusCode::OK);
    }
    // A gate that starts knows of no decision.
    scene.stop_gate().await;
    scene.start_gate().await;
    for token in [&kari, &ola] {
        let last = scene
            .get(&scene.http2(), BOTH, token)
            .header("range", "bytes=-10")
            .send()
            .await
            .unwrap();
        assert_eq!(last.status(), StatusCode::PARTIAL_CONTENT, "it begins nothing");
        assert_eq!(get(&scene, BOTH, token).await.0, StatusCode::OK);
    }
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn a_second_title_opens_the_file_where_the_first_is_refused_or_not_decided() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let refuse = json!({ "call": "begin", "isbn": BOOK, "effect": { "refuse": { "code": "BUDGET_EXCEEDED" } } });
    scene.fault(&refuse).await;
    let (status, document) = get(&scene, BOTH, &token).await;
    assert_eq!((status, &document["reason"]), (StatusCode::FORBIDDEN, &"BUDGET_EXCEEDED".into()));
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK);
    scene.no_faults().await;

    let pend =
        json!({ "call": "begin", "isbn": BOOK, "effect": { "pending_polls": { "n": 1_000_000 } } });
    scene.fault(&pend).await;
    let token = scene.token("ola");
    put(&scene, AUDIO, &token).await;
    let request = scene.http2().put(format!("{}/loans/{BOOK}", scene.base)).bearer_auth(&token);
    let waiting = tokio::spawn(request.send());
    scene.until("the first is on its way", async || begun(&scene).await.len() == 3).await;
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK, "while the first is pending");
    waiting.abort();
    scene.no_faults().await;
    scene.end().await;
}

#[tokio::test]
async fn an_end_counts_for_each_title() {
    let clock = movable();
    let scene = start(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let old = scene.token("kari");
    put(&scene, BOOK, &old).await;
    put(&scene, AUDIO, &old).await;
    give_back(&scene, BOOK, &old).await;
    assert_eq!(get(&scene, BOTH, &old).await.0, StatusCode::OK, "the second lives");
    give_back(&scene, AUDIO, &old).await;
    for path in [BOTH, ONE] {
        let (status, document) = get(&scene, path, &old).await;
        assert_eq!((status, &document["type"]), (StatusCode::FORBIDDEN, &"loan-ended".into()));
    }
    // A later credential borrows again, and the first-named.
    clock.advance(std::time::Duration::from_secs(5));
    let new = scene.token("kari");
    let rest = scene.get(&scene.http2(), BOTH, &new).header("range", "bytes=10-");
    assert_eq!(answer(rest).await.1["reason"], "continues-download");
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    assert_eq!(get(&scene, BOTH, &new).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn a_file_given_back_under_its_second_title_is_not_begun_under_the_first_by_the_same_token() {
    let clock = movable();
    let mut scene = start(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let old = scene.token("kari");
    put(&scene, AUDIO, &old).await;
    assert_eq!(get(&scene, BOTH, &old).await.0, StatusCode::OK);
    give_back(&scene, AUDIO, &old).await;
    for _ in 0..2 {
        let (status, document) = get(&scene, BOTH, &old).await;
        assert_eq!((status, &document["type"]), (StatusCode::FORBIDDEN, &"loan-ended".into()));
        scene.stop_gate().await;
        scene.start_gate().await; // and from the ledger alone
    }
    assert_eq!(begun(&scene).await, [AUDIO]);
    clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(get(&scene, BOTH, &scene.token("kari")).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn a_stream_under_the_second_title_is_cut_with_that_loan_alone() {
    let scene = start(Setting::default()).await;
    scene.origin.put("m/lyd/12/kap%201.mp3", File { stall_after: Some(1000), ..File::of(SIZE) });
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    let answer = scene.get(&scene.http1(), BOTH, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    give_back(&scene, AUDIO, &token).await;
    assert!(answer.bytes().await.is_err(), "a body that was cut is not whole");
    scene.end().await;
}

#[tokio::test]
async fn a_link_opens_the_file_by_a_title_that_it_covers_and_by_no_other() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let link = |arguments: &[&str]| scene.link(arguments);
    let (book, audio) = (link(&["--isbn", BOOK]), link(&["--isbn", AUDIO]));
    let below = link(&["--prefix", "/media/lyd/12/"]);
    let beside = link(&["--prefix", "/media/lyd/1/"]);
    let client = scene.http2();
    let by = |link: &str, path: &str| answer(client.get(format!("{}/~{link}{path}", scene.base)));

    // Without a loan: a link to the second title begins nothing, since only the first-named is ever
    // begun.
    assert_eq!(by(&audio, BOTH).await.1["reason"], "explicit-begin-required");
    assert_eq!(by(&beside, BOTH).await.1["reason"], "outside-of-link");
    let problem = by(&book, ONE).await.1;
    assert_eq!(problem["reason"], "outside-of-link");
    assert!(
        problem["detail"].as_str().unwrap().contains("link does not open this file"),
        "{problem}"
    );
    assert_eq!(begun(&scene).await, [""; 0]);

    put(&scene, AUDIO, &token).await;
    for link in [&audio, &below] {
        assert_eq!(by(link, BOTH).await.0, StatusCode::OK);
    }
    assert_eq!(begun(&scene).await, [AUDIO]);
    // A link to the first: the loan of the other does not count for it.
    assert_eq!(by(&book, BOTH).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [BOOK, AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn no_trick_with_a_path_leads_to_another_title_or_past_a_links_prefix() {
    let scene = start(Setting::default()).await;
    scene.origin.put("m/lyd/13/kap.mp3", File::of(SIZE));
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    let link = scene.link(&["--prefix", "/media/lyd/1/"]);
    let (address, ca) =
        (scene.gate.as_ref().unwrap().public, scene.dir.path().join("certs/ca.pem"));
    let before = scene.origin.asked().len();
    for (target, status) in [
        (format!("/~{link}/media/lyd/12/kap%202.mp3"), 403),
        (format!("/~{link}/media/lyd/1/../12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1/%2e%2e/12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1%2f..%2f12/kap%202.mp3"), 400),
        (format!("/~{link}/media/lyd/1//kap%202.mp3"), 400),
        // The reader has the audiobook: what lies beside its prefix is not opened by it.
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
    assert_eq!(scene.origin.asked().len(), before, "nothing was asked of the storage");
    assert_eq!(begun(&scene).await, [AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn operators_see_a_titles_paths_and_mint_a_link_to_it() {
    let scene = start(Setting::default()).await;
    put(&scene, BOOK, &scene.token("kari")).await;
    assert_eq!(scene.ledger().await[0]["files"], json!([BOTH]));
    let admin_token = fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let wish = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let minted =
        client.post(format!("{}/api/v1/links", scene.admin)).bearer_auth(admin_token).json(&wish);
    let minted: Value = minted.send().await.unwrap().json().await.unwrap();
    let url = minted["url"].as_str().unwrap();
    assert!(url.ends_with(BOTH), "{url}");
    assert_eq!(answer(scene.http2().get(url)).await.0, StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn where_loans_are_begun_explicitly_a_file_of_several_titles_begins_none() {
    let explicit = ("title = {", "registration = \"explicit\"\ntitle = {");
    let scene = start(Setting { config: vec![explicit], ..Setting::default() }).await;
    let token = scene.token("kari");
    assert_eq!(get(&scene, BOTH, &token).await.1["reason"], "explicit-begin-required");
    assert_eq!(begun(&scene).await, [""; 0]);
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK);
    assert_eq!(begun(&scene).await, [AUDIO]);
    scene.end().await;
}

#[tokio::test]
async fn many_who_ask_at_once_for_a_file_of_two_titles_begin_one_loan() {
    let scene = start(Setting::default()).await;
    let token = scene.token("kari");
    let asked: Vec<_> = (0..20).map(|_| get(&scene, BOTH, &token)).collect();
    for (status, document) in futures_util::future::join_all(asked).await {
        assert_eq!(status, StatusCode::OK, "{document}");
    }
    assert_eq!(begun(&scene).await, [BOOK]);
    scene.end().await;
}

#[tokio::test]
async fn a_reload_takes_a_good_table_and_keeps_the_old_one_where_it_is_bad() {
    let mut scene = around(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let file = scene.dir.path().join("titles.csv");
    let token = scene.token("kari");
    let logged = |text: &str| fs::read_to_string(&gate.log).unwrap().contains(text);
    scene.origin.put("m/ny.mp3", File::of(SIZE));
    assert_eq!(get(&scene, ONE, &token).await.0, StatusCode::OK);
    assert_eq!(get(&scene, "/media/ny.mp3", &token).await.0, StatusCode::NOT_FOUND);

    fs::write(&file, format!("ny.mp3,{AUDIO}\n\nlyd/../x,{AUDIO}\n")).unwrap();
    gate.hang_up();
    scene
        .until("the mistake is logged", async || logged("titles.csv:3: no request has such a path"))
        .await;
    assert_eq!(get(&scene, ONE, &token).await.0, StatusCode::OK, "the old one stays");
    assert_eq!(get(&scene, "/media/ny.mp3", &token).await.0, StatusCode::NOT_FOUND);

    fs::write(&file, format!("ny.mp3,{AUDIO}\n")).unwrap();
    gate.hang_up();
    scene
        .until("it is taken up", async || {
            get(&scene, "/media/ny.mp3", &token).await.0 == StatusCode::OK
        })
        .await;
    assert_eq!(get(&scene, ONE, &token).await.0, StatusCode::NOT_FOUND);
    assert_eq!(begun(&scene).await, [AUDIO]);

    // The log names the title that opened the file, and no file.
    let log = fs::read_to_string(&gate.log).unwrap();
    assert!(log.contains(&format!("isbn={AUDIO}")) && !log.contains("ny.mp3"), "{log}");
    drop(gate);
    scene.end().await;
}

#[tokio::test]
async fn the_log_names_the_title_that_opened_the_file() {
    let mut scene = around(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let token = scene.token("kari");
    put(&scene, AUDIO, &token).await;
    assert_eq!(get(&scene, BOTH, &token).await.0, StatusCode::OK);
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
