//! `POST /api/v1/explain` and `loangate explain` say what a request then gets.
//!
//! `LOANGATE_EXPLAINED=5000 cargo test --test it explain::` compares more random requests.

use std::process::Command;

use fastrand::Rng;
use http::{Method, StatusCode};
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene};

const REQUESTS: usize = 250;
const SIZE: u64 = 10_000;
const UNKNOWN: &str = "9788299999090";
/// Few readers at a time, so that most have a history, and new ones after some requests.
const READERS: usize = 6;
const REQUESTS_OF_READERS: usize = 60;
/// A route on which only an explicit request begins loans, and one with titles of a table.
const ROUTES: &str = "open = true\n\n[[routes]]\npath = \"/explicit/{isbn}/{*file}\"\n\
    origin = \"files\"\nto = \"{isbn}/{file}\"\nregistration = \"explicit\"\n\n\
    [[routes]]\npath = \"/media/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\n\
    title = { table = \"titles.csv\" }";

/// What a request got, or would get.
#[derive(Debug, Eq, PartialEq)]
struct Outcome {
    status: u64,
    kind: Option<String>,
    reason: Option<String>,
}

fn text(of: &Value, name: &str) -> Option<String> {
    of.get(name).and_then(Value::as_str).map(str::to_owned)
}

impl Outcome {
    fn of(document: &Value) -> Outcome {
        let status = document["status"].as_u64().unwrap();
        Outcome { status, kind: text(document, "type"), reason: text(document, "reason") }
    }
}

/// A random request of a reader.
#[derive(Clone, Debug)]
struct Case {
    reader: String,
    /// When the credential was issued, in seconds from now.
    issued: i64,
    method: Method,
    path: String,
    fields: Vec<(&'static str, String)>,
}

fn any_reader(chance: &mut Rng, number: usize) -> String {
    format!("reader-{}-{}", number / REQUESTS_OF_READERS, chance.usize(..READERS))
}

fn pick<T: Clone>(chance: &mut Rng, from: &[T]) -> T {
    from[chance.usize(..from.len())].clone()
}

impl Case {
    fn draw(chance: &mut Rng, reader: String) -> Case {
        let paths = [
            format!("/files/{BOOK}/book.epub"),
            format!("/files/{AUDIO}/audio.mp3"),
            format!("/explicit/{BOOK}/book.epub"),
            format!("/files/{BOOK}/missing.epub"),
            format!("/files/{UNKNOWN}/book.epub"),
            format!("/files/{BOOK}/empty.txt"),
            "/media/both.mp3".to_owned(),
            "/media/unlisted.mp3".to_owned(),
            "/covers/cover.jpg".to_owned(),
            "/nowhere".to_owned(),
            format!("/files/{BOOK}//book.epub"),
            format!("/files/{BOOK}/a%00b.epub"),
        ];
        let common = 7;
        let path =
            if chance.u8(..10) < 8 { pick(chance, &paths[..common]) } else { pick(chance, &paths) };
        let methods =
            [Method::GET, Method::GET, Method::GET, Method::GET, Method::HEAD, Method::PUT];
        let ranges = [
            "bytes=0-",
            "bytes=0-1",
            "bytes=100-199",
            "bytes=-500",
            "bytes=9999-",
            "bytes=10000-",
            "bytes=5-1",
            "chapters=1-2",
            "bytes=0-9,500-600",
            "bytes=100-199,300-399",
            "bytes=-0",
        ];
        let tags = ["\"v1\"", "\"other\"", "*", "W/\"v1\"", "\"v0\", \"v1\""];
        let mut fields = Vec::new();
        if chance.u8(..3) == 0 {
            fields.push(("range", pick(chance, &ranges).to_owned()));
        }
        for name in ["if-match", "if-none-match", "if-range"] {
            if chance.u8(..8) == 0 {
                fields.push((name, pick(chance, &tags).to_owned()));
            }
        }
        if chance.u8(..20) == 0 {
            fields.push(("host", "other.example.no".to_owned()));
        }
        let issued = pick(chance, &[-7200, -1, 30]);
        Case { reader, issued, method: pick(chance, &methods), path, fields }
    }

    fn issued(&self) -> jiff::Timestamp {
        let now = Clock::system().now().as_second();
        jiff::Timestamp::from_second(now + self.issued).unwrap()
    }

    /// Returns the explanation of the request with a credential issued at this time.
    async fn explanation(&self, scene: &Scene, issued: jiff::Timestamp) -> Value {
        let headers: Vec<_> =
            self.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let question = json!({
            "library": LIBRARY,
            "borrower": self.reader,
            "issued": issued,
            "method": self.method.as_str(),
            "path": self.path,
            "headers": headers,
        });
        let response = scene.admin_post("/api/v1/explain", &question).await;
        assert_eq!(response.status(), StatusCode::OK, "{self:?}");
        response.json().await.unwrap()
    }

    /// Sends the request. A response to HEAD has no document: then only its status is known.
    async fn send(&self, scene: &Scene, client: &reqwest::Client, issued: i64) -> Outcome {
        let token = scene.token_with(
            &json!({ "sub": self.reader, "iat": issued, "jti": uuid::Uuid::new_v4().to_string() }),
        );
        // By its name, so that the connection has one.
        let url = format!("https://localhost:{}{}", scene.address().port(), self.path);
        let mut request = client.request(self.method.clone(), url).bearer_auth(token);
        for (name, value) in &self.fields {
            request = request.header(*name, value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body = answer.bytes().await.unwrap();
        match serde_json::from_slice(&body) {
            Ok(document) if !status.is_success() => Outcome::of(&document),
            _ => Outcome { status: status.as_u16().into(), kind: None, reason: None },
        }
    }
}

async fn start(admin: &str) -> Scene {
    let admin = format!("admin = \"{admin}\"");
    let config = vec![("open = true", ROUTES), ("admin = \"127.0.0.1:0\"", admin.leak())];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    let table = format!("path,isbn\nboth.mp3,{BOOK},{AUDIO}\n");
    std::fs::write(scene.dir.path().join("titles.csv"), table).unwrap();
    for path in [
        format!("{BOOK}/book.epub"),
        format!("{AUDIO}/audio.mp3"),
        format!("{UNKNOWN}/book.epub"),
        "m/both.mp3".to_owned(),
        "covers/cover.jpg".to_owned(),
    ] {
        scene.origin.put(&path, File::of(SIZE));
    }
    scene.origin.put(&format!("{BOOK}/empty.txt"), File::of(0));
    scene.start_gate().await;
    scene
}

const ANY_PORT: &str = "127.0.0.1:0";

/// Changes what a reader has, as apps, libraries and Bokbasen do.
async fn change(scene: &Scene, chance: &mut Rng, reader: &str) {
    let isbn = pick(chance, &[BOOK, AUDIO]);
    let loan = format!("/loans/{isbn}");
    match chance.u8(..6) {
        0..=2 => drop(scene.call_api("DELETE", &loan, &scene.token(reader), "").await),
        3 => drop(scene.call_api("PUT", &loan, &scene.token(reader), "").await),
        4 => {
            let code = pick(chance, &["NO_FREE_LICENSE", "BORROWER_LIMIT", "TITLE_NOT_FOUND"]);
            let refuse = json!({ "refuse": { "code": code, "retry_after": 3600 } });
            scene.fault(&json!({ "call": "begin", "effect": refuse, "probability": 0.3 })).await;
        }
        _ => scene.no_faults().await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanation_agrees_with_what_the_request_gets() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let seed = number("LOANGATE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let requests = number("LOANGATE_EXPLAINED").map_or(REQUESTS, |count| count as usize);
    println!("LOANGATE_TEST_SEED={seed} LOANGATE_EXPLAINED={requests}");
    let (scene, mut chance) = (start(ANY_PORT).await, Rng::with_seed(seed));
    let client = || scene.client().resolve("localhost", scene.address());
    let (http1, http2) = (client().http1_only(), client().http2_prior_knowledge());
    let clients = [http1.build().unwrap(), http2.build().unwrap()];
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for number in 0..requests {
        if chance.u8(..4) == 0 {
            let reader = any_reader(&mut chance, number);
            change(&scene, &mut chance, &reader).await;
        }
        let reader = any_reader(&mut chance, number);
        let case = Case::draw(&mut chance, reader);
        let issued = case.issued();
        let begun = scene.books().await.len();
        let explained = case.explanation(&scene, issued).await;
        assert_eq!(scene.books().await.len(), begun, "an explanation began a loan: {case:?}");
        // HTTP/2 names the host in a field of its own.
        let has_host = case.fields.iter().any(|(name, _)| *name == "host");
        let client = if has_host { &clients[0] } else { &clients[chance.usize(..2)] };
        let got = case.send(&scene, client, issued.as_second()).await;
        let mut expected = Outcome::of(&explained);
        if got.kind.is_none() {
            (expected.kind, expected.reason) = (None, None);
        }
        let assumes = explained["assumes"] == json!("accepted");
        let has_begun = scene.books().await.len() > begun;
        assert!(explained["would_begin"] == json!(true) || !has_begun, "{case:?}: {explained}");
        if !assumes || got.status < 400 {
            assert_eq!(got, expected, "{case:?}: {explained:#}");
        }
        let counted = match (assumes, got == expected) {
            (true, false) => "assumed acceptance, refused".to_owned(),
            (true, true) => format!("assumed acceptance, {}", got.status),
            (false, _) => format!("{} {}", got.status, got.kind.unwrap_or_default()),
        };
        *counts.entry(counted).or_default() += 1;
    }
    println!("{counts:#?}");
    for needed in ["200 ", "403 loan-refused", "404 title-not-found"] {
        assert!(counts.contains_key(needed), "no case got {needed}: {counts:#?}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanation_names_no_borrower_and_needs_a_file() {
    let scene = start(ANY_PORT).await;
    let path = format!("/files/{BOOK}/book.epub");
    let question = json!({ "library": LIBRARY, "borrower": "kari", "path": path });
    let explained = scene.admin_post("/api/v1/explain", &question).await.text().await.unwrap();
    assert!(explained.contains("\"would_begin\":true") && !explained.contains("kari"));
    for question in [
        json!({ "library": LIBRARY, "borrower": "kari", "path": "/loans" }),
        json!({ "library": LIBRARY, "path": path }),
        json!({ "library": LIBRARY, "borrower": "kari", "path": "files" }),
        json!({ "path": path, "headers": ["Range"] }),
        json!({ "path": path, "method": "GE T" }),
    ] {
        let refused = scene.admin_post("/api/v1/explain", &question).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{question}");
    }
    // A link in the path says who asks, and so does a token in a field.
    let link = scene.link(&["--isbn", BOOK]);
    let bearer = format!("Authorization: Bearer {}", scene.token("ola"));
    for (path, headers, kind) in [
        (format!("/~{link}{path}"), vec![], Value::Null),
        (format!("{path}?token={link}"), vec![], Value::Null),
        (format!("/~{link}/files/{AUDIO}/audio.mp3"), vec![], json!("loan-refused")),
        (path.clone(), vec![bearer], Value::Null),
        (path.clone(), vec![], json!("reader-unauthenticated")),
    ] {
        let question = json!({ "path": path, "headers": headers });
        let explained = scene.admin_post("/api/v1/explain", &question).await;
        let explained: Value = explained.json().await.unwrap();
        assert_eq!(explained["type"], kind, "{explained:#}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_prints_the_steps_and_the_advice() {
    // The command finds the gate by its configuration, which therefore needs the port.
    let port = std::net::TcpListener::bind(ANY_PORT).unwrap().local_addr().unwrap().port();
    let scene = start(&format!("127.0.0.1:{port}")).await;
    let path = format!("/files/{BOOK}/book.epub");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(["explain", "--library", LIBRARY, "--borrower", "kari", "--path", &path])
            .arg("--config")
            .arg(scene.config_file())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = run(&[]);
    for line in ["gate       begins a loan", "status 200, if the loan is accepted"] {
        assert!(printed.contains(line), "{printed}");
    }
    let printed = run(&["--header", "Range: bytes=5-", "--json"]);
    let explained: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(explained["reason"], "continues-download", "{explained:#}");
    let steps: Vec<_> = explained["steps"].as_array().unwrap().iter().collect();
    assert_eq!(steps.last().unwrap()["step"], "gate", "{explained:#}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_that_was_made_is_explained_by_its_id() {
    let scene = start(ANY_PORT).await;
    let path = format!("/files/{BOOK}/book.epub");
    let explain =
        async |id: &str| scene.admin_post("/api/v1/explain", &json!({ "request": id })).await;
    let steps = |explained: &Value| {
        let steps = explained["steps"].as_array().unwrap().iter();
        steps.map(|step| step["step"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let fields = [("range", "bytes=5-")];
    for (path, fields, kind, expected) in [
        (
            path.as_str(),
            &fields[..],
            json!("loan-refused"),
            &["path", "authority", "catalog", "reader", "gate"][..],
        ),
        (
            &path,
            &[],
            Value::Null,
            &["path", "authority", "catalog", "reader", "gate", "origin", "delivery"],
        ),
        (
            "/files/9788299999014/missing.epub",
            &[],
            json!("title-not-found"),
            &["path", "authority", "catalog", "reader", "gate", "origin"],
        ),
        (
            "/covers/cover.jpg",
            &[],
            Value::Null,
            &["path", "authority", "catalog", "origin", "delivery"],
        ),
        ("/nowhere", &[], json!("title-not-found"), &["path", "authority", "catalog"]),
    ] {
        let mut request = scene.get(&scene.http1(), path, &scene.token("kari"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let (status, id) = (answer.status(), answer.headers()["x-request-id"].clone());
        let explained = explain(id.to_str().unwrap()).await.text().await.unwrap();
        assert!(!explained.contains("kari"), "{explained}");
        let explained: Value = serde_json::from_str(&explained).unwrap();
        assert_eq!(explained["status"], status.as_u16(), "{explained:#}");
        assert_eq!((&explained["type"], steps(&explained)), (&kind, strings(expected)), "{path}");
        assert_eq!(explained["request"]["path"], path);
    }
    // A link's token is not shown, and a reader's error message has the id as a URI.
    let link = scene.link(&["--isbn", BOOK]);
    let url = format!("{}/~{link}/files/{AUDIO}/audio.mp3", scene.base);
    let answer: Value = scene.http1().get(url).send().await.unwrap().json().await.unwrap();
    let explained = explain(answer["instance"].as_str().unwrap()).await.text().await.unwrap();
    assert!(!explained.contains(&link) && explained.contains("loan-refused"), "{explained}");
    // Nor in another place of a mistyped address.
    let url = format!("{}/books/~{link}/files/{AUDIO}/audio.mp3", scene.base);
    let answer: Value = scene.http1().get(url).send().await.unwrap().json().await.unwrap();
    let explained = explain(answer["instance"].as_str().unwrap()).await.text().await.unwrap();
    assert!(!explained.contains(&link) && explained.contains("title-not-found"), "{explained}");
    for (id, status) in [("f81d4fae-7dec-41d0-a765-00a0c91e6bf6", 404), ("x", 400)] {
        assert_eq!(explain(id).await.status(), status);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_of_a_loan_by_the_loans_api_is_explained() {
    let scene = start(ANY_PORT).await;
    let refuse = json!({ "refuse": { "code": "BORROWER_LIMIT", "retry_after": 3600 } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    let url = format!("{}/loans/{BOOK}", scene.base);
    let request = scene.http2().put(url).bearer_auth(scene.token("kari"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let explained = scene.admin_post("/api/v1/explain", &json!({ "request": id })).await;
    let explained: Value = explained.json().await.unwrap();
    let last = explained["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["step"], &last["decision"]), (&json!("gate"), &json!("refused")));
    let request = &explained["request"];
    assert_eq!((&request["library"], &request["isbn"]), (&json!(LIBRARY), &json!(BOOK)));
    assert!(request["borrower"].is_string() && request["issued"].is_string(), "{request}");
    scene.end().await;
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
