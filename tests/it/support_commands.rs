//! Support tasks: find a loan and end it with a reason, by API and by command, and mint links.

use std::process::{Command, Output};

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::raw_origin::{RawOrigin, Reply};
use crate::support::scene::{LIBRARY, Setting};
use crate::support::{BOOK, File, Scene};

async fn scene_with_a_loan() -> Scene {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token("kari")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    scene
}

/// Calls the admin API with its token.
async fn call(
    scene: &Scene,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (StatusCode, Value) {
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client
        .request(method.parse().unwrap(), format!("{}{path}", scene.admin))
        .bearer_auth(token);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}

#[tokio::test]
async fn support_ends_a_loan_with_a_reason_in_its_history() {
    let scene = scene_with_a_loan().await;
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/loans/{id}");
    for query in ["", "?reason=", "?reason=%20", "?why=x", &format!("?reason={}", "x".repeat(201))]
    {
        let (status, document) = call(&scene, "DELETE", &format!("{path}{query}"), None).await;
        assert_eq!(
            (status, &document["type"]),
            (StatusCode::BAD_REQUEST, &"request-malformed".into()),
            "{query}"
        );
    }
    // The token is from before the end: a later one would borrow again.
    let token = scene.token("kari");
    for _ in 0..2 {
        let ended = call(&scene, "DELETE", &format!("{path}?reason=card%20lost"), None).await;
        assert_eq!(ended, (StatusCode::ACCEPTED, Value::Null));
    }
    let gone = scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &token);
    assert_eq!(gone.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    scene.until("Bokbasen knows", async || scene.books().await[0]["status"] == "RETURNED").await;
    let (_, loan) = call(&scene, "GET", &path, None).await;
    let history = loan["history"].as_array().unwrap();
    let end = history.iter().find(|step| step["to"] == "ending").unwrap();
    assert_eq!((&end["cause"], &end["detail"]), (&"admin".into(), &"card lost".into()), "{loan}");
    let nowhere = format!("/api/v1/loans/{}?reason=x", uuid::Uuid::now_v7());
    assert_eq!(call(&scene, "DELETE", &nowhere, None).await.0, StatusCode::NOT_FOUND);
    scene.end().await;
}

#[tokio::test]
async fn minted_link_opens_its_title_and_hides_the_borrower() {
    let scene = scene_with_a_loan().await;
    let link_request = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK, "ttl": "1h" });
    let (status, link) = call(&scene, "POST", "/api/v1/links", Some(&link_request)).await;
    assert_eq!(status, StatusCode::CREATED, "{link}");
    assert!(!link.to_string().contains("kari"));
    let port = scene.base.rsplit(':').next().unwrap();
    let url = link["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("https://localhost:{port}/~")), "{url}");
    let client = scene.http2();
    let by_path = client.get(format!("{url}book.epub")).send().await.unwrap();
    assert_eq!(by_path.status(), StatusCode::OK);
    let by_query =
        format!("{}/files/{BOOK}/book.epub?{}", scene.base, link["query"].as_str().unwrap());
    assert_eq!(client.get(by_query).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1, "the link uses the reader's loan");

    let prefix =
        json!({ "library": LIBRARY, "borrower": "kari", "prefix": format!("/files/{BOOK}/") });
    let (status, link) = call(&scene, "POST", "/api/v1/links", Some(&prefix)).await;
    assert_eq!(status, StatusCode::CREATED, "{link}");
    let by_path =
        client.get(format!("{}book.epub", link["url"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(by_path.status(), StatusCode::OK);

    for (link_request, says) in [
        (json!({ "library": "kari", "borrower": "kari", "isbn": BOOK }), "library is not"),
        (json!({ "library": LIBRARY, "borrower": "", "isbn": BOOK }), "borrower must"),
        (json!({ "library": LIBRARY, "borrower": "kari", "isbn": "kari" }), "isbn cannot"),
        (json!({ "library": LIBRARY, "borrower": "kari" }), "a title or a prefix"),
        (
            json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK, "prefix": "/a" }),
            "a title or a prefix",
        ),
        (json!({ "library": LIBRARY, "borrower": "kari", "prefix": "/" }), "root"),
        (
            json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK, "ttl": "kari" }),
            "ttl is not",
        ),
        (
            json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK, "until": "kari" }),
            "unknown field",
        ),
        (json!({ "library": LIBRARY, "borrower": ["kari"], "isbn": BOOK }), "cannot be read"),
    ] {
        let (status, document) = call(&scene, "POST", "/api/v1/links", Some(&link_request)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{link_request}");
        let detail = document["detail"].as_str().unwrap();
        assert!(detail.contains(says) && !detail.contains("kari"), "{detail}");
    }
    scene.end().await;
}

fn loans(scene: &Scene, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loangate"))
        .arg("loans")
        .args(arguments)
        .arg("--config")
        .arg(scene.config_file())
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loans_command_lists_shows_and_ends_loans() {
    // The command finds the gate by its configuration, which therefore needs the port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let admin: &'static str = Box::leak(format!("admin = \"127.0.0.1:{port}\"").into_boxed_str());
    let flush = ("[ledger]", "[metering]\nflush = \"50ms\"\n\n[ledger]");
    let config = vec![("admin = \"127.0.0.1:0\"", admin), flush];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token("kari")).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap().len(), 1000);
    let noted =
        async || scene.ledger().await.iter().any(|loan| !loan["delivered"][&path].is_null());
    scene.until("the delivery is reported", noted).await;
    let output_text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();

    let listed = loans(&scene, &["list", "--state", "accepted"]);
    let table = output_text(&listed);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("id ") && lines[1].contains(BOOK) && lines.len() == 2, "{table}");
    let json: Value = serde_json::from_slice(&loans(&scene, &["list", "--json"]).stdout).unwrap();
    let id = json["loans"][0]["id"].as_str().unwrap().to_owned();
    let shown = output_text(&loans(&scene, &["show", &id]));
    assert!(shown.contains("state         accepted") && shown.contains("intended"), "{shown}");
    assert!(shown.contains(&format!("delivered     {path}: 1000 bytes, ranges: 1\n")), "{shown}");
    let ended = loans(&scene, &["end", &id, "--reason", "requested by the library"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    scene.until("ended", async || scene.ledger().await[0]["state"] == "ended").await;
    assert!(output_text(&loans(&scene, &["show", &id])).contains("requested by the library"));

    for (arguments, says) in [
        (&["show", "nothing"][..], "There is no loan of this id"),
        (&["list", "--state", "gone"], "state cannot be read"),
    ] {
        let output = loans(&scene, arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(says), "{errors}");
    }
    let listed = Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(["audit", "accesses", "--library", LIBRARY, "--why", "revisjon", "--config"])
        .arg(scene.config_file())
        .output()
        .unwrap();
    let accesses = output_text(&listed);
    let first = format!("admin token (admin) list-accesses {LIBRARY}, –: revisjon");
    assert!(accesses.lines().next().unwrap().ends_with(&first), "{accesses}");
    let shown = format!("admin token (admin) show-loan {LIBRARY}, loan {id}: –");
    assert!(accesses.contains(&shown), "{accesses}");
    let mut scene = scene;
    scene.stop_gate().await;
    let errors = String::from_utf8(loans(&scene, &["list"]).stderr).unwrap();
    assert!(errors.contains("no gate answers at 127.0.0.1"), "{errors}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_ledger_can_be_copied_checked_and_audited() {
    let scene = scene_with_a_loan().await;
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(arguments)
            .arg("--config")
            .arg(scene.config_file())
            .output()
            .unwrap()
    };
    let copy = scene.dir.path().join("copy.db");
    let backup = run(&["ledger", "backup", copy.to_str().unwrap()]);
    assert!(
        backup.status.success() && copy.exists(),
        "{}",
        String::from_utf8_lossy(&backup.stderr)
    );
    assert!(
        !run(&["ledger", "backup", copy.to_str().unwrap()]).status.success(),
        "nothing is overwritten"
    );
    let check = run(&["ledger", "check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    // The newest link of the trail is stored separately within a second.
    let verified = async || {
        let audit = run(&["audit", "verify"]);
        audit.status.success()
            && String::from_utf8_lossy(&audit.stdout).contains("3 steps, each as it was written")
    };
    scene.until("the trail is whole", verified).await;
    scene.end().await;
}

/// Another program at the address of the admin listener.
struct Impostor {
    scene: Scene,
    origin: RawOrigin,
}

impl Impostor {
    /// Starts one that answers the n-th request with this body, of which it announces `missing`
    /// bytes more.
    async fn start(
        missing: usize,
        body: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Impostor {
        let answer = move |number| {
            let body = body(number);
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length:";
            format!("{head} {}\r\n\r\n{body}", body.len() + missing)
        };
        let origin = RawOrigin::start(move |_, number| Reply::close(&answer(number))).await;
        let address = origin.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let scene = Scene::without_gate(Setting::default()).await;
        scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{address}\""));
        Impostor { scene, origin }
    }

    fn run(&self, command: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(command.split(' '))
            .arg("--config")
            .arg(self.scene.config_file())
            .output()
            .unwrap()
    }

    /// Asserts that a command asks this program, and fails with advice.
    fn is_refused_by(&self, command: &str) {
        let before = self.origin.request_count();
        let output = self.run(command);
        let errors = String::from_utf8(output.stderr).unwrap();
        let advises = errors.contains("Check that the address is that of the gate");
        assert!(!output.status.success() && advises, "{command}: {errors}");
        assert!(self.origin.request_count() > before, "{command}");
    }
}

fn privacy_export() -> String {
    format!("privacy export --library {LIBRARY} --borrower kari")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_takes_another_program_for_a_gate() {
    let agreeing = Impostor::start(0, |_| "{}".to_owned()).await;
    for command in [
        "status",
        "problems",
        "reload",
        "loans list",
        "loans show 0199a1b2",
        "loans end 0199a1b2 --reason lost",
        "loans balance",
        "lending list",
        "lending pause --all --reason moving",
        "lending resume --all",
        "audit accesses",
        "explain --request 0199a1b2",
        &privacy_export(),
        &format!("privacy erase --library {LIBRARY} --borrower kari --reason asked"),
    ] {
        agreeing.is_refused_by(command);
    }
    agreeing.scene.end().await;
    let page = |next: &str| {
        let page = json!({ "library": "NO-1", "borrower": "b", "loans": [{}], "next": next });
        page.to_string()
    };
    let privacy = privacy_export();
    for (command, body) in [
        ("problems", json!({ "problems": [] })),
        ("problems", json!({ "problems": [null], "nodes": [{ "node": "a" }] })),
        ("loans list", json!({ "loans": [{ "id": 5 }] })),
        ("audit accesses", json!({ "accesses": [{}] })),
        (&privacy, json!({ "loans": [{ "id": "a" }] })),
    ] {
        let wrong = Impostor::start(0, move |_| body.to_string()).await;
        wrong.is_refused_by(command);
        wrong.scene.end().await;
    }
    let endless = Impostor::start(0, move |number| page(["a", "b"][number % 2])).await;
    endless.is_refused_by(&privacy);
    endless.scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_in_a_response_moves_the_cursor() {
    let hostile = "\u{9b}2J\u{202e}\u{7f}\u{e0041}\u{1b}[2J\nFAKE";
    let row = json!({ "id": hostile, "state": hostile, "isbn": "1", "library": "NO-1" });
    let page = json!({ "loans": [row] });
    let body = page.to_string();
    let impostor = Impostor::start(0, move |_| body.clone()).await;
    let printed = |command: &str| {
        let output = impostor.run(command);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let moves = |letter: char| letter != '\n' && (letter.is_control() || !letter.is_ascii());
        assert!(!text.replace('–', "-").contains(moves), "{text:?}");
        text
    };
    assert_eq!(printed("loans list").lines().count(), 2, "a line for the names, and one for it");
    let document: Value = serde_json::from_str(&printed("loans list --json")).unwrap();
    assert_eq!(document, page);
    impostor.scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_response_warns_of_what_may_be_done() {
    let breaking = Impostor::start(5, |_| "{}".to_owned()).await;
    for (command, changes) in [("loans list", false), ("lending pause --all --reason a", true)] {
        let output = breaking.run(command);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains("was interrupted"), "{errors}");
        let warns = errors.contains("The gate may have done what you asked");
        assert_eq!(warns, changes, "{command}: {errors}");
    }
    breaking.scene.end().await;
}
