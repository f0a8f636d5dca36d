//! Usage reports: what is due, what is sent and how often, and what a person must look at.

use std::path::Path;
use std::process::{Command, Output};

use http::StatusCode;
use loangate::sandbox::{Library, Licence, Title, World};
use serde_json::{Value, json};

use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, Setting};

const PRICES: &str = "PAY_PER_LOAN,23.5\nPACKAGE,1000\n";
/// The sizes of both titles.
const SIZES: &str = "isbn,bytes\n9788299999014,5000\n9788299999038,5000\n";
const SIZE: u64 = 5000;

async fn scene(prices: &str, sizes: &str, keys: &str) -> Scene {
    scene_of(Setting::default(), prices, sizes, keys).await
}

async fn scene_of(setting: Setting, prices: &str, sizes: &str, keys: &str) -> Scene {
    let mut scene = Scene::without_gate(setting).await;
    scene.report_usage(prices, sizes, keys);
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/book.epub"), File::of(SIZE));
    }
    scene.start_gate().await;
    scene
}

/// Reads a range of a title's only file, and waits until the ledger has counted it.
async fn read(scene: &Scene, borrower: &str, isbn: &str, range: &str, covered: u64) {
    let path = format!("/files/{isbn}/book.epub");
    let request = scene.get(&scene.http1(), &path, &scene.token(borrower));
    let answer = request.header("range", range).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    answer.bytes().await.unwrap();
    let is_counted = async || {
        scene.ledger().await.iter().filter(|loan| loan["isbn"] == isbn).any(|loan| {
            let ranges = loan["delivered"][&path]["ranges"].as_array();
            let length = |pair: &Value| pair[1].as_u64().unwrap() - pair[0].as_u64().unwrap() + 1;
            ranges.is_some_and(|ranges| ranges.iter().map(length).sum::<u64>() >= covered)
        })
    };
    scene.until("the delivered bytes are counted", is_counted).await;
}

/// Waits until the title has a report in this state, and returns it.
async fn until_state(scene: &Scene, isbn: &str, state: &str) -> Value {
    let is_there = async || {
        scene.reports().await.iter().any(|one| one["isbn"] == isbn && one["state"] == state)
    };
    scene.until(state, is_there).await;
    let reports = scene.reports().await;
    reports.into_iter().find(|report| report["isbn"] == isbn).unwrap()
}

async fn loangate(scene: &Scene, arguments: &[&str]) -> Output {
    // The listener has chosen its port.
    let text = std::fs::read_to_string(scene.config_file()).unwrap();
    let address = scene.admin.trim_start_matches("http://");
    let config = scene.dir.path().join("admin.toml");
    let admin = text.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{address}\""));
    std::fs::write(&config, admin).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.arg("report").args(arguments).arg("--config").arg(config);
    // The gate runs on this thread.
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn reconcile(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(["ledger", "reconcile"]).args(arguments).arg("--config").arg(config);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn loan_is_reported_once_when_a_tenth_was_delivered() {
    let scene = scene(PRICES, SIZES, "").await;
    read(&scene, "kari", BOOK, "bytes=0-498", 499).await;
    // The bytes that are requested again do not count again.
    read(&scene, "kari", BOOK, "bytes=0-498", 499).await;
    read(&scene, "kari", AUDIO, "bytes=0-4999", 5000).await;
    until_state(&scene, AUDIO, "reported").await;
    // The book's loan is older, so it was assessed before.
    assert_eq!(scene.reports().await.len(), 1, "499 of 5000 bytes are less than a tenth");
    read(&scene, "kari", BOOK, "bytes=4999-4999", 500).await;
    let report = until_state(&scene, BOOK, "reported").await;
    assert_eq!((&report["evidence"], &report["read"]), (&"coverage".into(), &json!(0.1)));
    assert_eq!((&report["covered"], &report["size"]), (&json!(500), &json!(SIZE)));
    let booked = scene.booked_reports().await;
    let of_book: Vec<_> = booked.iter().filter(|report| report["isbn"] == BOOK).collect();
    assert_eq!(of_book.len(), 1, "{booked:?}");
    assert_eq!(
        (&of_book[0]["model"], &of_book[0]["price"]),
        (&"PAY_PER_LOAN".into(), &json!(23.5))
    );
    assert_eq!(of_book[0]["date"], report["date"]);
    // The loan's history has each step.
    let loan = report["loan"].as_str().unwrap();
    let loan: Value = scene.admin(&format!("/api/v1/loans/{loan}")).await.json().await.unwrap();
    let steps: Vec<_> = loan["history"].as_array().unwrap().iter().collect();
    let of_report: Vec<_> = steps.iter().filter(|step| step["cause"] == "report").collect();
    assert_eq!(of_report.len(), 3, "due, sending, reported: {steps:?}");
    scene.end().await;
}

#[tokio::test]
async fn progress_of_the_app_counts_more_than_deliveries() {
    let scene = scene(PRICES, SIZES, "").await;
    let token = scene.token("kari");
    for (isbn, progress) in [(BOOK, "0.0999"), (AUDIO, "0.1")] {
        let (status, _) = scene.call_api("PUT", &format!("/loans/{isbn}"), &token, "").await;
        assert_eq!(status, StatusCode::CREATED);
        let body = format!("{{\"fraction\": {progress}}}");
        let path = format!("/loans/{isbn}/progress");
        let (status, answer) = scene.call_api("PUT", &path, &token, &body).await;
        assert!(status.is_success(), "{status} {answer}");
    }
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, AUDIO, "reported").await;
    assert_eq!((&report["evidence"], &report["read"]), (&"progress".into(), &json!(0.1)));
    assert_eq!(scene.reports().await.len(), 1, "the app says that less than a tenth was read");
    assert_eq!(scene.booked_reports().await.len(), 1);
    scene.end().await;
}

#[tokio::test]
async fn package_is_reported_once_for_all_its_loans() {
    let licences = vec![Licence::new("P-1", "PACKAGE", None)];
    let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
    let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
    let world = World { libraries: vec![library], titles: vec![title], ..World::default() };
    let scene = scene_of(Setting { world, ..Setting::default() }, PRICES, SIZES, "").await;
    for borrower in ["kari", "ola", "per"] {
        let token = scene.token(borrower);
        let (status, _) = scene.call_api("PUT", &format!("/loans/{BOOK}"), &token, "").await;
        assert_eq!(status, StatusCode::CREATED);
        let report = until_state(&scene, BOOK, "reported").await;
        assert_eq!((&report["model"], &report["licence_id"]), (&"PACKAGE".into(), &"P-1".into()));
    }
    assert_eq!(scene.reports().await.len(), 1);
    let booked = scene.booked_reports().await;
    assert_eq!(booked.len(), 1, "{booked:?}");
    assert_eq!((&booked[0]["model"], &booked[0]["price"]), (&"PACKAGE".into(), &json!(1000.0)));
    scene.end().await;
}

#[tokio::test]
async fn report_that_may_have_arrived_goes_to_a_person_and_is_not_sent_again() {
    for (effect, arrived) in [
        (json!("cut_after"), 1),
        (json!("cut_before"), 0),
        (json!("garbage"), 1),
        (json!({ "status": { "status": 503 } }), 0),
        (json!({ "status": { "status": 502, "made": true } }), 1),
        (json!({ "hang": { "made": true } }), 1),
    ] {
        let scene = scene(PRICES, SIZES, "").await;
        scene.fault(&json!({ "call": "report", "times": 1, "effect": effect })).await;
        read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
        let report = until_state(&scene, BOOK, "unknown").await;
        assert_eq!((&report["for_a_person"], &report["attempts"]), (&true.into(), &json!(1)));
        assert!(report["note"].as_str().is_some_and(|note| !note.is_empty()), "{report}");
        // A report of another loan is sent afterwards, and this one is not.
        read(&scene, "kari", AUDIO, "bytes=0-4999", 5000).await;
        until_state(&scene, AUDIO, "reported").await;
        assert_eq!(scene.booked_reports().await.len(), arrived + 1, "{effect}");
        assert_eq!(until_state(&scene, BOOK, "unknown").await["attempts"], 1);
        scene.end().await;
    }
}

#[tokio::test]
async fn report_that_was_not_recorded_is_sent_again() {
    for effect in [json!({ "status": { "status": 429, "retry_after": 0 } }), json!("expire_token")]
    {
        let scene = scene(PRICES, SIZES, "").await;
        scene.fault(&json!({ "call": "report", "times": 1, "effect": effect })).await;
        read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
        until_state(&scene, BOOK, "reported").await;
        assert_eq!(scene.booked_reports().await.len(), 1, "{effect}");
        scene.end().await;
    }
}

#[tokio::test]
async fn report_without_a_price_waits_for_the_list() {
    let scene = scene("PACKAGE,1\n", SIZES, "").await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, BOOK, "unpriced").await;
    assert_eq!((&report["price"], &report["for_a_person"]), (&Value::Null, &true.into()));
    std::fs::write(scene.dir.path().join("prices.csv"), format!("{BOOK},29.90\n")).unwrap();
    let report = until_state(&scene, BOOK, "reported").await;
    assert_eq!(report["price"], "29.90");
    assert_eq!(scene.booked_reports().await[0]["price"], 29.9);
    scene.end().await;
}

#[tokio::test]
async fn person_resolves_an_unknown_report() {
    let scene = scene(PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "times": 1, "effect": "cut_after" })).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, BOOK, "unknown").await;
    let loan = report["loan"].as_str().unwrap();
    let again = loangate(&scene, &["resolve", loan, "--as", "due", "--reason", "again"]).await;
    assert!(!again.status.success(), "an unknown report was made due");
    let reason = "Bokbasen has it, case 17";
    let resolved =
        loangate(&scene, &["resolve", loan, "--as", "reported", "--reason", reason]).await;
    assert!(resolved.status.success(), "{}", String::from_utf8_lossy(&resolved.stderr));
    let report = until_state(&scene, BOOK, "reported").await;
    assert_eq!(report["note"], reason);
    let again = loangate(&scene, &["resolve", loan, "--as", "not-reported", "--reason", "x"]).await;
    assert!(!again.status.success(), "a settled report was changed");
    assert_eq!(scene.booked_reports().await.len(), 1);
    scene.end().await;
}

#[tokio::test]
async fn month_is_shown_in_each_form() {
    let scene = scene(PRICES, SIZES, "").await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, BOOK, "reported").await;
    scene.fault(&json!({ "call": "report", "times": 1, "effect": "cut_before" })).await;
    read(&scene, "kari", AUDIO, "bytes=0-4999", 5000).await;
    until_state(&scene, AUDIO, "unknown").await;
    let month = &report["date"].as_str().unwrap()[..7];
    let of = async |format: &str, more: &[&str]| {
        let arguments = [&["--month", month, "--format", format], more].concat();
        let output = loangate(&scene, &arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = of("table", &[]).await;
    assert!(table.contains("1 reported, 23.50 NOK") && table.contains("1 for a person"), "{table}");
    let json: Value = serde_json::from_str(&of("json", &["--library", LIBRARY]).await).unwrap();
    assert_eq!(json["reports"].as_array().unwrap().len(), 2);
    assert_eq!(json["corrections"][0]["isbn"], AUDIO);
    let other: Value =
        serde_json::from_str(&of("json", &["--library", "NO-1103000"]).await).unwrap();
    assert_eq!(other["reports"].as_array().unwrap().len(), 0);
    assert_eq!(of("csv", &[]).await.lines().count(), 3);
    assert!(of("html", &["--lang", "nb"]).await.contains("Bruk rapportert til Bokbasen"));
    let file = scene.dir.path().join("report.xlsx");
    of("xlsx", &["--output", file.to_str().unwrap()]).await;
    assert!(std::fs::read(&file).unwrap().starts_with(b"PK"));
    let again = ["--month", month, "--format", "xlsx", "--output", file.to_str().unwrap()];
    assert!(!loangate(&scene, &again).await.status.success(), "the file was overwritten");
    scene.end().await;
}

#[tokio::test]
async fn loan_of_a_title_of_unknown_size_waits_for_a_person_or_the_size() {
    let clock = crate::support::scene::movable_clock();
    let setting = Setting { clock: clock.clone(), ..Setting::default() };
    let scene = scene_of(setting, PRICES, "# none\n", "").await;
    let token = scene.token("kari");
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let (status, _) = scene.call_api("DELETE", &format!("/loans/{BOOK}"), &token, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let ended = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the loan is over", ended).await;
    assert_eq!(scene.reports().await.len(), 0, "it is not due by coverage");
    clock.advance(std::time::Duration::from_secs(25 * 3600));
    let report = until_state(&scene, BOOK, "unmeasured").await;
    assert_eq!((&report["covered"], &report["size"]), (&json!(5000), &Value::Null));
    assert_eq!(scene.booked_reports().await.len(), 0);
    std::fs::write(scene.dir.path().join("sizes.csv"), SIZES).unwrap();
    let report = until_state(&scene, BOOK, "reported").await;
    assert_eq!((&report["evidence"], &report["read"]), (&"coverage".into(), &json!(1.0)));
    assert_eq!(scene.booked_reports().await.len(), 1);
    scene.end().await;
}

#[tokio::test]
async fn report_that_was_due_before_the_first_day_goes_to_a_person() {
    let mut scene = scene(PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "effect": { "status": { "status": 429 } } })).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    until_state(&scene, BOOK, "due").await;
    scene.stop_gate().await;
    scene.no_faults().await;
    // As after a restore from a backup.
    scene.replace_in_config("since = \"2020-01-01\"", "since = \"2100-01-01\"");
    scene.start_gate().await;
    until_state(&scene, BOOK, "unknown").await;
    assert_eq!(scene.booked_reports().await.len(), 0);
    scene.end().await;
}

#[tokio::test]
async fn rejected_report_of_before_a_restore_is_not_sent_again() {
    let mut scene = scene(PRICES, SIZES, "").await;
    let rejection = json!({ "status": { "status": 400 } });
    scene.fault(&json!({ "call": "report", "times": 1, "effect": rejection })).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, BOOK, "rejected").await;
    scene.stop_gate().await;
    let config = scene.config_file();
    for (arguments, sentence) in [
        (&[][..], "shows no loss"),
        (&["--balanced-since", "2026-01-01"], "is for a ledger in PostgreSQL"),
    ] {
        let refused = reconcile(&config, arguments).await;
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && error.contains(sentence), "{error}");
    }
    let reconciled = reconcile(&config, &["--restored"]).await;
    assert!(reconciled.status.success(), "{}", String::from_utf8_lossy(&reconciled.stderr));
    scene.start_gate().await;
    let loan = report["loan"].as_str().unwrap();
    let again = loangate(&scene, &["resolve", loan, "--as", "due", "--reason", "again"]).await;
    let error = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && error.contains("before the ledger was restored"), "{error}");
    until_state(&scene, BOOK, "rejected").await;
    assert_eq!(scene.booked_reports().await.len(), 0);
    scene.end().await;
}

#[tokio::test]
async fn damaged_loan_does_not_keep_others_from_being_reported() {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection};
    let mut scene = scene(PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "effect": { "status": { "status": 429 } } })).await;
    for isbn in [BOOK, AUDIO] {
        read(&scene, "kari", isbn, "bytes=0-4999", 5000).await;
        until_state(&scene, isbn, "due").await;
    }
    scene.stop_gate().await;
    scene.no_faults().await;
    let file = scene.dir.path().join("data/loangate.db");
    let mut ledger = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    // The reports are sent in the order of their loans, so this one is the first.
    let damage = "UPDATE loans SET isbn = 7 WHERE id = (SELECT min(id) FROM loans)";
    sqlx::query(damage).execute(&mut ledger).await.unwrap();
    ledger.close().await.unwrap();
    scene.start_gate().await;
    until_state(&scene, AUDIO, "reported").await;
    until_state(&scene, BOOK, "due").await;
    assert_eq!(scene.booked_reports().await.len(), 1, "sent without a step in the trail");
    scene.stop_gate().await;
    scene.stop_sandbox().await;
}

async fn problem(scene: &Scene, code: &str) -> Option<Value> {
    let list: Value = scene.admin("/api/v1/problems").await.json().await.unwrap();
    list["problems"].as_array().unwrap().iter().find(|problem| problem["code"] == code).cloned()
}

#[tokio::test]
async fn report_for_a_person_is_a_problem_until_it_is_settled() {
    let scene = scene(PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "times": 1, "effect": "cut_before" })).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let report = until_state(&scene, BOOK, "unknown").await;
    let code = "reports-for-a-person";
    scene.until("the problem is listed", async || problem(&scene, code).await.is_some()).await;
    let listed = problem(&scene, code).await.unwrap();
    assert_eq!(listed["what"], "A usage report waits for a person.");
    assert_eq!(listed["runbook"], "docs/runbook.md#reports-for-a-person");
    assert!(problem(&scene, "reports-late").await.is_none());
    let loan = report["loan"].as_str().unwrap();
    let resolve = ["resolve", loan, "--as", "not-reported", "--reason", "invoiced by hand"];
    assert!(loangate(&scene, &resolve).await.status.success());
    scene.end().await;
}

#[tokio::test]
async fn due_report_that_is_not_sent_for_a_day_is_a_problem() {
    let clock = crate::support::scene::movable_clock();
    let setting = Setting { clock: clock.clone(), ..Setting::default() };
    let scene = scene_of(setting, PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "effect": { "status": { "status": 429 } } })).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    until_state(&scene, BOOK, "due").await;
    assert!(problem(&scene, "reports-late").await.is_none());
    clock.advance(std::time::Duration::from_secs(25 * 3600));
    let is_listed = async || problem(&scene, "reports-late").await.is_some();
    scene.until("the problem is listed", is_listed).await;
    let listed = problem(&scene, "reports-late").await.unwrap();
    assert_eq!(listed["what"], "A usage report has been due for more than a day.");
    assert!(problem(&scene, "reports-for-a-person").await.is_none());
    scene.end().await;
}

/// Otherwise 5 % by each of two routes would make the loan due.
#[tokio::test]
async fn file_of_two_routes_is_counted_once() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.report_usage(PRICES, SIZES, "");
    let routes = "[[routes]]\npath = \"/again/{isbn}/{*file}\"\norigin = \"files\"\n\
                  to = \"{isbn}/{file}\"\n\n[[routes]]";
    scene.replace_in_config("[[routes]]", routes);
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/book.epub"), File::of(SIZE));
    }
    scene.start_gate().await;
    read(&scene, "kari", BOOK, "bytes=0-299", 300).await;
    let path = format!("/again/{BOOK}/book.epub");
    let request = scene.get(&scene.http1(), &path, &scene.token("kari"));
    let answer = request.header("range", "bytes=0-299").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    answer.bytes().await.unwrap();
    let is_counted = async || {
        let loans = scene.ledger().await;
        loans.iter().any(|loan| loan["delivered"].get(&path).is_some())
    };
    scene.until("the delivered bytes are counted", is_counted).await;
    // The book's loan is older, so it is assessed before.
    read(&scene, "kari", AUDIO, "bytes=0-4999", 5000).await;
    until_state(&scene, AUDIO, "reported").await;
    assert_eq!(scene.reports().await.len(), 1, "300 of 5000 bytes are less than a tenth");
    scene.end().await;
}

/// A report without a measure is measured again each time, which must not make it a new one.
#[tokio::test]
async fn unmeasured_report_of_before_since_is_not_sent() {
    let clock = crate::support::scene::movable_clock();
    let setting = Setting { clock: clock.clone(), ..Setting::default() };
    let mut scene = scene_of(setting, PRICES, "# none\n", "").await;
    let token = scene.token("kari");
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    let (status, _) = scene.call_api("DELETE", &format!("/loans/{BOOK}"), &token, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let ended = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the loan is over", ended).await;
    clock.advance(std::time::Duration::from_secs(25 * 3600));
    until_state(&scene, BOOK, "unmeasured").await;
    scene.stop_gate().await;
    // As after a restore from a backup, in whose lost time the size was known.
    let tomorrow = loangate::circulation::date_in_oslo(clock.now()).tomorrow().unwrap();
    let since = format!("since = \"{tomorrow}\"");
    scene.replace_in_config("since = \"2020-01-01\"", &since);
    clock.advance(std::time::Duration::from_secs(48 * 3600));
    std::fs::write(scene.dir.path().join("sizes.csv"), SIZES).unwrap();
    scene.start_gate().await;
    let report = until_state(&scene, BOOK, "unknown").await;
    assert!(report["note"].as_str().unwrap().contains("before [reports] since"), "{report}");
    assert_eq!(scene.booked_reports().await.len(), 0);
    scene.end().await;
}

/// Waits until the gate has worked through the books once from now on. It marks the report of this
/// title as one of a dead process twice, which the first step of a run passes to a person.
async fn until_worked_through(scene: &Scene, isbn: &str) {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection};
    let file = scene.dir.path().join("data/loangate.db");
    for _ in 0..2 {
        let mut ledger = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let mark = "UPDATE reports SET state = 'sending', owner = 'dead', sent = 1, \
             price = coalesce(price, 1) WHERE isbn = ?";
        let isbn_number: i64 = isbn.parse().unwrap();
        sqlx::query(mark).bind(isbn_number).execute(&mut ledger).await.unwrap();
        ledger.close().await.unwrap();
        until_state(scene, isbn, "unknown").await;
    }
}

#[tokio::test]
async fn wrong_clock_makes_nothing_due() {
    let clock = crate::support::scene::movable_clock();
    let scene = scene_of(Setting { clock, ..Setting::default() }, PRICES, SIZES, "").await;
    scene.fault(&json!({ "call": "report", "times": 1, "effect": "cut_before" })).await;
    read(&scene, "kari", AUDIO, "bytes=0-4999", 5000).await;
    until_state(&scene, AUDIO, "unknown").await;
    read(&scene, "kari", BOOK, "bytes=0-298", 299).await;
    let set_ahead = async |seconds: i64| {
        let settings = json!({ "clock_skew_seconds": seconds });
        scene.control("PUT", "/sandbox/settings", &settings).await;
    };
    set_ahead(3600).await;
    let alarm = async || {
        // Each response of Bokbasen carries its time.
        let path = format!("/files/{BOOK}/book.epub");
        let reader = scene.token(&format!("somebody {}", fastrand::u64(..)));
        let request = scene.get(&scene.http1(), &path, &reader).header("range", "bytes=0-0");
        request.send().await.unwrap().bytes().await.unwrap();
        crate::support::metric(&scene.metrics().await, "loangate_lending_clock_alarm", "")
    };
    scene.until("the difference is measured", async || alarm().await == 2.0).await;
    read(&scene, "kari", BOOK, "bytes=0-4999", 5000).await;
    until_worked_through(&scene, AUDIO).await;
    assert_eq!(scene.reports().await.len(), 1, "assessed by a wrong clock");
    set_ahead(0).await;
    until_state(&scene, BOOK, "reported").await;
    scene.end().await;
}

#[tokio::test]
async fn package_from_before_since_is_not_reported_as_new() {
    let clock = crate::support::scene::movable_clock();
    let licences = vec![Licence::new("P-1", "PACKAGE", None)];
    let title = Title { isbn: BOOK.parse().unwrap(), licences, loan_days: 21, refuse: None };
    let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
    let world = World { libraries: vec![library], titles: vec![title], ..World::default() };
    let mut scene =
        Scene::without_gate(Setting { world, clock: clock.clone(), ..Setting::default() }).await;
    scene.report_usage(PRICES, SIZES, "");
    let tomorrow = loangate::circulation::date_in_oslo(clock.now()).tomorrow().unwrap();
    scene.replace_in_config("since = \"2020-01-01\"", &format!("since = \"{tomorrow}\""));
    scene.start_gate().await;
    let borrow = async |borrower: &str| {
        let token = scene.token(borrower);
        let (status, _) = scene.call_api("PUT", &format!("/loans/{BOOK}"), &token, "").await;
        assert_eq!(status, StatusCode::CREATED);
    };
    borrow("kari").await;
    clock.advance(std::time::Duration::from_secs(48 * 3600));
    until_state(&scene, BOOK, "not-reported").await;
    borrow("ola").await;
    until_worked_through(&scene, BOOK).await;
    assert_eq!(scene.reports().await.len(), 1);
    assert_eq!(scene.booked_reports().await.len(), 0);
    scene.end().await;
}
