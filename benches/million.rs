//! Cost of a gate whose ledger has a million loans, three hundred thousand of them live.
//!
//! `cargo bench --profile dist --bench million`; add `-- 10` for windows of ten seconds instead of
//! thirty, `-- console` for the pages of the console alone, and `-- console-postgresql` for those
//! on PostgreSQL. The first run builds the ledger under the target directory, which takes minutes;
//! each run uses a copy. The gate is the built program. The sandbox, the origin and the clients are
//! in this process, on the same cores.
//!
//! The bench prints the time until the gate is ready, with a warm and a cold page cache, and its
//! memory. It times look-ups, the pages of the console (those also on PostgreSQL, where it is
//! installed) and first requests. It compares the rate of cache hits while ten thousand loans
//! expire at once with quiet windows. Everything runs on loopback and is bounded in count and time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(dead_code, unused_imports)] // uses only a part of the shared support

#[path = "shared/console_pages.rs"]
mod console_pages;
#[path = "shared/million_ledger.rs"]
mod million_ledger;
mod shared;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use console_pages::Subject;
use loangate::loan::LoanKey;
use serde_json::{Value, json};
use shared::{Waits, cpu_without_children};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use support::{BOOK, File, Process, Scene, Setting, metric};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of timed look-ups, and of timed first requests.
const LOOK_UPS: u64 = 20_000;
const FIRST_REQUESTS: u64 = 5_000;
/// Number of concurrent support queries.
const SUPPORT_QUERIES: usize = 12;
/// Number of connections that request cached content.
const READERS_AT_ONCE: usize = 16;
const FILE: &str = "1KiB";

#[tokio::main]
async fn main() {
    let window = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(30);
    let window = Duration::from_secs(window);
    if std::env::args().any(|argument| argument == "console-postgresql") {
        return console_pages::on_postgresql().await;
    }
    let scene = scene().await;
    if std::env::args().any(|argument| argument == "console") {
        let gate = start(scene, false).await;
        pages_of_console(&gate).await;
        gate.stopped().await.stop_sandbox().await;
        return console_pages::on_postgresql().await;
    }
    let mut gate = start(scene, true).await;
    gate.print("ready, file not in the page cache");
    gate = start(gate.stopped().await, false).await;
    gate.print("ready");
    look_ups(gate.scene.dir.path()).await;
    pages_of_console(&gate).await;
    first_requests(&gate, "first requests, one after the other", 0).await;
    beside_support_queries(&gate).await;
    gate.print_memory("after them");
    ends_alone(&gate).await;
    expiries(&gate, window).await;
    gate.print_memory("at the end");
    let most = gate.process.peak_memory() as f64 / 1024.0;
    println!("{:<52} {most:>8.1} MiB", "memory at most");
    let mut scene = gate.stopped().await;
    scene.stop_sandbox().await;
    console_pages::on_postgresql().await;
}

/// Starts everything around a gate, with a copy of the ledger and its keys.
async fn scene() -> Scene {
    let config = vec![million_ledger::CONFIG];
    let scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    million_ledger::copy_to(scene.dir.path()).await;
    let size = std::fs::metadata(ledger_file(scene.dir.path())).unwrap().len() as f64 / 1e6;
    println!(
        "{:<52} {size:>8.0} MB",
        format!("{} loans, {} live", million_ledger::LOANS, million_ledger::LIVE)
    );
    put_into_books(&scene).await;
    scene
}

fn ledger_file(directory: &Path) -> std::path::PathBuf {
    million_ledger::config(directory).ledger.sqlite_file().unwrap().to_owned()
}

/// Writes the loans that will expire to the sandbox's books, in the order of its ids.
async fn put_into_books(scene: &Scene) {
    let readers = million_ledger::readers(scene.dir.path());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/sandbox/loans", scene.sandbox.as_ref().unwrap().url());
    for number in million_ledger::first_of(0)..million_ledger::first_of(million_ledger::GROUPS) {
        let loan = json!({
            "library": million_ledger::LIBRARY,
            "isbn": million_ledger::isbn_of(number).to_string(),
            "borrower": million_ledger::key_of(&readers, number).borrower.to_string(),
            "reference": million_ledger::reference_of(number),
        });
        let answer = client.post(&url).json(&loan).send().await.unwrap();
        let answer: Value = answer.error_for_status().unwrap().json().await.unwrap();
        assert_eq!(answer["loanId"], million_ledger::lending_id_of(number).as_str());
    }
}

/// A gate process with everything around it.
struct Gate {
    scene: Scene,
    process: Process,
}

async fn start(mut scene: Scene, cold: bool) -> Gate {
    if cold {
        forget_pages(&ledger_file(scene.dir.path()));
    }
    let process = scene.spawn_gate().await;
    Gate { scene, process }
}

/// Makes the system write the file to disk and drop it from the page cache.
fn forget_pages(file: &Path) {
    std::fs::File::open(file).unwrap().sync_all().unwrap();
    let named = format!("if={}", file.display());
    let dropped =
        Command::new("dd").args([&named, "iflag=nocache", "count=0", "status=none"]).status();
    assert!(dropped.unwrap().success());
}

impl Gate {
    fn print(&self, what: &str) {
        println!("{what:<52} {:>8.0} ms", self.process.took.as_secs_f64() * 1e3);
        self.print_memory("memory then");
    }

    fn print_memory(&self, what: &str) {
        println!("{what:<52} {:>8.1} MiB", self.process.memory() as f64 / 1024.0);
    }

    async fn stopped(mut self) -> Scene {
        self.process.terminate();
        assert!(self.process.exit().await.success());
        self.scene
    }

    /// Returns the number of ends that Bokbasen has acknowledged, as this gate counts them.
    async fn acknowledged(&self) -> f64 {
        metric(&self.scene.metrics().await, "loangate_loan_events_total", "end-acknowledged")
    }
}

fn print_waits(what: &str, waits: Vec<Duration>) {
    let waits = Waits::of(waits);
    let [median, p99, most] = [0.5, 0.99, 1.0].map(|part| waits.at(part).as_secs_f64() * 1e3);
    println!("{what:<52} {median:>8.3} ms median, {p99:.3} ms p99, {most:.3} ms max");
}

/// Times the query of a cache miss, on a ledger that is opened beside the gate's.
async fn look_ups(directory: &Path) {
    let (readers, ledger) =
        (million_ledger::readers(directory), million_ledger::open(directory).await);
    let mut waits = Vec::new();
    for turn in 0..LOOK_UPS {
        let key =
            million_ledger::key_of(&readers, million_ledger::anywhere(turn, million_ledger::LOANS));
        let began = Instant::now();
        assert!(ledger.newest(&key).await.unwrap().is_some());
        waits.push(began.elapsed());
    }
    print_waits("look-ups in the ledger, one after the other", waits);
    ledger.close().await;
}

/// Times first requests under loans of the ledger: token, look-up, origin.
async fn first_requests(gate: &Gate, what: &str, from: u64) {
    let client = gate.scene.http1();
    let mut waits = Vec::new();
    for turn in from..from + FIRST_REQUESTS {
        let left = million_ledger::LIVE - million_ledger::GROUPS * million_ledger::GROUP;
        let number =
            million_ledger::first_of(million_ledger::GROUPS) + million_ledger::anywhere(turn, left);
        let path = format!("{}/{FILE}", million_ledger::isbn_of(number));
        gate.scene.origin.put(&path, File::of(1 << 10));
        let token = gate.scene.token(&million_ledger::reader_of(number));
        let request = gate.scene.get(&client, &format!("/files/{path}"), &token);
        let began = Instant::now();
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.bytes().await.unwrap();
        waits.push(began.elapsed());
    }
    print_waits(what, waits);
}

/// Times the pages of the console, with loans from all over the ledger.
async fn pages_of_console(gate: &Gate) {
    let readers = million_ledger::readers(gate.scene.dir.path());
    let subject = |round: u64| {
        let number = million_ledger::anywhere(round, million_ledger::LOANS);
        let LoanKey { borrower, isbn, .. } = million_ledger::key_of(&readers, number);
        Subject { borrower, isbn, lending_id: million_ledger::lending_id_of(number) }
    };
    let (admin, token) = (&gate.scene.admin, gate.scene.admin_token());
    console_pages::measure("SQLite", admin, &token, subject).await;
}

/// Times first requests during support queries over all loans, as many as in a busy office.
async fn beside_support_queries(gate: &Gate) {
    let isbn = million_ledger::isbn_of(0);
    let queries = [
        "limit=1000".to_owned(),
        "state=ended&limit=1000".to_owned(),
        "state=refused".to_owned(),
        format!("library={}&state=unknown", million_ledger::LIBRARY),
        format!("isbn={isbn}&limit=1000"),
        "since=2020-01-01T00:00:00Z&limit=1000".to_owned(),
    ];
    let over = AtomicBool::new(false);
    let waits = std::sync::Mutex::new(Vec::new());
    let support = async |number: usize| {
        for query in queries.iter().cycle().skip(number) {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            let answer = gate.scene.admin(&format!("/api/v1/loans?{query}")).await;
            assert!(answer.status().is_success(), "{query}: {}", answer.status());
            answer.bytes().await.unwrap();
            waits.lock().unwrap().push(began.elapsed());
        }
    };
    let first = async {
        first_requests(gate, "first requests beside 12 support queries", FIRST_REQUESTS).await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(first, futures_util::future::join_all((0..SUPPORT_QUERIES).map(support)));
    print_waits("support queries, 12 at once", waits.into_inner().unwrap());
}

/// Measures the end of a group without readers.
async fn ends_alone(gate: &Gate) {
    let process = gate.process.child.id();
    let before = gate.acknowledged().await;
    let due = fall_due(gate, 0).await;
    let cost = (cpu_without_children(process), written(process));
    let took = until_acknowledged(gate, before, due).await;
    let thousands = million_ledger::GROUP as f64 / 1e3;
    let what = format!("{} loans that fall due without readers", million_ledger::GROUP);
    println!("{what:<52} {:>8.1} s until the last end is acknowledged", took.as_secs_f64());
    println!(
        "{:<52} {:>8.3} CPU s of the gate, {:.1} MB written, for 1,000",
        "what their ends cost",
        (cpu_without_children(process) - cost.0) / thousands,
        (written(process) - cost.1) / thousands / 1e6,
    );
}

/// Returns the bytes that a process has had written to disk.
fn written(process: u32) -> f64 {
    let io = std::fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

/// Counts of a window.
#[derive(Clone, Copy, Debug)]
struct Window {
    hits: f64,
    /// Fewest hits in one second.
    worst: f64,
    spent: f64,
}

/// Alternates windows in which a group expires with quiet ones, changing which comes first.
async fn expiries(gate: &Gate, window: Duration) {
    gate.scene.origin.put(&format!("{BOOK}/{FILE}"), File::of(1 << 10));
    hits(gate, Duration::from_secs(3)).await; // warms up everything
    let (mut quiet, mut busy, mut took) = (Vec::new(), Vec::new(), Vec::new());
    for group in 1..million_ledger::GROUPS {
        if group % 2 == 0 {
            quiet.push(hits(gate, window).await);
        }
        let before = gate.acknowledged().await;
        let due = fall_due(gate, group).await;
        let (counted, acknowledged) =
            tokio::join!(hits(gate, window), until_acknowledged(gate, before, due));
        busy.push(counted);
        took.push(acknowledged);
        if group % 2 == 1 {
            quiet.push(hits(gate, window).await);
        }
    }
    let ends =
        format!("{} loans that fall due together, acknowledged within", million_ledger::GROUP);
    println!(
        "{ends:<52} {}",
        joined(took.iter().map(|took| format!("{:.1} s", took.as_secs_f64())))
    );
    print_hits("hits while nothing falls due", &quiet, window);
    print_hits("hits while they do", &busy, window);
    for (what, part) in [
        ("hits a second", (|window| window.hits) as fn(&Window) -> f64),
        ("hits for a CPU second of the gate", |window| window.hits / window.spent),
    ] {
        let pairs =
            busy.iter().zip(&quiet).map(|(busy, quiet)| 100.0 * (part(busy) / part(quiet) - 1.0));
        let what = format!("{what}, against the quiet window beside");
        println!("{what:<52} {}", joined(pairs.map(|ratio| format!("{ratio:+.1} %"))));
    }
    check_books(gate).await;
}

fn print_hits(what: &str, windows: &[Window], length: Duration) {
    let seconds = length.as_secs_f64();
    println!(
        "{what:<52} {:>8.0}/s, {:.0} in the worst second, {:.0} for a CPU second; medians of {}",
        median(windows, |window| window.hits) / seconds,
        median(windows, |window| window.worst),
        median(windows, |window| window.hits / window.spent),
        windows.len(),
    );
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

fn median(windows: &[Window], part: impl Fn(&Window) -> f64) -> f64 {
    shared::median(windows.iter().map(part).collect())
}

/// Makes a group expire in two seconds, all at one moment.
async fn fall_due(gate: &Gate, group: u64) -> Instant {
    let file = ledger_file(gate.scene.dir.path());
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(10));
    let mut connection = options.connect().await.unwrap();
    let soon = Duration::from_secs(2);
    let due = loangate::clock::after(loangate::clock::Clock::system().now(), soon);
    let update = sqlx::query("UPDATE loans SET due = ? WHERE state = 'accepted' AND due = ?");
    let update = update.bind(due.as_millisecond()).bind(million_ledger::due_of(Some(group)));
    let changed = update.execute(&mut connection).await.unwrap().rows_affected();
    assert_eq!(changed, million_ledger::GROUP);
    connection.close().await.unwrap();
    Instant::now() + loangate::clock::until(loangate::clock::Clock::system().now(), due)
}

async fn until_acknowledged(gate: &Gate, before: f64, due: Instant) -> Duration {
    while gate.acknowledged().await - before < million_ledger::GROUP as f64 {
        assert!(due.elapsed() < Duration::from_secs(600), "the ends are not acknowledged");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    due.elapsed()
}

/// Requests cached content without a pause on some connections.
async fn hits(gate: &Gate, length: Duration) -> Window {
    let token = gate.scene.token("kari");
    let client = gate.scene.http1();
    let (count, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..READERS_AT_ONCE)
        .map(|_| {
            let request =
                gate.scene.get(&client, &format!("/files/{BOOK}/{FILE}"), &token).build().unwrap();
            tokio::spawn(request_cached(client.clone(), request, count.clone(), over.clone()))
        })
        .collect();
    let before = cpu_without_children(gate.process.child.id());
    let (began, mut last, mut worst) = (Instant::now(), 0, f64::MAX);
    while began.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = count.load(Ordering::Relaxed);
        worst = worst.min((now - last) as f64);
        last = now;
    }
    let spent = cpu_without_children(gate.process.child.id()) - before;
    let hits =
        count.load(Ordering::Relaxed) as f64 * length.as_secs_f64() / began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    Window { hits, worst, spent }
}

async fn request_cached(
    client: reqwest::Client,
    request: reqwest::Request,
    count: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) {
    while !over.load(Ordering::Relaxed) {
        let answer = client.execute(request.try_clone().unwrap()).await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Checks that every expired loan is over in the sandbox's books.
async fn check_books(gate: &Gate) {
    let books = gate.scene.books().await;
    let fell_due = usize::try_from(million_ledger::GROUPS * million_ledger::GROUP).unwrap();
    let expired = books.iter().filter(|loan| loan["status"] == "EXPIRED").count();
    assert_eq!(expired, fell_due, "in the books");
}
