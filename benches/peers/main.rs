//! Cost of the gate relative to nginx and HAProxy: CPU and memory of each in one run, as ratios.
//!
//! See `cargo bench --profile dist --bench peers -- --help` for the arguments. All proxies serve
//! the same origin with the same certificate and cipher. The same clients use them in turn, round
//! after round, since machines are noisy: only the ratios count.
//!
//! nginx authorizes each request with `auth_request`, answered from its cache. HAProxy authorizes
//! nothing. The gate is the release program, with a reader's token, a ledger, metering and metrics.
//! Everything runs on loopback and is bounded in count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures
)]
#![allow(dead_code, unused_imports)] // uses only a part of the shared support

#[path = "../shared/environment.rs"]
mod environment;
mod proxies;
mod report;
mod rows;
#[path = "../shared/mod.rs"]
mod shared;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Parser;
use http::Version;
use proxies::{Kind, Proxy};
use report::{Report, Samples};
use rows::{Load, ROWS, Row};
use shared::load::{Client, Target};
use shared::origin;
use support::{BOOK, Scene};

/// Measures the cost of the gate relative to nginx and HAProxy.
#[derive(Debug, Parser)]
struct Arguments {
    /// Number of measurements of each, after one that does not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these rows, by key, such as 1k-h1,100m-h2.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these peers, by name.
    #[arg(long, value_delimiter = ',', default_value = "nginx,haproxy")]
    peers: Vec<String>,
    /// File to which every sample is written.
    #[arg(long, default_value = "target/peers.json")]
    json: PathBuf,
    /// Markdown file that gets the table between its marks.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// File to which a chart is written.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Argument that `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Arguments::parse();
    let rows: Vec<Row> = ROWS.into_iter().filter(|row| arguments.wants(row)).collect();
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| arguments.has(*kind)).collect();
    let open_files = shared::cost::open_files();
    assert!(
        open_files >= 6000,
        "only {open_files} files may be open at once. Run `ulimit -n 20000` first"
    );
    let mut bench = Bench::set_up().await;
    let ciphers = bench.ciphers(&kinds).await;
    let mut samples = Samples::default();
    for round in 0..=arguments.rounds {
        for row in &rows {
            for kind in &kinds {
                print!(
                    "\r{:<60}",
                    format!("round {round} of {}: {}, {}", arguments.rounds, row.name, kind.name())
                );
                std::io::stdout().flush().unwrap();
                let figures = bench.measure(*row, *kind).await;
                if round > 0 {
                    samples.add(row.key, *kind, figures);
                }
            }
        }
    }
    println!();
    drop(bench);
    let report = Report::of(&kinds, &rows, samples, ciphers);
    println!("{}", report.text());
    std::fs::write(&arguments.json, report.json()).unwrap();
    println!("Every sample: {}", arguments.json.display());
    if let Some(file) = &arguments.markdown {
        report.put_into(file);
    }
    if let Some(file) = &arguments.svg {
        std::fs::write(file, report.svg()).unwrap();
    }
}

impl Arguments {
    fn wants(&self, row: &Row) -> bool {
        // The wait is a result of the run at a fixed rate.
        self.only.is_empty() && row.load != Load::Wait || self.only.iter().any(|key| key == row.key)
    }

    fn has(&self, kind: Kind) -> bool {
        if kind != Kind::Gate && !self.peers.iter().any(|peer| peer == kind.name()) {
            return false;
        }
        if kind.program().is_none() {
            let name = kind.name();
            println!("{name} is skipped: it is not installed. On Debian: apt-get install {name}");
        }
        kind.program().is_some()
    }
}

/// The origin, the gate's surroundings, and the proxies started so far.
struct Bench {
    scene: Scene,
    origin: u16,
    client: Client,
    token: String,
    running: BTreeMap<(&'static str, bool), Proxy>,
}

impl Bench {
    async fn set_up() -> Bench {
        let sizes = [1 << 10, 64 << 10, 100 << 20];
        let files = sizes.map(|size| (format!("/{BOOK}/{size}"), Bytes::from(vec![0xa5; size])));
        let origin = origin::serve(
            files.into_iter().chain([("/ok".to_owned(), Bytes::from_static(b"ok"))]).collect(),
        );
        let (scene, client) = environment::around(origin).await;
        let token = format!(
            "Bearer {}",
            scene.token_with(&serde_json::json!({ "sub": "kari", "exp": far() }))
        );
        Bench { scene, origin, client, token, running: BTreeMap::new() }
    }

    /// Returns the cipher that all proxies negotiate, which must be the same.
    async fn ciphers(&mut self, kinds: &[Kind]) -> String {
        let mut taken = Vec::new();
        for kind in kinds {
            let port = self.proxy(*kind, false).await.port;
            for version in [Version::HTTP_11, Version::HTTP_2] {
                taken.push(self.client.cipher(port, version).await);
            }
        }
        taken.dedup();
        assert_eq!(taken.len(), 1, "the proxies negotiate different ciphers: {taken:?}");
        taken.remove(0)
    }

    async fn measure(&mut self, row: Row, kind: Kind) -> (f64, Option<f64>) {
        if row.load.wants_new() {
            let proxy = Proxy::start(kind, &mut self.scene, self.origin, row.lines).await;
            let to = self.target(proxy.port);
            return row.load.figures(&self.client, &to, proxy.process()).await;
        }
        let (port, process) = {
            let proxy = self.proxy(kind, row.lines).await;
            (proxy.port, proxy.process())
        };
        let to = self.target(port);
        row.load.figures(&self.client, &to, process).await
    }

    fn target(&self, port: u16) -> Target {
        Target { port, path: format!("/files/{BOOK}"), token: self.token.clone(), size: 0 }
    }

    async fn proxy(&mut self, kind: Kind, lines: bool) -> &Proxy {
        let key = (kind.name(), lines);
        if !self.running.contains_key(&key) {
            let proxy = Proxy::start(kind, &mut self.scene, self.origin, lines).await;
            self.running.insert(key, proxy);
        }
        &self.running[&key]
    }
}

/// Returns a time after any run.
fn far() -> i64 {
    loangate::clock::Clock::system().now().as_second() + 24 * 3600
}
