//! The console in headless Chromium: a support person's work, by mouse, by keyboard and without a
//! script, with every page checked by axe-core. Nothing is requested from elsewhere, and nothing
//! breaks the policy of the pages.
//!
//! `cargo test --test it screenshots_of_every_page -- --ignored` takes the screenshots in
//! `docs/console`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calamine::{Data, Reader, Xlsx};
use loangate::sandbox::{Library, Licence, Title, World};
use serde_json::{Value, json};

use crate::support::external_program::{direct, output_text, run, run_within};
use crate::support::openid_provider::OpenIdProvider;
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, program};

/// Timeout for all pages, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(540);
/// Where `.ci/run` installs the packages.
const MODULES: &str = "target/browser";
const INSTALL: &str = "npm install --prefix target/browser playwright-core axe-core";

/// Returns the directory with playwright-core and axe-core; none if they are not installed.
fn modules() -> Option<PathBuf> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODULES);
    let has = |name: &str| modules.join("node_modules").join(name).is_dir();
    if has("playwright-core") && has("axe-core") {
        return Some(modules);
    }
    let sentence = format!("skipped: playwright-core or axe-core is not installed; {INSTALL}");
    assert!(std::env::var("LOANGATE_TEST_ALL").is_err(), "{sentence}");
    let _ = writeln!(std::io::stderr(), "{sentence}");
    None
}

/// The usage reports: six loans of the book, and the package with the audiobook.
const REPORTS: usize = 7;

/// A gate with readers who read, and one who was refused.
struct Stage {
    scene: Scene,
    task: Value,
}

async fn stage(provider: Option<&OpenIdProvider>) -> Option<Stage> {
    let (node, chromium) = (program("node", "nodejs")?, program("chromium", "chromium")?);
    let modules = modules()?;
    let brake = "[brake]\nmode = \"shadow\"\nlibrary_per_hour = 40\nlibrary_per_day = 200\n\
                 attempts_per_library_per_hour = 9\n\n[ledger]";
    let world = world();
    let config = vec![("[ledger]", brake)];
    let mut scene = Scene::without_gate(Setting { world, config, ..Setting::default() }).await;
    let sizes = format!("{BOOK},900000\n{AUDIO},5000000\n");
    if let Some(provider) = provider {
        configure(&mut scene, provider);
    }
    scene.report_usage("PAY_PER_LOAN,23.50\nPACKAGE,1250\n", &sizes, "");
    scene.start_gate().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(900_000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(5_000_000));
    let book = format!("/files/{BOOK}/book.epub");
    for reader in ["kari", "ola", "liv", "per", "ane", "siv"] {
        let answer = scene.get(&scene.http1(), &book, &scene.token(reader)).send().await.unwrap();
        answer.bytes().await.unwrap();
    }
    let audio = format!("/files/{AUDIO}/audio.mp3");
    for range in ["bytes=0-799999", "bytes=2000000-3499999", "bytes=4000000-4200000"] {
        // A request that continues a download begins no loan, so the first one has no range.
        let request = scene.get(&scene.http1(), &audio, &scene.token("kari"));
        let has_loan = scene.ledger().await.iter().any(|loan| loan["isbn"] == AUDIO);
        let request = if has_loan { request.header("range", range) } else { request };
        if has_loan {
            request.send().await.unwrap().bytes().await.unwrap();
        } else {
            scene.call_api("PUT", &format!("/loans/{AUDIO}"), &scene.token("kari"), "").await;
        }
    }
    let progress = format!("/loans/{AUDIO}/progress");
    scene.call_api("PUT", &progress, &scene.token("kari"), "{\"fraction\": 0.37}").await;
    let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE", "retry_after": 3600 } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    let refused = scene.get(&scene.http1(), &book, &scene.token("eva")).send().await.unwrap();
    let refused = refused.headers()["x-request-id"].to_str().unwrap().to_owned();
    scene.no_faults().await;
    scene
        .until("the deliveries", async || {
            let loans = scene.ledger().await;
            let audio = loans.iter().find(|loan| loan["isbn"] == AUDIO);
            audio.is_some_and(|loan| !loan["delivered"].as_object().unwrap().is_empty())
        })
        .await;
    let is_reported = async || {
        let reports = scene.reports().await;
        reports.iter().filter(|report| report["state"] == "reported").count() == REPORTS
    };
    scene.until("the reports", is_reported).await;
    // A balance, which the script requests, finds a difference.
    scene.fault(&json!({ "call": "list", "effect": "garbage", "times": 1000 })).await;
    let loans = scene.ledger().await;
    let of = |isbn: &str, state: &str| {
        let found = loans.iter().filter(|loan| loan["isbn"] == isbn && loan["state"] == state);
        found.map(|loan| loan["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let books = of(BOOK, "accepted");
    let task = json!({
        "base": scene.admin,
        "token": scene.admin_token(),
        "chromium": chromium,
        "node": node,
        "modules": modules,
        "isbn": BOOK,
        "book": format!("{}{book}", scene.base),
        "reader": scene.token("kari"),
        "refused": refused,
        "loan": of(AUDIO, "accepted")[0],
        "second": books[0],
        "third": books[1],
        "refusedLoan": of(BOOK, "refused")[0],
        "library": LIBRARY,
        "download": scene.dir.path().join("downloaded.xlsx"),
    });
    Some(Stage { scene, task })
}

/// Returns a world in which a book is lent by use, and an audiobook as a part of a package.
fn world() -> World {
    let title = |isbn: &str, kind| {
        let licences = vec![Licence::new(format!("L-{isbn}"), kind, Some(12))];
        Title { isbn: isbn.parse().unwrap(), licences, loan_days: 21, refuse: None }
    };
    let library = Library { isil: LIBRARY.parse().unwrap(), refuse: None };
    let titles = vec![title(BOOK, "PAY_PER_LOAN"), title(AUDIO, "PACKAGE")];
    World { libraries: vec![library], titles, ..World::default() }
}

/// Compares the workbook that Chromium has downloaded with the page.
fn check_download(report: &Value, stage: &Stage) {
    let file = stage.task["download"].as_str().unwrap();
    let mut book: Xlsx<_> = calamine::open_workbook(file).unwrap();
    let titles = book.worksheet_range("Titles").unwrap();
    let number = |cell: &Value| {
        let text = cell.as_str().unwrap().replace(',', "");
        text.parse().map_or(Data::String(text), Data::Float)
    };
    let shown = report["titles"].as_array().unwrap();
    assert_eq!(shown.len() + 1, titles.height(), "{report:#}");
    for (shown, row) in shown.iter().zip(titles.rows().skip(1)) {
        let cells = shown.as_array().unwrap();
        assert_eq!(cells[0], row[0].to_string(), "the ISBN is a text");
        let numbers: Vec<Data> = cells[2..].iter().map(number).collect();
        assert_eq!(numbers, row[2..6], "{report:#}");
    }
    assert_eq!(titles.get((1, 2)), Some(&Data::Float(6.0)), "six readers of the book");
    assert_eq!(titles.get((1, 5)), Some(&Data::Float(141.0)), "six times 23.50");
}

/// Runs the script, and returns its report.
async fn drive(stage: &Stage) -> Value {
    let node = PathBuf::from(stage.task["node"].as_str().unwrap());
    let home = tempfile::tempdir().unwrap();
    let mut command = direct(&node);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/console.mjs"))
        .env("CONSOLE_TASK", stage.task.to_string())
        .env("HOME", home.path())
        .env("TMPDIR", home.path());
    let output = run_within(&mut command, PATIENCE).await;
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|_| panic!("{}", output_text(&output)));
    assert!(report.get("failed").is_none(), "{report:#}");
    report
}

fn check(report: &Value, pages: usize) {
    for name in ["findings", "console", "external"] {
        assert_eq!(report[name], json!([]), "{name}: {report:#}");
    }
    assert!(report["pages"].as_array().unwrap().len() >= pages, "{report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn support_person_works_in_a_browser() {
    let Some(stage) = stage(None).await else { return };
    let report = drive(&stage).await;
    check(&report, 22);
    check_download(&report, &stage);
    stage.scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_watches_the_gates_in_a_browser() {
    let Some(mut stage) = stage(None).await else { return };
    stage.task["watches"] = json!(true);
    let report = drive(&stage).await;
    check(&report, 9);
    stage.scene.end().await;
}

/// Configures the sign-in by a provider, which needs the address of the console.
fn configure(scene: &mut Scene, provider: &OpenIdProvider) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{free}\""));
    scene.replace_in_config("[ledger]", &provider.config(&format!("http://{free}")));
}

/// The provider is `localhost` and the console an address, so they are different sites.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn person_signs_in_by_a_provider_in_a_browser() {
    let (Some(node), Some(chromium)) = (program("node", "nodejs"), program("chromium", "chromium"))
    else {
        return;
    };
    let Some(modules) = modules() else { return };
    let provider = OpenIdProvider::start().await;
    let mut scene = Scene::without_gate(Setting::default()).await;
    configure(&mut scene, &provider);
    scene.start_gate().await;
    let task = json!({
        "base": scene.admin,
        "token": scene.admin_token(),
        "chromium": chromium,
        "node": node,
        "modules": modules,
        "provider": provider.url,
    });
    let stage = Stage { scene, task };
    let report = drive(&stage).await;
    check(&report, 4);
    stage.scene.end().await;
}

/// Reduces a screenshot to a palette: its pages have few colours.
async fn shrink(shot: &Path) {
    let Some(ffmpeg) = program("ffmpeg", "ffmpeg") else { return };
    let small = shot.with_extension("small.png");
    let palette = "split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse=dither=none";
    let mut command = direct(&ffmpeg);
    command.args(["-v", "error", "-y", "-i"]).arg(shot).args(["-vf", palette]).arg(&small);
    let output = run(&mut command).await;
    assert!(output.status.success(), "{}", output_text(&output));
    std::fs::rename(small, shot).unwrap();
}

/// About five minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes docs/console, in about five minutes"]
async fn screenshots_of_every_page() {
    let provider = OpenIdProvider::start().await;
    let Some(mut stage) = stage(Some(&provider)).await else { return };
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/console");
    stage.task["shots"] = json!(shots);
    let report = drive(&stage).await;
    check(&report, 88);
    for shot in std::fs::read_dir(shots).unwrap() {
        shrink(&shot.unwrap().path()).await;
    }
    stage.scene.end().await;
}
