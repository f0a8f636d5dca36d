//! How many instructions a request costs, which is the same on a busy machine and on an idle one.
//! It ends with an error where that is more than 5 % over what `instructions.json` has recorded.
//!
//! `cargo bench --profile counted --bench instructions`, with `-- --record` to record anew what was
//! meant to change. valgrind counts: the decision alone in this program, run once more under it,
//! and a file of 1 KiB in the program as it is shipped. Counts compare only where compiler, C
//! library, valgrind and profile are the recorded ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures
)]
#![allow(dead_code, unused_imports, missing_docs)] // of what tests and benches share, it needs a part

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
use support::{BOOK, Process};

const SMALL: usize = 1 << 10;
/// Readers with a loan each, who ask in turn.
const READERS: u64 = 100;
/// Requests that are made before it is counted.
const BEFORE: usize = 500;
const COUNTED: usize = 2000;
/// What it may be more than was recorded.
const MARGIN: f64 = 1.05;
/// Runs the decision, under valgrind.
const INSIDE: &str = "--inside";

/// Instructions for each request, and what they were counted with.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    with: BTreeMap<String, String>,
    instructions: BTreeMap<String, u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == INSIDE) {
        decide().await;
        return ExitCode::SUCCESS;
    }
    if program("valgrind", "valgrind").is_none() {
        return ExitCode::SUCCESS;
    }
    let mut instructions = gate().await;
    instructions.insert("the decision alone".to_owned(), decision());
    let record = Record { with: with(), instructions };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json");
    if arguments.iter().any(|argument| argument == "--record") {
        std::fs::write(&file, serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    }
    compare(&record, &serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap())
}

/// What a count depends on, but for the code itself.
fn with() -> BTreeMap<String, String> {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let profile =
        Path::new(env!("CARGO_BIN_EXE_loangate")).parent().and_then(Path::file_name).unwrap();
    BTreeMap::from([
        ("valgrind".to_owned(), said("valgrind", "--version")),
        ("compiler".to_owned(), said("rustc", "--version")),
        ("library".to_owned(), said("getconf", "GNU_LIBC_VERSION")),
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
            "not compared: recorded with {:?}, counted with {:?}; record anew with --record",
            recorded.with, now.with
        );
    } else if most > MARGIN {
        println!(
            "a request costs more than 5 % more than was recorded; where that is meant, record anew with --record"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Callgrind, with nothing of its own on standard output.
fn callgrind(out: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", out.display()));
    valgrind
}

/// All the instructions that were written to this file.
fn total(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("no totals");
    line.trim().parse().unwrap()
}

/// The decision alone, in this program under valgrind, which counts in [`counted`] only.
fn decision() -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("decision");
    let mut command = callgrind(&out);
    command
        .arg("--toggle-collect=*instructions*counted*")
        .arg(std::env::current_exe().unwrap())
        .arg(INSIDE);
    assert!(command.status().unwrap().success());
    total(&out) / COUNTED as u64
}

async fn decide() {
    let mut decider = Decider::set().await;
    decider.fill(READERS).await;
    let fields = decider.fields(READERS);
    let asking = |requests: usize| fields.iter().cycle().take(requests);
    asking(BEFORE).for_each(|fields| drop(black_box(decider.decide(fields))));
    counted(&decider, asking(COUNTED));
}

#[inline(never)]
fn counted<'a>(decider: &Decider, asking: impl Iterator<Item = &'a HeaderMap>) {
    asking.for_each(|fields| drop(black_box(decider.decide(fields))));
}

/// A file of 1 KiB over each version of HTTP, asked for over one connection, in the program as it
/// is shipped.
async fn gate() -> BTreeMap<String, u64> {
    let files = BTreeMap::from([(format!("/{BOOK}/{SMALL}"), Bytes::from(vec![0xa5; SMALL]))]);
    let (scene, client) = environment::around(shared::origin::serve(files)).await;
    let out = scene.dir.path().join("gate");
    let gate = Process::serve_within(callgrind(&out), &scene.config_file()).await;
    let token = format!("Bearer {}", scene.token("kari"));
    let port = environment::port_of(&gate.told("base_url"));
    let target = Target { port, path: format!("/files/{BOOK}/{SMALL}"), token, size: SMALL as u64 };
    let mut dumps = (1..).map(|number| dump(&gate, &out, number));
    let mut all = BTreeMap::new();
    for (name, version) in
        [("1 KiB over HTTP/1.1", Version::HTTP_11), ("1 KiB over HTTP/2", Version::HTTP_2)]
    {
        let mut opened = [client.open(&target, version).await];
        let tokens = std::slice::from_ref(&target.token);
        client.in_turn(&mut opened, &target, tokens, BEFORE).await;
        dumps.next();
        client.in_turn(&mut opened, &target, tokens, COUNTED).await;
        all.insert(name.to_owned(), dumps.next().unwrap() / COUNTED as u64);
    }
    all
}

/// What was counted since the last dump, of all threads.
fn dump(gate: &Process, out: &Path, number: u32) -> u64 {
    let told =
        Command::new("callgrind_control").arg("--dump").arg(gate.child.id().to_string()).output();
    assert!(told.unwrap().status.success());
    total(&out.with_extension(number.to_string()))
}
