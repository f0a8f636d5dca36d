//! Diagnostics of a running gate: its log, `/readyz`, and responses to clients with a token.

use std::process::{Command, Stdio};
use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::{BOOK, File, Process, RawOrigin, Reply, Scene, Setting};

const PATH: &str = "/files/9788299999014/book.epub";

async fn ready(scene: &Scene) -> Value {
    scene.admin("/readyz").await.json().await.unwrap()
}

/// Parses a log as lines of JSON, and panics at any other line.
fn lines(process: &Process) -> Vec<Value> {
    let log = std::fs::read_to_string(&process.log).unwrap();
    log.lines()
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|_| panic!("this line is not JSON: {line}"))
        })
        .collect()
}

const JSON_LOG: (&str, &str) = ("[ledger]", "[log]\nformat = \"json\"\n\n[ledger]");

#[tokio::test]
async fn refused_login_is_named_and_logged_once() {
    let config = vec![JSON_LOG, ("\"sandbox-client\"", "\"someone-else\"")];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    let mut process = scene.spawn_gate().await;
    let client = scene.http2();
    for reader in 0..12 {
        let token = scene.token(&format!("reader-{reader}"));
        let answer = scene.get(&client, PATH, &token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let missing = ready(&scene).await["missing"].clone();
    let sentence = missing[0].as_str().unwrap();
    assert!(sentence.starts_with("Bokbasen refuses the login"), "{missing}");
    assert!(sentence.contains("Check the credentials"), "{missing}");
    process.terminate();
    process.exit().await;
    let lines = lines(&process);
    let reasons: Vec<&Value> = lines
        .iter()
        .filter(|line| line["fields"]["message"] == "call to Bokbasen failed")
        .collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert_eq!(reasons[0]["fields"]["reason"], "login_refused");
    // Other log lines about it are not repeated for each attempt either.
    let warnings =
        lines.iter().filter(|line| matches!(line["level"].as_str(), Some("WARN" | "ERROR")));
    assert!(warnings.clone().count() <= 3, "{:?}", warnings.collect::<Vec<_>>());
    scene.end().await;
}

#[tokio::test]
async fn request_id_is_in_response_problem_and_log_lines() {
    let mut scene =
        Scene::without_gate(Setting { config: vec![JSON_LOG], ..Setting::default() }).await;
    let file = |status| File { status, ..File::of(2_000_000) };
    scene.origin.put(&format!("{BOOK}/book.epub"), file(None));
    let mut process = scene.spawn_gate().await;
    let (http1, http2, token) = (scene.http1(), scene.http2(), scene.token("kari"));
    let id = |response: &reqwest::Response| {
        response.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    let mut ids = Vec::new();
    // A whole file, an origin that fails, a body that its origin aborts, and no token.
    for client in [&http1, &http2] {
        let response = scene.get(client, PATH, &token).send().await.unwrap();
        ids.push((id(&response), StatusCode::OK));
        assert_eq!(response.bytes().await.unwrap().len(), 2_000_000);

        let failing = file(Some(StatusCode::INTERNAL_SERVER_ERROR));
        scene.origin.put(&format!("{BOOK}/failing.epub"), failing);
        let path = format!("/files/{BOOK}/failing.epub");
        let response = scene.get(client, &path, &token).send().await.unwrap();
        ids.push((id(&response), response.status()));
        let instance = format!("urn:uuid:{}", id(&response));
        assert_eq!(response.json::<Value>().await.unwrap()["instance"], instance);

        let response = scene.get(client, PATH, "no token").send().await.unwrap();
        ids.push((id(&response), StatusCode::UNAUTHORIZED));
        let instance = format!("urn:uuid:{}", id(&response));
        assert_eq!(response.json::<Value>().await.unwrap()["instance"], instance);
    }
    process.terminate();
    process.exit().await;
    let lines = lines(&process);
    let of = |id: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["fields"]["id"] == *id || line["request"] == *id).collect()
    };
    for (id, status) in &ids {
        let request_line = of(id).into_iter().find(|line| line["fields"]["id"] == **id);
        assert_eq!(request_line.unwrap()["fields"]["status"], status.as_u16(), "{id}");
        assert_eq!(ids.iter().filter(|(other, _)| other == id).count(), 1, "each id is new");
    }
    // A line of another module, written while the request is processed.
    let failed = &ids[1].0;
    assert!(of(failed).iter().any(|line| line["request"] == **failed), "{:?}", of(failed));
    scene.end().await;
}

#[tokio::test]
async fn lines_about_a_body_carry_its_request_id() {
    let mut scene =
        Scene::without_gate(Setting { config: vec![JSON_LOG], ..Setting::default() }).await;
    // The body breaks off, and the request for its rest gets no response.
    let origin = RawOrigin::start(|_, number| match number {
        0 => Reply::close("HTTP/1.1 200 OK\r\ncontent-length: 100\r\netag: \"v1\"\r\n\r\nabc"),
        _ => Reply::close(""),
    });
    let origin = origin.await;
    scene.replace_in_config(&format!("{}/", scene.origin.url), &origin.url);
    let mut process = scene.spawn_gate().await;
    let response = scene.get(&scene.http2(), PATH, &scene.token("kari")).send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(response.bytes().await.is_err());
    process.terminate();
    process.exit().await;
    let lines = lines(&process);
    let failed = lines.iter().find(|line| line["fields"]["message"] == "an origin failed");
    assert_eq!(failed.expect("the failure is logged")["request"], id);
    scene.end().await;
}

#[tokio::test]
async fn readyz_names_the_reason_and_forgets_it() {
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(10));
    let fetch = async |scene: &Scene, reader: String| {
        scene.get(&scene.http2(), PATH, &scene.token(&reader)).send().await.unwrap().status()
    };
    for (number, (fault, expected)) in [
        (json!({ "status": { "status": 500 } }), "Bokbasen answers with server errors"),
        (json!("hang"), "Bokbasen does not answer within lending.timeout"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.fault(&json!({ "call": "*", "effect": fault })).await;
        let mut readers = 0;
        while ready(&scene).await["missing"] == json!([]) {
            assert!(readers < 40, "{expected} never shows");
            let all = (0..5).map(|reader| fetch(&scene, format!("r-{number}-{readers}-{reader}")));
            futures_util::future::join_all(all).await;
            readers += 5;
        }
        let missing = ready(&scene).await;
        assert!(missing["missing"][0].as_str().unwrap().starts_with(expected), "{missing}");
        assert_eq!(missing["ready"], true, "readers with loans are still served");
        scene.no_faults().await;
        let served = async || fetch(&scene, format!("late-{number}")).await == StatusCode::OK;
        scene.until("a new reader is served", served).await;
        assert_eq!(ready(&scene).await["missing"], json!([]));
    }
    scene.stop_gate().await;
    scene.stop_sandbox().await;
}

#[tokio::test]
async fn second_gate_on_a_ledger_is_announced() {
    let config = vec![JSON_LOG];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    let first = scene.spawn_gate().await;
    let announced = |process: &Process| {
        let lines = lines(process);
        let of = |line: &Value| {
            let message = line["fields"]["message"].as_str().unwrap_or_default();
            message
                .starts_with("another gate uses this ledger")
                .then(|| line["fields"]["others"].clone())
        };
        lines.iter().filter_map(of).collect::<Vec<Value>>()
    };
    assert_eq!(announced(&first), Vec::<Value>::new());
    std::fs::copy(&first.log, scene.dir.path().join("first.log")).unwrap();
    let mut first = first;
    std::fs::write(&first.log, "").unwrap();
    let mut second = scene.spawn_gate().await;
    assert_eq!(announced(&second), [json!(1)]);
    // A killed gate is not counted.
    first.kill();
    second.kill();
    std::fs::write(&first.log, "").unwrap();
    let third = scene.spawn_gate().await;
    assert_eq!(announced(&third), Vec::<Value>::new());
    drop(third);
    scene.end().await;
}

#[tokio::test]
async fn warnings_at_start_follow_the_format_of_the_log() {
    let config =
        vec![JSON_LOG, ("{ file = \"certs/lending.secret\" }", "\"sandbox-client-secret\"")];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    let process = scene.spawn_gate().await;
    let warnings = lines(&process);
    let warning = warnings.iter().find(|line| line["fields"]["key"] == "lending.client_secret");
    let warning = warning.unwrap_or_else(|| panic!("{warnings:?}"));
    assert_eq!(warning["level"], "WARN");
    assert!(
        warning["fields"]["line"].is_number() && warning["fields"]["file"].is_string(),
        "{warning}"
    );
    assert!(!warning.to_string().contains("sandbox-client-secret"));
    drop(process);
    // The reason of a failed start is in JSON too: here the ledger is a directory.
    scene.replace_in_config("sqlite:data/loangate.db", "sqlite:certs");
    let ran = Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(["serve", "--config"])
        .arg(scene.config_file())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!ran.status.success());
    let errors = String::from_utf8(ran.stderr).unwrap();
    let lines: Vec<Value> = errors
        .lines()
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|_| panic!("this line is not JSON: {line}"))
        })
        .collect();
    let last = lines.last().unwrap();
    assert!(
        last["level"] == "ERROR" && last["fields"]["error"].as_str().unwrap().contains("certs"),
        "{last}"
    );
    scene.end().await;
}

#[tokio::test]
async fn serve_warns_of_certificate_dates() {
    for (from, until, kind, level) in [
        ((2020, 1, 1), (2021, 1, 1), "expired", "ERROR"),
        ((2090, 1, 1), (2091, 1, 1), "not_yet_valid", "ERROR"),
        ((2020, 1, 1), soon(), "expires_soon", "WARN"),
    ] {
        let mut scene =
            Scene::without_gate(Setting { config: vec![JSON_LOG], ..Setting::default() }).await;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let certs = scene.dir.path().join("certs");
        std::fs::write(certs.join("server.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(certs.join("server.key"), key.serialize_pem()).unwrap();
        let process = scene.spawn_gate().await;
        let logged = async || {
            let of = |line: &&Value| line["fields"]["kind"] == kind;
            lines(&process).iter().filter(of).filter(|line| line["level"] == level).count() == 1
        };
        scene.until("the certificate's date is logged", logged).await;
        drop(process);
        scene.end().await;
    }
}

/// Returns a date within 14 days.
fn soon() -> (i32, u8, u8) {
    let at = Clock::system().now() + jiff::SignedDuration::from_hours(24 * 5);
    let date = jiff::tz::TimeZone::UTC.to_datetime(at).date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

#[tokio::test]
async fn wrong_gate_clock_differs_from_wrong_login_clock() {
    let detail = async |scene: &Scene, now: i64| {
        let token = scene.token_with(&json!({ "sub": "kari", "iat": now, "exp": now + 3600 }));
        let answer = scene.get(&scene.http2(), PATH, &token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let document: Value = answer.json().await.unwrap();
        document["detail"].as_str().unwrap().to_owned()
    };
    // The gate's clock is 5 minutes behind Bokbasen's, and the login's is right.
    let real = Clock::system().now();
    let behind = real - jiff::SignedDuration::from_mins(5);
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(10));
    let file = scene.config_file();
    let loaded = loangate::config::load(&file).unwrap();
    let gate = loangate::app::start(&file, loaded, Clock::movable(behind)).await.unwrap();
    (scene.base, scene.admin) =
        (format!("https://{}", gate.public.first()), gate.admin_url.clone());
    scene.gate = Some(gate);
    let said = detail(&scene, real.as_second()).await;
    assert!(
        said.contains("of the login service or of this gate is wrong"),
        "nothing is known yet: {said}"
    );
    let (old, end) = (behind.as_second(), real.as_second() + 3600);
    let token = scene.token_with(&json!({ "sub": "ola", "iat": old, "exp": end }));
    let answer = scene.get(&scene.http2(), PATH, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let said = detail(&scene, real.as_second()).await;
    assert!(said.contains("by this gate's clock, which is behind"), "{said}");
    scene.end().await;
    // The gate's clock is right, and the login's is 5 minutes ahead.
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(10));
    let ahead = Clock::system().now().as_second() + 300;
    assert!(detail(&scene, ahead).await.contains("of the login service or of this gate is wrong"));
    assert_eq!(
        scene.get(&scene.http2(), PATH, &scene.token("ola")).send().await.unwrap().status(),
        StatusCode::OK
    );
    let said = detail(&scene, ahead).await;
    assert!(said.ends_with("Check the clock of the login service."), "{said}");
    scene.end().await;
}

#[tokio::test]
async fn wrong_admin_token_differs_from_a_missing_one() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let process = scene.spawn_gate().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let fetch = async |authorization: Option<&str>| {
        let mut request = client.get(format!("{}/api/v1/loans", scene.admin));
        if let Some(field) = authorization {
            request = request.header("authorization", field);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
        let document: Value = answer.json().await.unwrap();
        (document["type"].as_str().unwrap().to_owned(), document["detail"].to_string(), challenge)
    };
    for missing in [None, Some("Bearer"), Some("Bearer "), Some("Basic eDp5")] {
        let (kind, detail, challenge) = fetch(missing).await;
        assert_eq!((&*kind, &*challenge), ("operator-unauthenticated", "Bearer"), "{missing:?}");
        assert!(detail.contains("needs the admin token"), "{detail}");
    }
    let (kind, detail, challenge) = fetch(Some("Bearer not-this-one")).await;
    assert_eq!((&*kind, &*challenge), ("operator-token-wrong", "Bearer error=\"invalid_token\""));
    assert!(detail.contains("not the admin token") && !detail.contains("not-this-one"), "{detail}");
    // The command line reports it too: its configuration has another token than the running gate.
    let address = scene.admin.trim_start_matches("http://").to_owned();
    let text = std::fs::read_to_string(scene.config_file()).unwrap();
    let admin = text.lines().find(|line| line.starts_with("admin = ")).unwrap().to_owned();
    scene.replace_in_config(&admin, &format!("admin = \"{address}\""));
    std::fs::write(scene.dir.path().join("certs/admin.token"), "0123456789abcdef0123456789abcdef")
        .unwrap();
    let mut list = Command::new(env!("CARGO_BIN_EXE_loangate"));
    list.args(["loans", "list", "--config"]).arg(scene.config_file());
    let ran = tokio::time::timeout(
        Duration::from_secs(30),
        tokio::task::spawn_blocking(move || list.output().unwrap()),
    );
    let ran = ran.await.unwrap().unwrap();
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert!(!ran.status.success() && errors.contains("refuses the admin token of"), "{errors}");
    assert!(errors.contains("not the admin token"), "{errors}");
    drop(process);
    scene.end().await;
}
