//! The access trail: what the staff looks at and does is recorded first, or refused.

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::{BOOK, File, LIBRARY, Scene};

fn file(scene: &Scene) -> std::path::PathBuf {
    scene.dir.path().join("data/loangate.db")
}

async fn execute(scene: &Scene, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(file(scene));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn call(scene: &Scene, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method.parse().unwrap(), format!("{}{path}", scene.admin));
    let mut request = request.bearer_auth(token).header("access-reason", "sak 7");
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn scene_with_loan() -> (Scene, String) {
    let (scene, loan, _) = scene_with_request().await;
    (scene, loan)
}

/// Also returns the id of the request that began the loan.
async fn scene_with_request() -> (Scene, String, String) {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    let path = format!("/files/{BOOK}/book.epub");
    let token = scene.token("kari");
    let answer = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    answer.bytes().await.unwrap();
    let loan = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    (scene, loan, request)
}

#[tokio::test]
async fn every_look_and_action_is_recorded_without_a_borrowers_id() {
    let (scene, loan, made) = scene_with_request().await;
    let before = call(&scene, "GET", "/api/v1/accesses", None).await.1;
    let before = before["accesses"].as_array().unwrap().len();
    let shown = call(&scene, "GET", &format!("/api/v1/loans/{loan}"), None).await.1;
    let borrower = shown["borrower"].as_str().unwrap();
    let of_kari = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK });
    let explained = json!({
        "library": LIBRARY, "borrower": "kari", "path": format!("/files/{BOOK}/book.epub"),
    });
    let with_credential = json!({
        "path": format!("/files/{BOOK}/book.epub"),
        "headers": [format!("Authorization: Bearer {}", scene.token("kari"))],
    });
    let request = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6";
    for (method, path, body, status) in [
        ("GET", format!("/api/v1/loans?borrower={borrower}&library={LIBRARY}"), None, 200),
        ("GET", format!("/api/v1/loans?isbn={BOOK}"), None, 200),
        ("POST", "/api/v1/links".to_owned(), Some(of_kari), 201),
        ("POST", "/api/v1/explain".to_owned(), Some(explained), 200),
        ("POST", "/api/v1/explain".to_owned(), Some(with_credential), 200),
        ("POST", "/api/v1/explain".to_owned(), Some(json!({ "request": made })), 200),
        ("POST", "/api/v1/explain".to_owned(), Some(json!({ "request": request })), 404),
        ("POST", "/api/v1/balance".to_owned(), None, 200),
        ("GET", "/api/v1/balance".to_owned(), None, 200),
        ("DELETE", format!("/api/v1/loans/{loan}?reason=stolen"), None, 202),
    ] {
        assert_eq!(call(&scene, method, &path, body).await.0, status, "{method} {path}");
    }
    let list = call(&scene, "GET", "/api/v1/accesses", None).await.1;
    assert!(!list.to_string().contains("kari"), "{list:#}");
    let accesses = list["accesses"].as_array().unwrap();
    let pick = |access: &Value| {
        let Value::Object(access) = access else { panic!("{access}") };
        let mut access = access.clone();
        access.remove("at").unwrap();
        assert_eq!(access.remove("who"), Some(json!("admin token")));
        assert_eq!(access.remove("role"), Some(json!("admin")));
        Value::Object(access)
    };
    let mut found: Vec<Value> = accesses[..accesses.len() - before].iter().map(pick).collect();
    found.reverse();
    let why = "sak 7";
    let of_request = json!({ "request": made });
    let (of_borrower, of_loan) = (json!({ "borrower": borrower }), json!({ "loan": loan }));
    let mut expected = vec![
        json!({ "what": "show-loan", "library": LIBRARY, "target": of_loan, "why": why }),
        json!({ "what": "list-loans", "library": LIBRARY, "target": of_borrower, "why": why }),
        json!({ "what": "list-loans", "target": { "isbn": BOOK }, "why": why }),
        json!({ "what": "mint-link", "library": LIBRARY, "target": of_borrower, "why": why }),
        json!({ "what": "explain", "library": LIBRARY, "target": of_borrower, "why": why }),
        json!({ "what": "explain", "library": LIBRARY, "target": of_borrower, "why": why }),
        json!({ "what": "explain", "library": LIBRARY, "target": of_request, "why": why }),
        json!({ "what": "explain", "target": { "request": request }, "why": why }),
        json!({ "what": "run-balance", "why": why }),
        json!({ "what": "show-balance", "why": why }),
        json!({ "what": "end-loan", "library": LIBRARY, "target": of_loan, "why": "stolen" }),
        json!({ "what": "list-accesses", "why": why }),
    ];
    // Accesses of one millisecond have no order.
    let by_text = |value: &Value| value.to_string();
    found.sort_by_key(by_text);
    expected.sort_by_key(by_text);
    assert_eq!(found, expected);

    let of_library = format!("/api/v1/accesses?library={LIBRARY}&limit=1000");
    let of_library = call(&scene, "GET", &of_library, None).await.1;
    let of_library = of_library["accesses"].as_array().unwrap();
    assert!(of_library.iter().all(|access| access["library"] == LIBRARY), "{of_library:?}");
    let since = call(&scene, "GET", "/api/v1/accesses?since=2999-01-01T00:00:00Z", None).await.1;
    assert_eq!(since, json!({ "accesses": [] }));
    // The newest link of the trail is stored separately within a second.
    let verified = async || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loangate"));
        let command = command.args(["audit", "verify", "--config"]).arg(scene.config_file());
        command.output().unwrap().status.success()
    };
    scene.until("the trail verifies", verified).await;
    scene.end().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_neither_shown_nor_done() {
    let (scene, loan) = scene_with_loan().await;
    let trigger = "CREATE TRIGGER unrecorded BEFORE INSERT ON history \
         WHEN new.to_state = 'access' BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    execute(&scene, trigger).await;
    let of_kari = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK });
    for (method, path, body) in [
        ("GET", "/api/v1/loans".to_owned(), None),
        ("GET", format!("/api/v1/loans/{loan}"), None),
        ("DELETE", format!("/api/v1/loans/{loan}?reason=stolen"), None),
        ("POST", "/api/v1/links".to_owned(), Some(of_kari)),
        ("POST", "/api/v1/explain".to_owned(), Some(json!({ "path": "/x" }))),
        ("POST", "/api/v1/balance".to_owned(), None),
        ("GET", "/api/v1/balance".to_owned(), None),
        ("GET", "/api/v1/accesses".to_owned(), None),
    ] {
        let (status, problem) = call(&scene, method, &path, body).await;
        assert_eq!((status, &problem["type"]), (503, &json!("access-not-recorded")), "{path}");
    }
    execute(&scene, "DROP TRIGGER unrecorded").await;
    // The executor reopens its connection after a wait.
    let path = format!("/api/v1/loans/{loan}");
    let shown = async || call(&scene, "GET", &path, None).await.0 == 200;
    scene.until("the loan is shown again", shown).await;
    assert_eq!(call(&scene, "GET", &path, None).await.1["state"], "accepted");
    scene.end().await;
}
