//! Metering: what the support API reports as delivered under a loan. It covers all that the reader
//! received and nothing that was not sent, also after disconnects and kills.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::Value;

use crate::support::multipart::parts;
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, Scene, metric};

const SIZE: u64 = 16_000_000;
/// Maximum bytes between the gate and a reader who disconnects: its HTTP/2 window, and the socket
/// buffers of both systems.
const MAX_IN_FLIGHT: usize = 3 << 20;
/// Setting that flushes the metering often.
const FLUSH_OFTEN: (&str, &str) = ("[ledger]", "[metering]\nflush = \"100ms\"\n\n[ledger]");
/// Setting that flushes it only at shutdown.
const FLUSH_RARELY: (&str, &str) = ("[ledger]", "[metering]\nflush = \"1h\"\n\n[ledger]");

/// A set of bytes of a file.
#[derive(Clone, Debug, Default)]
struct Set(Vec<bool>);

impl Set {
    fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Set {
        let mut set = Set(vec![false; SIZE as usize]);
        ranges
            .into_iter()
            .for_each(|range| set.0[range.start as usize..range.end as usize].fill(true));
        set
    }

    /// Returns the first byte that the other set lacks.
    fn first_missing_from(&self, other: &Set) -> Option<usize> {
        self.0.iter().zip(&other.0).position(|(one, other)| *one && !*other)
    }

    fn length(&self) -> usize {
        self.0.iter().filter(|byte| **byte).count()
    }
}

/// Returns what the API reports for a file: the byte count and the ranges.
fn delivered_of(loan: &Value, path: &str) -> (u64, Vec<Range<u64>>) {
    let delivered = &loan["delivered"][path];
    let ranges = delivered["ranges"].as_array().unwrap_or_else(|| panic!("no {path} in {loan}"));
    let pair = |range: &Value| range[0].as_u64().unwrap()..range[1].as_u64().unwrap() + 1;
    (delivered["bytes"].as_u64().unwrap(), ranges.iter().map(pair).collect())
}

/// Waits until every body is over, also at the origin, and its metering is written.
async fn written(scene: &Scene) {
    let over = async || metric(&scene.metrics().await, "loangate_streams", "") == 0.0;
    scene.until("every body is over", over).await;
    scene.until("the origin's bodies are over", async || scene.origin.bodies() == 0).await;
    flushed(scene).await;
}

/// Waits for a flush that began after this call.
async fn flushed(scene: &Scene) {
    let flushes = async || {
        metric(&scene.metrics().await, "loangate_metering_flushes_total", "outcome=\"written\"")
    };
    let before = flushes().await;
    scene.until("the metering is flushed", async || flushes().await >= before + 2.0).await;
}

/// A planned request, which may disconnect early.
#[derive(Clone, Debug)]
struct Plan {
    file: &'static str,
    http2: bool,
    /// Requested ranges; empty for the whole file.
    ranges: Vec<Range<u64>>,
    /// Number of chunks after which the reader disconnects.
    hang_up: Option<u32>,
}

/// Result of a request: the received ranges.
#[derive(Debug)]
struct Outcome {
    plan: Plan,
    received: Vec<Range<u64>>,
}

fn plans(chance: &mut fastrand::Rng, count: usize) -> Vec<Plan> {
    let plan = |number: usize| {
        let file = ["plain.mp3", "no-ranges.mp3", "breaks.mp3"][chance.usize(..3)];
        let several = number.is_multiple_of(5);
        let hang_up = (number % 4 == 1).then(|| chance.u32(0..6));
        let far = if hang_up.is_some() { SIZE } else { 150_000 };
        let range = |chance: &mut fastrand::Rng| {
            let first = chance.u64(..SIZE);
            first..(first + 1 + chance.u64(..far)).min(SIZE)
        };
        let ranges =
            (0..if several { chance.usize(2..5) } else { 1 }).map(|_| range(chance)).collect();
        // Occasionally the whole file, which is no range.
        let ranges = if number % 50 == 49 { Vec::new() } else { ranges };
        Plan { file, http2: chance.bool(), ranges, hang_up }
    };
    (0..count).map(plan).collect()
}

async fn make(scene: &Scene, file: &File, plan: Plan) -> Outcome {
    let client = if plan.http2 { scene.http2() } else { scene.http1() };
    let path = format!("/files/{BOOK}/{}", plan.file);
    let mut request = scene.get(&client, &path, &scene.token("kari"));
    let texts: Vec<String> =
        plan.ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    if !texts.is_empty() {
        request = request.header("range", format!("bytes={}", texts.join(",")));
    }
    let mut answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{plan:?}: {}", answer.status());
    let several = answer.headers()["content-type"].to_str().unwrap().starts_with("multipart");
    let mut received = Vec::new();
    if several && plan.hang_up.is_none() {
        for (first, last, _, bytes) in parts(answer).await {
            assert!(bytes == file.part(first..last + 1), "{plan:?}: other bytes");
            received.push(first..last + 1);
        }
        return Outcome { plan, received };
    }
    let first = answer.headers().get("content-range").map_or(0, |field| {
        field.to_str().unwrap()["bytes ".len()..].split('-').next().unwrap().parse().unwrap()
    });
    let mut at: u64 = first;
    let mut left = plan.hang_up;
    while left != Some(0) {
        let Some(chunk) = answer.chunk().await.unwrap() else { break };
        let next = at + chunk.len() as u64;
        // The delimiters between parts are not file bytes. For an aborted multipart response,
        // nothing is claimed as received.
        if !several {
            assert!(chunk == file.part(at..next), "{plan:?}: other bytes");
            received.push(at..next);
        }
        at = next;
        left = left.map(|left| left - 1);
    }
    Outcome { plan, received }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metered_ranges_match_received_bytes_after_disconnects() {
    let given = std::env::var("LOANGATE_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("LOANGATE_TEST_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);

    let scene =
        Scene::start_with(Setting { config: vec![FLUSH_OFTEN], ..Setting::default() }).await;
    let file = File::of(SIZE);
    scene.origin.put(&format!("{BOOK}/plain.mp3"), file.clone());
    scene.origin.put(&format!("{BOOK}/no-ranges.mp3"), File { ranges: false, ..file.clone() });
    scene.origin.put(
        &format!("{BOOK}/breaks.mp3"),
        File { breaks_within: Some(9_000_000), ..file.clone() },
    );
    let begun = scene.call_api("PUT", &format!("/loans/{BOOK}"), &scene.token("kari"), "").await;
    assert_eq!(begun.0, StatusCode::CREATED);

    let requests = stream::iter(plans(&mut chance, 200)).map(|plan| make(&scene, &file, plan));
    let outcomes: Vec<Outcome> = requests.buffer_unordered(4).collect().await;
    written(&scene).await;

    let loans = scene.ledger().await;
    assert_eq!(loans.len(), 1);
    let (mut all_bytes, mut in_flight) = (0, 0);
    for name in ["plain.mp3", "no-ranges.mp3", "breaks.mp3"] {
        let of_file: Vec<&Outcome> =
            outcomes.iter().filter(|outcome| outcome.plan.file == name).collect();
        let (bytes, ranges) = delivered_of(&loans[0], &format!("/files/{BOOK}/{name}"));
        assert!(
            ranges.windows(2).all(|two| two[0].end < two[1].start),
            "not sorted and merged: {ranges:?}"
        );
        let union = Set::of(ranges);
        let received = Set::of(of_file.iter().flat_map(|outcome| outcome.received.clone()));
        assert_eq!(
            received.first_missing_from(&union),
            None,
            "{name}: a received byte is not metered"
        );
        assert_eq!(
            union.first_missing_from(&Set::of(scene.origin.sent(&format!("{BOOK}/{name}")))),
            None,
            "{name}: never sent"
        );
        // A complete body counts exactly its bytes. For an aborted one, all requested bytes may
        // have been sent.
        let may = |outcome: &&Outcome| {
            outcome.plan.hang_up.map_or(outcome.received.clone(), |_| {
                let asked = &outcome.plan.ranges;
                let first = asked.iter().map(|range| range.start).min().unwrap_or(0);
                let next = asked.iter().map(|range| range.end).max().unwrap_or(SIZE);
                std::iter::once(first..next).collect()
            })
        };
        assert_eq!(
            union.first_missing_from(&Set::of(of_file.iter().flat_map(may))),
            None,
            "{name}: metered but not requested"
        );
        let count: u64 = of_file
            .iter()
            .flat_map(|outcome| &outcome.received)
            .map(|part| part.end - part.start)
            .sum();
        assert!(bytes >= count, "{name}: {count} bytes received, {bytes} metered");
        all_bytes += bytes;
        in_flight += union.length() - received.length();
    }
    // The byte counter also contains the delimiters between parts.
    let handed_over = metric(&scene.metrics().await, "loangate_delivered_bytes_total", "");
    assert!(all_bytes as f64 <= handed_over, "{all_bytes} of {handed_over}");
    let hung_up = outcomes.iter().filter(|outcome| outcome.plan.hang_up.is_some()).count();
    assert!(in_flight <= hung_up * MAX_IN_FLIGHT, "{in_flight} bytes after {hung_up} disconnects");
    println!("{all_bytes} bytes; {in_flight} more metered than readers have received");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metering_is_exact_without_disconnects() {
    let mut chance = fastrand::Rng::with_seed(7);
    let scene =
        Scene::start_with(Setting { config: vec![FLUSH_OFTEN], ..Setting::default() }).await;
    let file = File::of(SIZE);
    for name in ["plain.mp3", "no-ranges.mp3", "breaks.mp3"] {
        let breaks_within = (name == "breaks.mp3").then_some(9_000_000);
        let file = File { ranges: name != "no-ranges.mp3", breaks_within, ..file.clone() };
        scene.origin.put(&format!("{BOOK}/{name}"), file);
    }
    scene.call_api("PUT", &format!("/loans/{BOOK}"), &scene.token("kari"), "").await;
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut received_by_file: BTreeMap<&str, Vec<Range<u64>>> = BTreeMap::new();
    for plan in plans(&mut chance, 60) {
        let outcome = make(&scene, &file, Plan { hang_up: None, ..plan }).await;
        let received = outcome.received.iter().map(|part| part.end - part.start).sum::<u64>();
        *bytes.entry(outcome.plan.file).or_default() += received;
        received_by_file.entry(outcome.plan.file).or_default().extend(outcome.received);
    }
    written(&scene).await;
    let loans = scene.ledger().await;
    for (name, count) in bytes {
        let (bytes, ranges) = delivered_of(&loans[0], &format!("/files/{BOOK}/{name}"));
        assert_eq!(bytes, count, "{name}");
        assert!(Set::of(ranges).0 == Set::of(received_by_file[name].clone()).0, "{name}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_loses_only_what_was_metered_since_the_last_flush() {
    let mut scene =
        Scene::without_gate(Setting { config: vec![FLUSH_OFTEN], ..Setting::default() }).await;
    let file = File::of(SIZE);
    scene.origin.put(&format!("{BOOK}/audio.mp3"), file.clone());
    let path = format!("/files/{BOOK}/audio.mp3");
    let mut seen = Vec::new();
    for round in 0..4_u64 {
        let mut gate = scene.spawn_gate().await;
        let client = if round % 2 == 0 { scene.http1() } else { scene.http2() };
        let request = scene.get(&client, &path, &scene.token("kari"));
        let first = if round == 0 { 0 } else { 2_000_000 * round + 1 };
        let mut answer = request.header("range", format!("bytes={first}-")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        let mut at = first;
        let mut read = async |at: &mut u64, until: u64| {
            while *at < until {
                *at += answer.chunk().await.unwrap().unwrap().len() as u64;
            }
        };
        read(&mut at, first + 300_000).await;
        // In half of the rounds the reader now stalls in the middle of a body, which must not delay
        // its count.
        flushed(&scene).await;
        seen.push(first..at);
        if round >= 2 {
            read(&mut at, first + 600_000).await;
        }
        gate.kill();
    }
    let mut gate = scene.spawn_gate().await;
    // The origin releases the last body when its connection has closed.
    scene.until("the origin's bodies are over", async || scene.origin.bodies() == 0).await;
    let (bytes, ranges) = delivered_of(&scene.ledger().await[0], &path);
    let sent = scene.origin.sent(&format!("{BOOK}/audio.mp3"));
    assert!(bytes <= sent.iter().map(|part| part.end - part.start).sum(), "{bytes} of {sent:?}");
    let union = Set::of(ranges);
    assert_eq!(
        Set::of(seen).first_missing_from(&union),
        None,
        "bytes received before a flush are lost"
    );
    assert_eq!(union.first_missing_from(&Set::of(sent)), None, "metered bytes were never sent");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn shutdown_flushes_the_metering() {
    let mut scene =
        Scene::start_with(Setting { config: vec![FLUSH_RARELY], ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/del%201/bok.epub"), File::of(5000));
    let path = format!("/files/{BOOK}/del%201/bok.epub");
    let link = scene.link(&["--isbn", BOOK]);
    let token = scene.token("kari");
    scene.get(&scene.http1(), &path, &token).send().await.unwrap().bytes().await.unwrap();
    let by_link =
        scene.http2().get(format!("{}/~{link}{path}", scene.base)).header("range", "bytes=10-19");
    assert_eq!(by_link.send().await.unwrap().bytes().await.unwrap().len(), 10);
    assert_eq!(scene.ledger().await[0]["delivered"], serde_json::json!({}));
    scene.stop_gate().await;
    scene.start_gate().await;
    // Under the file's name, for every form of the request.
    let name = format!("/files/{BOOK}/del 1/bok.epub");
    let delivered = serde_json::json!({ name: { "bytes": 5010, "ranges": [[0, 4999]] } });
    assert_eq!(scene.ledger().await[0]["delivered"], delivered);
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let one: Value = scene.admin(&format!("/api/v1/loans/{id}")).await.json().await.unwrap();
    assert_eq!(one["delivered"], delivered);
    scene.end().await;
}

#[tokio::test]
async fn only_deliveries_are_metered_for_each_loan() {
    let scene =
        Scene::start_with(Setting { config: vec![FLUSH_OFTEN], ..Setting::default() }).await;
    let packed = File::of(4000).field("content-encoding", "gzip");
    for (path, file) in [
        (format!("{BOOK}/book.epub"), File::of(5000)),
        (format!("{BOOK}/packed.css"), packed),
        (format!("{AUDIO}/audio.mp3"), File::of(3000)),
        ("covers/a.png".to_owned(), File::of(100)),
    ] {
        scene.origin.put(&path, file);
    }
    let (book, client) = (format!("/files/{BOOK}/book.epub"), scene.http2());
    let (kari, ola) = (scene.token("kari"), scene.token("ola"));
    let url = format!("{}{book}", scene.base);
    let status = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        answer.bytes().await.unwrap();
        status
    };
    assert_eq!(status(client.head(&url).bearer_auth(&kari)).await, 200);
    assert_eq!(
        status(scene.get(&client, &book, &kari).header("if-none-match", "\"v1\"")).await,
        304
    );
    assert_eq!(status(scene.get(&client, &book, &kari).header("range", "bytes=9000-")).await, 416);
    assert_eq!(status(scene.get(&client, &format!("/files/{BOOK}/none"), &kari)).await, 404);
    assert_eq!(status(client.get(format!("{}/covers/a.png", scene.base))).await, 200);
    written(&scene).await;
    assert_eq!(scene.ledger().await[0]["delivered"], serde_json::json!({}));

    let audio = format!("/files/{AUDIO}/audio.mp3");
    let packed = format!("/files/{BOOK}/packed.css");
    assert_eq!(status(scene.get(&client, &packed, &kari)).await, 200);
    for _ in 0..2 {
        assert_eq!(status(scene.get(&client, &book, &ola)).await, 200);
    }
    assert_eq!(
        status(scene.get(&client, &audio, &ola).header("range", "bytes=0-99,2000-2099")).await,
        206
    );
    written(&scene).await;
    let mut all: Vec<String> =
        scene.ledger().await.iter().map(|loan| loan["delivered"].to_string()).collect();
    all.sort();
    let mut wanted = [
        serde_json::json!({ packed: { "bytes": 4000, "ranges": [] } }).to_string(),
        serde_json::json!({ book: { "bytes": 10_000, "ranges": [[0, 4999]] } }).to_string(),
        serde_json::json!({ audio: { "bytes": 200, "ranges": [[0, 99], [2000, 2099]] } })
            .to_string(),
    ];
    wanted.sort();
    assert_eq!(all, wanted);
    scene.end().await;
}
