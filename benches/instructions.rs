//! Instructions per request. They hardly depend on the machine, but on a loaded one more wake-ups
//! are counted: HTTP/2 took 6 % more beside two compilers. Run it on an idle one. Fails when a
//! count exceeds the one in `instructions.json` by more than 5 %.
//!
//! `cargo bench --profile release --bench instructions`; add `-- --record` to record an intended
//! change. valgrind counts the decision alone, with both kinds of ledger, in this program, which
//! runs itself under valgrind. It also counts a 1 KiB file in the release program, on the threads
//! that serve readers. Counts are comparable only with the recorded compiler, C library, valgrind
//! and profile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures
)]
#![allow(dead_code, unused_imports, missing_docs)] // uses only a part of the shared support

#[path = "shared/decision.rs"]
mod decision;
#[path = "shared/environment.rs"]
mod environment;
#[path = "shared/mod.rs"]
mod shared;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};

use bytes::Bytes;
use decision::Decider;
use http::{HeaderMap, Version};
use serde::{Deserialize, Serialize};
use shared::load::Target;
use support::external_program::program;
use support::{BOOK, Postgres, Process};

const SMALL: usize = 1 << 10;
/// Number of readers with a loan each, who send requests in turn.
const READERS: u64 = 100;
/// Number of warm-up requests.
const WARM_UP: usize = 500;
const COUNTED: usize = 2000;
/// Permitted ratio of a count to the recorded one.
const MARGIN: f64 = 1.05;
/// Argument that runs the decision, under valgrind.
const INSIDE: &str = "--inside=";
/// Part of the name of a function that every request runs.
const SERVES: &str = "loangate::server::dispatch::";
const SQLITE: &str = "sqlite";
const POSTGRES: &str = "postgres";

/// Instructions per request, and the versions with which they were counted.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    with: BTreeMap<String, String>,
    instructions: BTreeMap<String, u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(store) = arguments.iter().find_map(|argument| argument.strip_prefix(INSIDE)) {
        decide(store == POSTGRES).await;
        return ExitCode::SUCCESS;
    }
    if program("valgrind", "valgrind").is_none() {
        return ExitCode::SUCCESS;
    }
    let mut instructions = gate().await;
    instructions.insert("the decision alone".to_owned(), decision(SQLITE));
    if Postgres::is_installed() {
        instructions.insert("the same with PostgreSQL".to_owned(), decision(POSTGRES));
    }
    let record = Record { with: with(), instructions };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json");
    if arguments.iter().any(|argument| argument == "--record") {
        std::fs::write(&file, serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    }
    compare(&record, &serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap())
}

/// Returns what a count depends on, besides the code.
fn with() -> BTreeMap<String, String> {
    let output_of = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let profile =
        Path::new(env!("CARGO_BIN_EXE_loangate")).parent().and_then(Path::file_name).unwrap();
    BTreeMap::from([
        ("valgrind".to_owned(), output_of("valgrind", "--version")),
        ("compiler".to_owned(), output_of("rustc", "--version")),
        ("library".to_owned(), output_of("getconf", "GNU_LIBC_VERSION")),
        ("processor".to_owned(), std::env::consts::ARCH.to_owned()),
        ("profile".to_owned(), profile.to_string_lossy().into_owned()),
    ])
}

fn compare(now: &Record, recorded: &Record) -> ExitCode {
    let comparable = now.with == recorded.with;
    let mut most = 0.0_f64;
    for (name, count) in &now.instructions {
        let before = recorded.instructions.get(name).copied().unwrap_or(0);
        let ratio = *count as f64 / before.max(1) as f64;
        most = most.max(ratio);
        println!("{name:<28} {count:>9} instructions, recorded {before:>9}: {ratio:.3}");
    }
    if !comparable {
        println!(
            "not compared: recorded with {:?}, counted with {:?}; record again with --record",
            recorded.with, now.with
        );
    } else if most > MARGIN {
        println!(
            "a request costs over 5 % more than recorded; if that is intended, record again with \
             --record"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Returns a callgrind command that prints nothing to standard output.
fn callgrind(out: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", out.display()));
    valgrind
}

/// Returns the total instructions of this callgrind file.
fn total(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("no totals");
    line.trim().parse().unwrap()
}

/// Counts the decision alone, in this program under valgrind, which counts only in [`counted`].
fn decision(store: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("decision");
    let mut command = callgrind(&out);
    command
        .arg("--toggle-collect=*instructions*counted*")
        .arg(std::env::current_exe().unwrap())
        .arg(format!("{INSIDE}{store}"));
    assert!(command.status().unwrap().success());
    total(&out) / COUNTED as u64
}

async fn decide(on_postgres: bool) {
    let server = if on_postgres { Postgres::start().await } else { None };
    let database = match &server {
        Some(server) => Some(server.database().await),
        None => None,
    };
    let mut decider = Decider::set_up(database.as_ref()).await;
    decider.fill(READERS).await;
    let fields = decider.fields(READERS);
    let asking = |requests: usize| fields.iter().cycle().take(requests);
    asking(WARM_UP).for_each(|fields| drop(black_box(decider.decide(fields))));
    counted(&decider, asking(COUNTED));
}

#[inline(never)]
fn counted<'a>(decider: &Decider, asking: impl Iterator<Item = &'a HeaderMap>) {
    asking.for_each(|fields| drop(black_box(decider.decide(fields))));
}

/// Counts a 1 KiB file per HTTP version, requested over one connection from the release program.
async fn gate() -> BTreeMap<String, u64> {
    let files = BTreeMap::from([(format!("/{BOOK}/{SMALL}"), Bytes::from(vec![0xa5; SMALL]))]);
    let (scene, client) = environment::around(shared::origin::serve(files)).await;
    let out = scene.dir.path().join("gate");
    let mut command = callgrind(&out);
    command.arg("--separate-threads=yes");
    let gate = Process::serve_within(command, &scene.config_file()).await;
    let token = format!("Bearer {}", scene.token("kari"));
    let port = environment::port_of(&gate.ready_field("base_url"));
    let target = Target { port, path: format!("/files/{BOOK}/{SMALL}"), token, size: SMALL as u64 };
    let mut dumps = (1..).map(|number| dump(&gate, &out, number));
    let mut all = BTreeMap::new();
    for (name, version) in
        [("1 KiB over HTTP/1.1", Version::HTTP_11), ("1 KiB over HTTP/2", Version::HTTP_2)]
    {
        let mut opened = [client.open(&target, version).await];
        let tokens = std::slice::from_ref(&target.token);
        client.in_turn(&mut opened, &target, tokens, WARM_UP).await;
        dumps.next();
        client.in_turn(&mut opened, &target, tokens, COUNTED).await;
        all.insert(name.to_owned(), dumps.next().unwrap() / COUNTED as u64);
    }
    all
}

/// Returns the instructions since the last dump of the threads that serve readers. Others have work
/// by the clock, of which more falls on a request the slower valgrind is.
fn dump(gate: &Process, out: &Path, number: u32) -> u64 {
    let told =
        Command::new("callgrind_control").arg("--dump").arg(gate.child.id().to_string()).output();
    assert!(told.unwrap().status.success());
    let part = format!("{}.{number}-", out.file_name().unwrap().to_string_lossy());
    let threads = std::fs::read_dir(out.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    let threads = threads.filter(|entry| entry.file_name().to_string_lossy().starts_with(&part));
    let serving: Vec<u64> = threads
        .map(|entry| entry.path())
        .filter(|file| std::fs::read_to_string(file).unwrap().contains(SERVES))
        .map(|file| total(&file))
        .collect();
    assert!(!serving.is_empty(), "no thread has served a request");
    serving.iter().sum()
}
