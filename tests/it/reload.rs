//! Reloads of the configuration: all or nothing, and only for requests that begin later.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN, RANGE, STRICT_TRANSPORT_SECURITY};
use serde_json::{Value, json};

use crate::support::{AUDIO, BOOK, File, Origin, Scene, Setting, metric};

/// Larger than all sockets and windows together, so the gate cannot finish before the reader reads.
const LARGE: u64 = 64 << 20;
const SMALL: u64 = 20_000;

async fn reload(scene: &Scene) -> (StatusCode, Value) {
    let response = scene.admin_post("/api/v1/reload", &Value::Null).await;
    (response.status(), response.json().await.unwrap())
}

/// Reloads a configuration without mistakes. Returns the keys that are in use, and those that need
/// a restart.
async fn reloaded(scene: &Scene) -> [BTreeSet<String>; 2] {
    let (status, body) = reload(scene).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    ["changed", "needs_restart"].map(|list| {
        let keys = body[list].as_array().unwrap().iter();
        keys.map(|changed| changed["key"].as_str().unwrap().to_owned()).collect()
    })
}

fn keys<const N: usize>(keys: [&str; N]) -> BTreeSet<String> {
    keys.map(str::to_owned).into()
}

async fn status(scene: &Scene, client: &reqwest::Client, path: &str, borrower: &str) -> StatusCode {
    let request = scene.get(client, path, &scene.token(borrower));
    request.send().await.unwrap().status()
}

/// Starts a download of the large file, and reads its first chunk.
async fn begun(scene: &Scene, client: &reqwest::Client) -> (reqwest::Response, u64) {
    let request = scene.get(client, &format!("/files/{AUDIO}/audio.mp3"), &scene.token("kari"));
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let chunk = response.chunk().await.unwrap().unwrap();
    assert!(chunk == File::of(LARGE).part(0..chunk.len() as u64));
    (response, chunk.len() as u64)
}

/// Reads the rest of the large file.
async fn finish((mut response, mut at): (reqwest::Response, u64)) {
    let file = File::of(LARGE);
    while let Some(chunk) = response.chunk().await.unwrap() {
        let end = at + chunk.len() as u64;
        assert!(chunk == file.part(at..end), "other bytes at {at}");
        at = end;
    }
    assert_eq!(at, LARGE);
}

#[tokio::test]
async fn each_table_applies_to_later_requests_and_running_ones_go_on() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(LARGE));
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    let gate = scene.spawn_gate().await;
    let downloads = [begun(&scene, &scene.http1()).await, begun(&scene, &scene.http2()).await];
    let client = scene.http2();
    let book = format!("/files/{BOOK}/book.epub");
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);

    scene.replace_in_config("path = \"/files/{isbn}", "path = \"/books/{isbn}");
    scene.replace_in_config("[readers.jwt]", "[readers]\nmax_lifetime = \"2h\"\n\n[readers.jwt]");
    scene.replace_in_config(
        "[lending]",
        "[server]\nhsts = \"77s\"\n\n[cors]\norigins = [\"https://app.example.no\"]\n\n\
         [delivery]\nmax_ranges = 1\n\n[log]\nformat = \"json\"\n\n[limits]\n\
         requests_per_connection = 1\n\n[brake]\nmode = \"enforce\"\nborrower_per_hour = 3\n\n\
         [licences]\nnever = { NO-0301000 = [\"PACKAGE\", \"IMPORTED\", \"PAY_PER_LOAN\"] }\n\n\
         [lending]",
    );
    let [changed, needs_restart] = reloaded(&scene).await;
    let expected = keys([
        "brake.borrower_per_hour",
        "brake.mode",
        "cors.origins",
        "delivery.max_ranges",
        "licences.never.NO-0301000",
        "limits.requests_per_connection",
        "log.format",
        "readers.max_lifetime",
        "routes[0].path",
        "server.hsts",
    ]);
    assert_eq!((changed, needs_restart), (expected, BTreeSet::new()));

    let client = scene.http2();
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::NOT_FOUND);
    let book = format!("/books/{BOOK}/book.epub");
    let request = scene.get(&client, &book, &scene.token("kari"));
    let request =
        request.header(ORIGIN, "https://app.example.no").header(RANGE, "bytes=0-9,10000-10009");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "more ranges than max_ranges are ignored");
    assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example.no");
    let hsts = response.headers()[STRICT_TRANSPORT_SECURITY].to_str().unwrap();
    assert!(hsts.contains("max-age=77"), "{hsts}");
    // A borrower without a loan: the policy forbids every licence.
    assert_eq!(status(&scene, &client, &book, "per").await, StatusCode::FORBIDDEN);
    // The limits of a new connection: its first request is its last.
    let before = scene.limit_reached("requests_per_connection").await;
    assert_eq!(status(&scene, &scene.http1(), &book, "kari").await, StatusCode::OK);
    assert!(scene.limit_reached("requests_per_connection").await > before);
    let now = scene.token_with(&json!({ "sub": "kari", "exp": 4_000_000_000_i64 }));
    let response = scene.get(&client, &book, &now).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "it lives too long");
    let log = fs::read_to_string(&gate.log).unwrap();
    let last = log.lines().last().unwrap();
    assert!(serde_json::from_str::<Value>(last).is_ok(), "{last}");
    for download in downloads {
        finish(download).await;
    }
    drop(gate);
    scene.end().await;
}

#[tokio::test]
async fn another_origin_serves_later_requests() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(LARGE));
    let other = Origin::start().await;
    other.put(&format!("{AUDIO}/audio.mp3"), File::of(SMALL));
    scene.start_gate().await;
    let client = scene.http2();
    let download = begun(&scene, &client).await;
    scene.replace_in_config(&format!("{}/", scene.origin.url), &format!("{}/", other.url));
    let [changed, _] = reloaded(&scene).await;
    assert_eq!(changed, keys(["origins[0].url"]));
    let request = scene.get(&client, &format!("/files/{AUDIO}/audio.mp3"), &scene.token("kari"));
    let body = request.send().await.unwrap().bytes().await.unwrap();
    assert_eq!(body, File::of(SMALL).part(0..SMALL));
    finish(download).await;
    scene.end().await;
}

#[tokio::test]
async fn origin_that_stays_keeps_its_connections() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    scene.start_gate().await;
    let (client, book) = (scene.http1(), format!("/files/{BOOK}/book.epub"));
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
    let opened = scene.origin.connections();
    for number in 2..12 {
        scene.replace_in_config(
            "[lending]",
            &format!("[delivery]\nmax_ranges = {number}\n\n[lending]"),
        );
        reloaded(&scene).await;
        assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
        scene.replace_in_config(&format!("[delivery]\nmax_ranges = {number}\n\n"), "");
    }
    assert_eq!(scene.origin.connections(), opened);
    scene.end().await;
}

#[tokio::test]
async fn new_secrets_are_used_at_once() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    scene.start_gate().await;
    let (client, book) = (scene.http2(), format!("/files/{BOOK}/book.epub"));
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
    let secret = scene.dir.path().join("certs/lending.secret");
    let good = fs::read(&secret).unwrap();
    fs::write(&secret, "another secret").unwrap();
    let [changed, _] = reloaded(&scene).await;
    assert_eq!(changed, keys(["lending.client_secret"]));
    // The token of the old secret would still be valid.
    assert_eq!(status(&scene, &client, &book, "per").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK, "has a loan");
    fs::write(&secret, good).unwrap();
    reloaded(&scene).await;
    let is_served = async || status(&scene, &client, &book, "per").await == StatusCode::OK;
    scene.until("a reader without a loan is served", is_served).await;
    scene.end().await;
}

#[tokio::test]
async fn secret_for_another_login_waits_for_the_restart() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    scene.start_gate().await;
    let other = Origin::start().await;
    let old = "/oauth/token\"";
    let text = fs::read_to_string(scene.config_file()).unwrap();
    let line = text.lines().find(|line| line.ends_with(old)).unwrap();
    scene.replace_in_config(line, &format!("token_url = \"{}{old}", other.url));
    scene.replace_in_config("\"sandbox-client\"", "\"production\"");
    for _ in 0..2 {
        let expected = keys(["lending.client_id", "lending.token_url"]);
        assert_eq!(reloaded(&scene).await, [BTreeSet::new(), expected]);
    }
    let book = format!("/files/{BOOK}/book.epub");
    assert_eq!(status(&scene, &scene.http2(), &book, "kari").await, StatusCode::OK);
    assert!(other.requests().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn limits_of_connections_apply_to_new_ones() {
    let mut scene = Scene::start().await;
    let limits = "[limits]\nconnections_per_address = 2\n\n[lending]";
    scene.replace_in_config("[lending]", limits);
    assert_eq!(reloaded(&scene).await[0], keys(["limits.connections_per_address"]));
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(scene.connect("http/1.1").await);
    }
    assert_eq!(scene.limit_reached("connections_per_address").await, 2.0);
    drop(open);
    scene.stop_gate().await;
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_until_they_are_put_back() {
    let mut scene = Scene::start().await;
    scene.replace_in_config("[lending]", "[gate]\npatience = \"9s\"\n\n[lending]");
    let none = BTreeSet::new();
    assert_eq!(reloaded(&scene).await, [none.clone(), keys(["gate.patience"])]);
    scene.replace_in_config("[gate]", "[server]\nhsts = \"0s\"\n\n[gate]");
    assert_eq!(reloaded(&scene).await, [keys(["server.hsts"]), keys(["gate.patience"])]);
    scene.replace_in_config("[gate]\npatience = \"9s\"\n", "");
    assert_eq!(reloaded(&scene).await, [none.clone(), none]);
    scene.stop_gate().await;
}

/// A wrong reload: what is replaced in the configuration, and the key and the line of the mistake.
type Case = (&'static str, &'static str, &'static str);

const WRONG: &[Case] = &[
    ("[lending]", "[lending", ""),
    ("auth = \"oauth\"", "auth = oauth", ""),
    ("[listen]", "[lisen]", "lisen"),
    ("[[routes]]", "surprise = 1\n[[routes]]", "origins[0].surprise"),
    ("certificate = \"certs/server.pem\"", "certificate = \"certs/none.pem\"", "tls.certificate"),
    ("certificate = \"certs/server.pem\"", "certificate = \"certs/server.key\"", "tls.key"),
    ("key = \"certs/server.key\"", "key = \"certs/none.key\"", "tls.key"),
    ("key = \"certs/server.key\"", "key = \"certs/jwt.key\"", "tls.key"),
    ("file = \"certs/ticket.key\"", "file = \"certs/none.key\"", "tls.ticket_keys"),
    ("file = \"certs/pseudonym.key\"", "file = \"certs/link.key\"", "privacy.pseudonym_key"),
    ("file = \"certs/pseudonym.key\"", "env = \"NOT_SET\"", "privacy.pseudonym_key"),
    ("jwks = \"certs/jwks.json\"", "jwks = \"certs/none.json\"", "readers.jwt.jwks"),
    ("jwks = \"certs/jwks.json\"", "jwks = \"certs/server.pem\"", "readers.jwt.jwks"),
    ("[\"EdDSA\"]", "[\"none\"]", "readers.jwt.algorithms"),
    ("[\"EdDSA\"]", "[\"RS256\"]", "readers.jwt.jwks"),
    ("file = \"certs/link.key\"", "file = \"certs/none.key\"", "readers.links.keys[0].secret"),
    ("auth = \"oauth\"", "auth = \"magic\"", "lending.auth"),
    ("client_id = \"sandbox-client\"\n", "", "lending.client_id"),
    ("file = \"certs/lending.secret\"", "file = \"certs\"", "lending.client_secret"),
    ("name = \"files\"", "name = \"storage\"", "routes[0].origin"),
    ("path = \"/files/{isbn}/{*file}\"", "path = \"/files/{*file}\"", "routes[0].path"),
    ("to = \"covers/{file}\"", "to = \"{file}\"", "routes[1].to"),
    (
        "[privacy]",
        "[readers]\nmax_lifetime = \"500d\"\n\n[privacy]\nretention = \"600d\"",
        "readers.max_lifetime",
    ),
    ("[lending]", "[limits]\nhead = \"0s\"\n\n[lending]", "limits.head"),
    ("[lending]", "[delivery]\nmax_ranges = 0\n\n[lending]", "delivery.max_ranges"),
    ("[lending]", "[brake]\nmode = \"enforce\"\n\n[lending]", "brake.mode"),
    ("[lending]", "[licences]\nnever = { Oslo = [] }\n\n[lending]", "licences.never.Oslo"),
    ("[lending]", "[cors]\norigins = [\"app.example.no\"]\n\n[lending]", "cors.origins"),
    ("[lending]", "[log]\nlevel = \"loud\"\n\n[lending]", "log.level"),
    ("sqlite:data", "mysql:data", "ledger.url"),
];

#[tokio::test]
async fn wrong_configuration_changes_nothing_and_is_named_with_its_line() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    scene.start_gate().await;
    let (client, book) = (scene.http2(), format!("/files/{BOOK}/book.epub"));
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
    let good = fs::read_to_string(scene.config_file()).unwrap();
    for (number, (from, to, key)) in WRONG.iter().enumerate() {
        // A valid change beside the mistake must not be applied.
        scene.replace_in_config("path = \"/covers/", "path = \"/pictures/");
        scene.replace_in_config(from, to);
        let (status_code, body) = reload(&scene).await;
        assert_eq!(status_code, StatusCode::UNPROCESSABLE_ENTITY, "{to}: {body}");
        assert_eq!(body["type"], "configuration-wrong");
        let mistakes = body["mistakes"].as_array().unwrap();
        let named = mistakes.iter().find(|mistake| mistake["key"] == *key);
        let named = named.unwrap_or_else(|| panic!("{to} -> {key}: {body}"));
        assert!(named["line"].as_u64().unwrap() > 0, "{body}");
        assert!(named["file"].as_str().unwrap().ends_with("config.toml"), "{body}");
        fs::write(scene.config_file(), &good).unwrap();
        assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK, "{to}");
        let metrics = scene.metrics().await;
        let refused = metric(&metrics, "loangate_reloads_total", "outcome=\"refused\"");
        assert_eq!(refused, (number + 1) as f64);
    }
    let ready = scene.admin("/readyz").await;
    assert_eq!(ready.status(), StatusCode::OK, "the readers are served");
    let detail = ready.text().await.unwrap();
    assert!(detail.contains("last reload found a mistake"), "{detail}");
    assert_eq!(reloaded(&scene).await, [BTreeSet::new(), BTreeSet::new()]);
    let detail = scene.admin("/readyz").await.text().await.unwrap();
    assert!(!detail.contains("reload"), "{detail}");
    scene.end().await;
}

#[tokio::test]
async fn slow_file_delays_no_reader_and_no_second_reload_waits() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    scene.start_gate().await;
    let table = scene.dir.path().join("titles.csv");
    assert!(Command::new("mkfifo").arg(&table).status().unwrap().success());
    let route = "[[routes]]\npath = \"/media/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\n\
                 title = { table = \"titles.csv\" }\n\n[[routes]]";
    scene.replace_in_config("[[routes]]", route);
    let first = reload(&scene);
    let rest = async {
        let is_busy = async || {
            let response = tokio::time::timeout(Duration::from_secs(1), reload(&scene)).await;
            matches!(response, Ok((StatusCode::CONFLICT, _)))
        };
        scene.until("a second reload is refused", is_busy).await;
        let (client, book) = (scene.http2(), format!("/files/{BOOK}/book.epub"));
        assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
        let line = format!("a.mp3,{AUDIO}\n");
        tokio::task::spawn_blocking(move || fs::write(table, line)).await.unwrap().unwrap();
    };
    let ((status, body), ()) = tokio::join!(first, rest);
    assert_eq!(status, StatusCode::OK, "{body}");
    scene.end().await;
}

#[tokio::test]
async fn variable_overrides_the_file_after_a_reload_too() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(SMALL));
    let gate = scene.spawn_gate_with("LOANGATE__ROUTES__0__PATH", "/env/{isbn}/{*file}").await;
    let (client, book) = (scene.http2(), format!("/env/{BOOK}/book.epub"));
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
    scene.replace_in_config("path = \"/files/{isbn}", "path = \"/books/{isbn}");
    scene.replace_in_config("path = \"/covers/", "path = \"/pictures/");
    assert_eq!(reloaded(&scene).await[0], keys(["routes[1].path"]));
    assert_eq!(status(&scene, &client, &book, "kari").await, StatusCode::OK);
    drop(gate);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_prints_what_changed_and_every_mistake() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.start_gate().await;
    // The command reads the addresses of the running gate from the configuration.
    let admin = scene.admin.strip_prefix("http://").unwrap();
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    scene.replace_in_config("[lending]", "[server]\nhsts = \"0s\"\n\n[lending]");
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        let output = command.arg("reload").arg("--config").arg(scene.config_file()).output();
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (succeeded, said, errors) = tokio::task::block_in_place(run);
    assert!(succeeded, "{errors}");
    assert_eq!(said, "reloaded: server.hsts\nthese need a restart: listen.admin\n");
    fs::write(scene.dir.path().join("certs/server.pem"), "x").unwrap();
    let (succeeded, _, errors) = tokio::task::block_in_place(run);
    assert!(!succeeded && errors.contains("config.toml:8: tls.certificate: "), "{errors}");
    scene.stop_gate().await;
}
