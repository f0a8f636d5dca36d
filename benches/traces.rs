//! Cost of telemetry for readers: cache hits at a gate that exports traces of 1 % of its requests,
//! metrics and log lines, beside the same hits at one that exports nothing.
//!
//! `cargo bench --profile dist --bench traces`; add `-- 5` for windows of five seconds instead of
//! ten. Nine pairs of windows, one at each gate, change which comes first. Each has hits at a fixed
//! rate. The bench prints the ratio of their CPU for a hit: of the threads that serve readers, and
//! of the whole process, which includes the export.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(dead_code, unused_imports)] // uses only a part of the shared support

mod shared;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use http::Version;
use shared::load::{Client, Crowd, Target};
use shared::{cost, median};
use support::collector::{Collector, Manner};
use support::{BOOK, File, Process, Scene, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAIRS: usize = 9;
/// Hits a second: less than half of what two cores serve beside their clients.
const RATE: u32 = 2_000;
const CROWD: Crowd = Crowd { version: Version::HTTP_11, connections: 16, streams: 1 };
const FILE: &str = "1KiB";
const FILE_SIZE: u64 = 1 << 10;

/// CPU seconds for a hit: of the threads that serve readers, and of the process.
#[derive(Clone, Copy)]
struct Window {
    serving: f64,
    process: f64,
}

/// A gate as a process of its own, and a client of it.
struct Stage {
    scene: Scene,
    gate: Process,
    client: Client,
    target: Target,
}

#[tokio::main]
async fn main() {
    let length = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10);
    let length = Duration::from_secs(length);
    let collector = Collector::start(Manner::Accepts).await;
    let url = collector.url.clone();
    let otlp = format!("[otlp]\nendpoint = \"{url}\"\nsample = 0.01\nlogs = true\n\n[ledger]");
    let stages = [Stage::start("[ledger]").await, Stage::start(&otlp).await];
    for stage in &stages {
        stage.hits(length).await; // warms up everything
    }
    let mut windows = [Vec::new(), Vec::new()];
    for pair in 0..PAIRS {
        for number in [pair % 2, 1 - pair % 2] {
            windows[number].push(stages[number].hits(length).await);
        }
    }
    let spans = collector.spans().len();
    println!("{spans} spans were exported");
    assert!(spans > 0, "the gate exports nothing");
    print_ratio("CPU for a hit, serving", &windows, |window| window.serving);
    print_ratio("CPU for a hit, process", &windows, |window| window.process);
    for stage in stages {
        stage.stop().await;
    }
}

impl Stage {
    /// Starts a gate, with this text in its configuration.
    async fn start(tables: &str) -> Stage {
        let mut scene = Scene::without_gate(Setting::default()).await;
        scene.replace_in_config("[ledger]", tables);
        scene.origin.put(&format!("{BOOK}/{FILE}"), File::of(FILE_SIZE));
        let gate = scene.spawn_gate().await;
        let client = Client::new(&scene.ca());
        let target = Target {
            port: scene.address().port(),
            path: format!("/files/{BOOK}/{FILE}"),
            token: format!("Bearer {}", scene.token("kari")),
            size: FILE_SIZE,
        };
        Stage { scene, gate, client, target }
    }

    fn spent(&self) -> Window {
        let id = self.gate.child.id();
        Window { serving: cost::serving(id), process: cost::cpu(id) }
    }

    async fn hits(&self, length: Duration) -> Window {
        let before = self.spent();
        let count = self.client.at_rate(&self.target, CROWD, RATE, length).await.len() as f64;
        let after = self.spent();
        Window {
            serving: (after.serving - before.serving) / count,
            process: (after.process - before.process) / count,
        }
    }

    async fn stop(mut self) {
        self.gate.terminate();
        assert!(self.gate.exit().await.success());
        self.scene.stop_sandbox().await;
    }
}

fn print_ratio(what: &str, windows: &[Vec<Window>; 2], part: impl Fn(&Window) -> f64) {
    let of = |windows: &[Window]| median(windows.iter().map(&part).collect()) * 1e6;
    let [without, with] = windows;
    let ratios = with.iter().zip(without).map(|(with, without)| part(with) / part(without));
    let (ratio, with, without) = (median(ratios.collect()), of(with), of(without));
    println!("{what:<24} {with:>8.3} us with telemetry, {without:.3} without; ratio {ratio:.3}");
}
