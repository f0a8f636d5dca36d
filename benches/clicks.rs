//! Cost of the console for readers: cache hits beside fifty people at it, over a million loans.
//!
//! `cargo bench --profile dist --bench clicks`; add `-- 10` for windows of ten seconds instead of
//! twenty. Nine pairs of windows, one with clicks and one without, change which comes first. Each
//! has hits at a fixed rate. The bench prints the ratio of their p99, and of the CPU for a hit: of
//! the threads that serve readers, and of the whole process, which includes the pages themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(dead_code, unused_imports)] // uses only a part of the shared support

#[path = "shared/million_ledger.rs"]
mod million_ledger;
mod shared;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Version;
use shared::Waits;
use shared::load::{Client, Crowd, Target};
use shared::{cost, median};
use support::console::Browser;
use support::{BOOK, File, Scene, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAIRS: usize = 9;
const SESSIONS: u64 = 50;
/// How long a person reads a page before the next click.
const READING: Duration = Duration::from_secs(3);
/// Hits a second: less than half of what two cores serve beside their clients.
const RATE: u32 = 2_000;
const CROWD: Crowd = Crowd { version: Version::HTTP_11, connections: 16, streams: 1 };
const FILE: &str = "1KiB";
const FILE_SIZE: u64 = 1 << 10;

/// What a window of hits measured.
struct Window {
    p99: f64,
    /// CPU seconds for a hit, of the threads that serve readers.
    serving: f64,
    /// CPU seconds for a hit, of the process.
    process: f64,
}

#[tokio::main]
async fn main() {
    let length = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(20);
    let length = Duration::from_secs(length);
    let config = vec![million_ledger::CONFIG];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    million_ledger::copy_to(scene.dir.path()).await;
    scene.origin.put(&format!("{BOOK}/{FILE}"), File::of(FILE_SIZE));
    let mut gate = scene.spawn_gate().await;
    let id = gate.child.id();
    let client = Client::new(&scene.dir.path().join("certs/ca.pem"));
    let target = Target {
        port: scene.base.rsplit_once(':').unwrap().1.parse().unwrap(),
        path: format!("/files/{BOOK}/{FILE}"),
        token: format!("Bearer {}", scene.token("kari")),
        size: FILE_SIZE,
    };
    let mut browsers = Vec::new();
    for _ in 0..SESSIONS {
        let mut browser = Browser::sign_in(&scene).await;
        // Without a purpose, each look would show the form for one.
        browser.post("/purpose", &[("purpose", "a bench"), ("next", "/")]).await;
        browsers.push(browser);
    }
    let sessions = Sessions::start(&scene, browsers);
    hits(&client, &target, id, length).await; // warms up everything
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        for is_busy in [pair % 2 == 0, pair % 2 != 0] {
            sessions.click.store(is_busy, Ordering::Relaxed);
            let window = hits(&client, &target, id, length).await;
            if is_busy { &mut busy } else { &mut quiet }.push(window);
        }
    }
    let waits = sessions.stop().await;
    let pages = waits.len() as f64 / (PAIRS as f64 * length.as_secs_f64());
    let waits = Waits::of(waits);
    let [median, p95, p99] = [0.5, 0.95, 0.99].map(|part| waits.at(part).as_secs_f64() * 1e3);
    println!("{pages:.1} pages a second: {median:.1} ms median, {p95:.1} ms p95, {p99:.1} ms p99");
    print_ratios("p99 of a hit", &busy, &quiet, |window| window.p99, 1e3, "ms");
    print_ratios("CPU for a hit, serving", &busy, &quiet, |window| window.serving, 1e6, "us");
    print_ratios("CPU for a hit, process", &busy, &quiet, |window| window.process, 1e6, "us");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.stop_sandbox().await;
}

async fn hits(client: &Client, target: &Target, process: u32, length: Duration) -> Window {
    let before = (cost::serving(process), cost::cpu(process));
    let waits = client.at_rate(target, CROWD, RATE, length).await;
    let count = waits.len() as f64;
    Window {
        p99: Waits::of(waits).at(0.99).as_secs_f64(),
        serving: (cost::serving(process) - before.0) / count,
        process: (cost::cpu(process) - before.1) / count,
    }
}

/// People at the console.
struct Sessions {
    click: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    /// Has their browsers, and returns how long each page took.
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

/// The priority of the browsers, which would be on other machines: they must not delay the clients
/// of the hits, whose waits are measured.
const BROWSERS_NICE: i32 = 19;

impl Sessions {
    fn start(scene: &Scene, browsers: Vec<Browser>) -> Sessions {
        let (click, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let readers = Arc::new(million_ledger::readers(scene.dir.path()));
        let people = (0..).zip(browsers).map(|(person, browser)| {
            let numbers = (0..).map(move |turn: u64| {
                million_ledger::anywhere(turn * SESSIONS + person, million_ledger::LOANS)
            });
            let keys = readers.clone();
            let keys = numbers.map(move |number| million_ledger::key_of(&keys, number));
            use_console(browser, keys, click.clone(), over.clone())
        });
        let people: Vec<_> = people.collect();
        let thread = std::thread::spawn(move || {
            // Only of this thread, on Linux.
            rustix::process::setpriority_process(None, BROWSERS_NICE).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(join_all(people)).into_iter().flatten().collect()
        });
        Sessions { thread, click, over }
    }

    /// Returns how long each page took.
    async fn stop(self) -> Vec<Duration> {
        self.over.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap()
    }
}

/// Opens page after page, as a person does who answers readers.
async fn use_console(
    mut browser: Browser,
    keys: impl Iterator<Item = loangate::loan::LoanKey>,
    click: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
) -> Vec<Duration> {
    let mut waits = Vec::new();
    for key in keys {
        let mut path = format!("/loans?borrower={}", key.borrower);
        let others = [format!("/loans?isbn={}", key.isbn), "/why".to_owned(), "/".to_owned()];
        for next in others {
            tokio::time::sleep(READING.mul_f64(0.5 + fastrand::f64())).await;
            if over.load(Ordering::Relaxed) {
                return waits;
            }
            if !click.load(Ordering::Relaxed) {
                continue;
            }
            let began = Instant::now();
            let page = browser.get(&path).await;
            waits.push(began.elapsed());
            assert_eq!(page.status, 200, "{path}");
            assert!(!page.body.contains("action=\"/purpose\""), "{path} has no purpose");
            let loan = page.body.split('"').find(|part| part.starts_with("/loans/"));
            path = loan.filter(|_| path.contains("borrower=")).map_or(next, str::to_owned);
        }
    }
    waits
}

fn print_ratios(
    what: &str,
    busy: &[Window],
    quiet: &[Window],
    part: impl Fn(&Window) -> f64,
    unit: f64,
    name: &str,
) {
    let of = |windows: &[Window]| median(windows.iter().map(&part).collect()) * unit;
    let ratios = busy.iter().zip(quiet).map(|(busy, quiet)| part(busy) / part(quiet)).collect();
    let (busy, quiet, ratio) = (of(busy), of(quiet), median(ratios));
    println!("{what:<24} {busy:>8.3} {name} with clicks, {quiet:.3} without; ratio {ratio:.3}");
}
