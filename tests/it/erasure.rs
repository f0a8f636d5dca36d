//! `loangate privacy`: what the ledger has about one person, and its erasure.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::demo::is_in_files;
use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, Scene};

const LIBRARY: &str = "NO-0301000";
const HOUR: Duration = Duration::from_secs(3600);

/// Starts a gate, and names its admin listener in its configuration, for commands.
async fn scene_with(setting: Setting) -> Scene {
    let scene = Scene::start_with(setting).await;
    let admin = scene.admin.rsplit('/').next().unwrap();
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    scene
}

async fn ask(scene: &Scene, isbn: &str, token: &str) -> StatusCode {
    let path = format!("/files/{isbn}/file");
    scene.get(&scene.http1(), &path, token).send().await.unwrap().status()
}

async fn give_back(scene: &Scene, isbn: &str, token: &str) {
    let url = format!("{}/loans/{isbn}", scene.base);
    let response = scene.http1().delete(url).bearer_auth(token).send().await.unwrap();
    assert!(response.status().is_success());
    let ended = async || {
        let loans = scene.ledger().await;
        loans.iter().filter(|loan| loan["isbn"] == isbn).all(|loan| loan["state"] == "ended")
    };
    scene.until("the loan has ended", ended).await;
}

/// Runs the command for a person whose id it reads from standard input.
async fn privacy(scene: &Scene, arguments: &[&str], id: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.arg("privacy").args(arguments).args(["--library", LIBRARY, "--borrower", "-"]);
    command.arg("--config").arg(scene.config_file());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let id = format!("{id}\n");
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(id.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap()
}

async fn erase(scene: &Scene, id: &str) -> (bool, Value) {
    let run = privacy(scene, &["erase", "--json", "--reason", "case 7"], id).await;
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    let erasure = serde_json::from_slice(&run.stdout);
    (run.status.success(), erasure.unwrap_or_else(|_| panic!("{text}")))
}

/// The log may be in use by a reader at that moment.
fn without_traces(mut erasure: Value) -> Value {
    assert!(erasure["log_has_traces"].is_boolean());
    erasure["log_has_traces"] = false.into();
    erasure
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn person_is_erased_once_no_old_credential_could_begin_a_loan_again() {
    let clock = movable_clock();
    let config = vec![("[readers.jwt]", "[readers]\nmax_lifetime = \"2h\"\n\n[readers.jwt]")];
    let setting = Setting { config, clock: clock.clone(), ..Setting::default() };
    let mut scene = scene_with(setting).await;
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/file"), File::of(1000));
    }
    let (token, other) = (scene.token("kari-nordmann"), scene.token("ola"));
    for (isbn, token) in [(BOOK, &token), (AUDIO, &token), (BOOK, &other)] {
        assert_eq!(ask(&scene, isbn, token).await, StatusCode::OK);
    }
    let of_kari = async |scene: &Scene| {
        let loans = scene.ledger().await;
        let ours = loans.iter().filter(|loan| loan["isbn"] == AUDIO);
        ours.map(|loan| loan["borrower"].as_str().unwrap().to_owned()).next().unwrap()
    };
    let pseudonym = of_kari(&scene).await;
    let bytes: loangate::loan::Borrower = pseudonym.parse().unwrap();

    let (all, erasure) = erase(&scene, "kari-nordmann").await;
    assert_eq!((all, &erasure["erased"]), (false, &json!(0)));
    for left in erasure["left"].as_array().unwrap() {
        assert!(left["state"] == "accepted" && left.get("from").is_none(), "{left}");
    }
    give_back(&scene, AUDIO, &token).await;
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(&token).send().await.unwrap();
    let ended = async || {
        let loans = scene.ledger().await;
        loans.iter().filter(|loan| loan["state"] == "ended").count() == 2
    };
    scene.until("both have ended", ended).await;

    // The token could begin the loan again if the ledger forgot that it was hers.
    let (all, erasure) = erase(&scene, "kari-nordmann").await;
    assert_eq!((all, &erasure["erased"]), (false, &json!(0)), "{erasure}");
    assert!(erasure["left"].as_array().unwrap().iter().all(|left| left["from"].is_string()));
    assert_ne!(ask(&scene, BOOK, &token).await, StatusCode::OK, "an end is final");

    clock.advance(2 * HOUR + Duration::from_secs(301));
    let (all, erasure) = erase(&scene, "kari-nordmann").await;
    let emptied = json!({ "erased": 2, "left": [], "log_has_traces": false });
    assert_eq!((all, without_traces(erasure)), (true, emptied));
    assert_eq!(ask(&scene, BOOK, &token).await, StatusCode::UNAUTHORIZED, "too old by then");
    let again = without_traces(erase(&scene, "kari-nordmann").await.1);
    assert_eq!(again, json!({ "erased": 0, "left": [], "log_has_traces": false }));
    assert_ne!(of_kari(&scene).await, pseudonym);
    let gone = async || !is_in_files(&scene.dir.path().join("data"), bytes.as_bytes());
    scene.until("no file of the ledger has it", gone).await;
    assert_eq!(ask(&scene, BOOK, &scene.token("ola")).await, StatusCode::OK, "not his");
    let accesses: Value = scene.admin("/api/v1/accesses").await.json().await.unwrap();
    let erasures = accesses["accesses"].as_array().unwrap().iter();
    let erasures: Vec<_> = erasures.filter(|it| it["what"] == "erase-borrower").collect();
    assert_eq!(erasures.len(), 4);
    assert!(erasures.iter().all(|it| it["why"] == "case 7" && it["target"].is_null()));
    scene.stop_gate().await;
    scene.start_gate().await;
    scene.end().await;
}

/// The title of this number, with its check digit.
fn title(number: usize) -> String {
    let digits = format!("978829999{number:03}");
    let sum: u32 = digits
        .chars()
        .zip([1, 3].into_iter().cycle())
        .map(|(digit, weight)| digit.to_digit(10).unwrap() * weight)
        .sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_has_every_loan_of_the_person_and_no_id() {
    let limit = "[brake]\nattempts_per_borrower_per_hour = 1000\n\n[ledger]";
    let setting = Setting { config: vec![("[ledger]", limit)], ..Setting::default() };
    let scene = scene_with(setting).await;
    let titles: Vec<String> = (0..130).map(title).collect();
    for isbn in &titles {
        scene.origin.put(&format!("{isbn}/file"), File::of(10));
    }
    let token = scene.token("kari-nordmann");
    for isbn in &titles {
        assert_eq!(ask(&scene, isbn, &token).await, StatusCode::OK);
    }
    assert_eq!(ask(&scene, &titles[0], &scene.token("ola")).await, StatusCode::OK);
    let run = privacy(&scene, &["export"], "kari-nordmann").await;
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(!text.contains("kari"));
    let export: Value = serde_json::from_str(&text).unwrap();
    let loans = export["loans"].as_array().unwrap();
    let mut exported: Vec<_> = loans.iter().map(|loan| loan["isbn"].as_str().unwrap()).collect();
    exported.sort_unstable();
    assert_eq!(exported, titles, "each once, over two pages");
    for loan in loans {
        assert_eq!(loan["borrower"], export["borrower"]);
        assert!(loan["history"].as_array().is_some_and(|steps| steps.len() >= 2), "{loan}");
    }
    let of_nobody = privacy(&scene, &["export"], "").await;
    assert!(!of_nobody.status.success());
    let body = json!({ "library": LIBRARY, "borrower": "kari", "reason": " " });
    let response = scene.admin_post("/api/v1/privacy/erase", &body);
    assert_eq!(response.await.status(), StatusCode::BAD_REQUEST);
    scene.end().await;
}
