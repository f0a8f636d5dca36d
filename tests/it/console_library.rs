//! The console's page of a library, its downloads, the mark for the balance, and unknown addresses;
//! and a support person's work on each store.

use std::io::Cursor;

use calamine::{Data, Reader, Xlsx};
use http::StatusCode;
use loangate::circulation::date_in_oslo;
use loangate::clock::Clock;
use loangate::sandbox::{Library, Licence, Title, World};
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::console::{Browser, Seen};
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, LIBRARY, Postgres, Scene};

const PRICES: &str = "PAY_PER_LOAN,23.5\n";
const SIZES: &str = "9788299999014,1000\n9788299999038,1000\n";
/// A licence type that a spreadsheet program would run.
const FORMULA: &str = "=1+2";

fn title(isbn: &str, kind: &str) -> Title {
    let licences = vec![Licence::new(format!("L-{isbn}"), kind, Some(4))];
    Title { isbn: isbn.parse().unwrap(), licences, loan_days: 21, refuse: None }
}

/// Starts a gate whose library lends a title that is paid by use, and one of a hostile type.
async fn start(database: Option<&str>) -> Scene {
    let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
    let titles = vec![title(BOOK, "PAY_PER_LOAN"), title(AUDIO, FORMULA)];
    let world = World { libraries: vec![library], titles, ..World::default() };
    let brake = "[brake]\nmode = \"enforce\"\nlibrary_per_hour = 500\n\n[ledger]";
    let config = vec![("[ledger]", brake)];
    let mut scene = Scene::without_gate(Setting { world, config, ..Setting::default() }).await;
    scene.report_usage(PRICES, SIZES, "");
    if let Some(url) = database {
        scene.use_database(url);
    }
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/book.epub"), File::of(1000));
    }
    scene.start_gate().await;
    scene
}

async fn read(scene: &Scene, borrower: &str, isbn: &str) -> StatusCode {
    let path = format!("/files/{isbn}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap();
    let status = answer.status();
    answer.bytes().await.unwrap();
    status
}

/// Lends two books and an audiobook, of which Bokbasen refuses one more for its budget, and waits
/// until the books are reported.
async fn lend(scene: &Scene) {
    for (borrower, isbn) in [("kari", BOOK), ("ola", BOOK), ("kari", AUDIO)] {
        assert_eq!(read(scene, borrower, isbn).await, StatusCode::OK);
    }
    let refuse = json!({ "refuse": { "code": "BUDGET_EXCEEDED" } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    assert_eq!(read(scene, "liv", BOOK).await, StatusCode::FORBIDDEN);
    scene.no_faults().await;
    let reported = async || {
        let reports = scene.reports().await;
        reports.iter().filter(|report| report["state"] == "reported").count() == 2
    };
    scene.until("the reports", reported).await;
}

async fn with_purpose(scene: &Scene) -> Browser {
    let mut browser = Browser::sign_in(scene).await;
    browser.post("/purpose", &[("purpose", "case 4711"), ("next", "/")]).await;
    browser
}

/// Returns a page of the library once it has these words.
async fn page_with(scene: &Scene, browser: &mut Browser, path: &str, words: &str) -> String {
    let mut page = String::new();
    for _ in 0..600 {
        page = browser.get(path).await.body;
        if page.contains(words) {
            return page;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{} has no {words}: {page}", scene.admin);
}

/// Returns the texts of the cells of the row that has this one.
fn row_of<'a>(page: &'a str, section: &str, cell: &str) -> Vec<&'a str> {
    let (_, section) = page.split_once(&format!("id=\"{section}\"")).unwrap();
    let row = section.split("<tr").find(|row| row.contains(cell)).unwrap();
    let cells = row.split("<td").skip(1).map(|cell| {
        let text = cell.split_once('>').unwrap().1.split("</td>").next().unwrap();
        let mut texts = text.split(['<', '>']).step_by(2).map(str::trim);
        texts.find(|text| !text.is_empty()).unwrap_or_default()
    });
    cells.collect()
}

async fn download(browser: &mut Browser, path: &str) -> (http::HeaderMap, Vec<u8>) {
    let cookies: Vec<_> =
        browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let request = browser.client.get(format!("{}{path}", browser.base));
    let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    (answer.headers().clone(), answer.bytes().await.unwrap().to_vec())
}

fn of_library(path: &str) -> String {
    format!("{path}?library={LIBRARY}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn library_shows_loans_costs_refusals_and_the_brake() {
    let scene = start(None).await;
    lend(&scene).await;
    let mut browser = Browser::sign_in(&scene).await;
    let seen = browser.get(&of_library("/library")).await;
    assert!(seen.location().starts_with("/purpose?next=%2Flibrary"), "a look needs a purpose");
    let mut browser = with_purpose(&scene).await;
    let choice = browser.get("/library").await.body;
    assert!(choice.contains(&format!("href=\"{}\"", of_library("/library"))), "{choice}");
    let page = page_with(&scene, &mut browser, &of_library("/library"), "47.00").await;
    assert_eq!(row_of(&page, "titles", BOOK)[1..6], ["PAY_PER_LOAN", "2", "0", "0", "47.00"]);
    assert_eq!(row_of(&page, "types", FORMULA), [FORMULA, "1", "0", "0", "0.00"]);
    assert_eq!(row_of(&page, "brake", "Loans in an hour")[1..], ["3", "500"]);
    let today = date_in_oslo(Clock::system().now()).to_string();
    assert_eq!(row_of(&page, "days", &today), [&*today, "3", "1", "1", "47.00"]);
    // The refused title has no licence type, so a row of its own.
    let by_title = format!("{}&sort=title", of_library("/library"));
    let by_title = page_with(&scene, &mut browser, &by_title, "47.00").await;
    let place = |text: &str| by_title.split_once("id=\"titles\"").unwrap().1.find(text).unwrap();
    assert!(place(BOOK) < place(AUDIO), "{by_title}");
    for wrong in ["?library=%3Cb%3E", &format!("?library={LIBRARY}&month=2026-13")] {
        let page = browser.get(&format!("/library{wrong}")).await;
        assert!(page.body.contains("Write the library as an ISIL"), "{wrong}");
    }
    let empty = format!("{}&month=2001-01", of_library("/library"));
    page_with(&scene, &mut browser, &empty, "There are no loans in this month").await;
    browser.post("/preferences", &[("language", "nb")]).await;
    let page = page_with(&scene, &mut browser, &of_library("/library"), "47,00").await;
    assert!(page.contains("Over budsjett"), "{page}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_have_the_numbers_and_no_formula() {
    let scene = start(None).await;
    lend(&scene).await;
    let mut browser = with_purpose(&scene).await;
    page_with(&scene, &mut browser, &of_library("/library"), "47.00").await;
    let (headers, csv) = download(&mut browser, &of_library("/library.csv")).await;
    let disposition = headers["content-disposition"].to_str().unwrap();
    assert!(disposition.starts_with(&format!("attachment; filename=\"loans-{LIBRARY}-")));
    assert!(disposition.ends_with(".csv\""), "{disposition}");
    assert_eq!(headers["cache-control"], "no-store");
    let csv = String::from_utf8(csv).unwrap();
    let expected = format!(
        "isbn,licence_type,loans,refused,budget_exceeded,cost_nok,open_reports\n\
         {BOOK},PAY_PER_LOAN,2,0,0,47.00,0\n{AUDIO},'{FORMULA},1,0,0,0.00,0\n\
         {BOOK},,0,1,1,0.00,0\n"
    );
    assert_eq!(csv, expected);
    let (headers, bytes) = download(&mut browser, &of_library("/library.xlsx")).await;
    assert!(headers["content-disposition"].to_str().unwrap().ends_with(".xlsx\""));
    let mut book: Xlsx<_> = Xlsx::new(Cursor::new(bytes)).unwrap();
    assert_eq!(book.sheet_names(), ["Titles", "Licence types", "Days"]);
    for name in book.sheet_names() {
        assert!(book.worksheet_formula(&name).unwrap().cells().next().is_none(), "{name}");
    }
    let titles = book.worksheet_range("Titles").unwrap();
    let text = |text: &str| Data::String(text.to_owned());
    let first = [text(BOOK), text("PAY_PER_LOAN"), Data::Float(2.0), Data::Float(0.0)];
    assert_eq!(titles.rows().nth(1).unwrap()[..4], first);
    assert_eq!(titles.get((1, 5)), Some(&Data::Float(47.0)));
    assert_eq!(titles.get((2, 1)), Some(&text(FORMULA)));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_at_a_library_are_in_the_trail_or_refused() {
    let scene = start(None).await;
    lend(&scene).await;
    let mut browser = with_purpose(&scene).await;
    for path in ["/library", "/library.csv", "/library.xlsx"] {
        assert_eq!(browser.get(&of_library(path)).await.status, StatusCode::OK, "{path}");
    }
    browser.post("/library/availability", &[("library", LIBRARY)]).await;
    let trail: Value = scene.admin("/api/v1/accesses").await.json().await.unwrap();
    let by_ida = trail["accesses"].as_array().unwrap().iter().rev();
    let by_ida = by_ida.filter(|access| access["library"] == LIBRARY);
    let found: Vec<_> = by_ida.map(|access| json!([access["what"], access["why"]])).collect();
    let expected = ["show-library", "download-library", "download-library", "query-availability"];
    assert_eq!(found, expected.map(|what| json!([what, "case 4711"])));

    let options = SqliteConnectOptions::new().filename(scene.dir.path().join("data/loangate.db"));
    let mut ledger = SqliteConnection::connect_with(&options).await.unwrap();
    let trigger = "CREATE TRIGGER unrecorded BEFORE INSERT ON history \
         WHEN new.to_state = 'access' BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    sqlx::query(trigger).execute(&mut ledger).await.unwrap();
    for path in ["/library", "/library.csv", "/library.xlsx"] {
        let seen = browser.get(&of_library(path)).await;
        assert_eq!(seen.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(!seen.body.contains(BOOK), "{path}: {}", seen.body);
    }
    sqlx::query("DROP TRIGGER unrecorded").execute(&mut ledger).await.unwrap();
    ledger.close().await.unwrap();
    scene
        .until("the ledger", async || scene.admin("/api/v1/loans").await.status().is_success())
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn availability_is_queried_by_a_form_only() {
    let scene = start(None).await;
    lend(&scene).await;
    let mut browser = with_purpose(&scene).await;
    let path = of_library("/library");
    let page = page_with(&scene, &mut browser, &path, BOOK).await;
    assert_eq!(row_of(&page, "titles", BOOK).last(), Some(&"not queried"));
    let seen = browser.post("/library/availability", &[("library", LIBRARY)]).await;
    assert!(seen.location().ends_with("#titles"), "{}", seen.location());
    let page = browser.get(&path).await.body;
    assert_eq!(row_of(&page, "titles", BOOK).last(), Some(&"2 free"), "four, two of them lent");
    scene.end().await;
}

/// Signs in, finds a loan, reads why, ends it with a reason, and opens its library.
async fn work(scene: &Scene) {
    lend(scene).await;
    let mut browser = with_purpose(scene).await;
    let seen = browser.find("kari", LIBRARY).await;
    let loans = browser.follow(seen).await.body;
    let (_, after) = loans.split_once("href=\"/loans/").unwrap();
    let loan = format!("/loans/{}", after.split('"').next().unwrap());
    assert_eq!(browser.get(&loan).await.status, StatusCode::OK);
    let path = format!("/files/{BOOK}/book.epub");
    let fields = [("library", LIBRARY), ("borrower", "kari"), ("path", &path), ("purpose", "a")];
    let why = browser.post("/why", &fields).await;
    assert!(why.body.contains("<ol class=\"steps\""), "{}", why.body);
    let seen = browser.post(&format!("{loan}/end"), &[("reason", "asked for")]).await;
    let page = browser.follow(seen).await;
    assert!(page.body.contains("asked for"), "{}", page.body);
    scene
        .until("the end", async || scene.ledger().await.iter().any(|loan| loan["state"] == "ended"))
        .await;
    let page = page_with(scene, &mut browser, &of_library("/library"), "47.00").await;
    assert_eq!(row_of(&page, "titles", BOOK)[1..6], ["PAY_PER_LOAN", "2", "0", "0", "47.00"]);
    let (_, bytes) = download(&mut browser, &of_library("/library.xlsx")).await;
    let mut book: Xlsx<_> = Xlsx::new(Cursor::new(bytes)).unwrap();
    assert_eq!(book.worksheet_range("Titles").unwrap().get((1, 5)), Some(&Data::Float(47.0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn support_person_works_on_sqlite() {
    let scene = start(None).await;
    work(&scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn support_person_works_on_postgresql() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let scene = start(Some(&format!("{}?sslmode=disable", database.url()))).await;
    work(&scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_address_is_a_page_of_the_console() {
    let scene = start(None).await;
    let mut browser = Browser::at(&scene);
    for path in ["/nothing", "/library/nothing", "/loans/1/2/3"] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{path}");
        assert!(seen.location().starts_with("/sign-in?next="), "{path}: {}", seen.location());
        let seen = browser.post(path, &[]).await;
        assert_eq!(seen.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(seen.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    }
    let is_json = |seen: &Seen| seen.headers["content-type"] == "application/problem+json";
    for path in ["/api", "/api/", "/api/v1/nothing", "/metrics", "/openapi.json"] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(is_json(&seen), "{path}: {seen:?}");
    }
    let mut browser = Browser::sign_in(&scene).await;
    for path in ["/nothing", "/library/nothing", "/loans/1/2/3"] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, StatusCode::NOT_FOUND, "{path}");
        assert!(seen.body.contains("<h1>Not found</h1>"), "{path}: {}", seen.body);
        assert!(seen.headers.contains_key("content-security-policy"), "{path}");
    }
    scene.end().await;
}
