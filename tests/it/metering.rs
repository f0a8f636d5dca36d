//! What was delivered under a loan, as the support API tells it: all that the reader received, and
//! nothing that was not sent, whatever is asked and wherever it breaks off or is killed.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::Value;

use crate::support::multipart::parts;
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, Scene, metric};

const SIZE: u64 = 16_000_000;
/// What may be between the gate and a reader who hangs up: its window over HTTP/2, and the buffers
/// of the two systems.
const IN_FLIGHT: usize = 3 << 20;
/// How often it is written in these tests.
const OFTEN: (&str, &str) = ("[ledger]", "[metering]\nflush = \"100ms\"\n\n[ledger]");
/// Not before the end.
const SELDOM: (&str, &str) = ("[ledger]", "[metering]\nflush = \"1h\"\n\n[ledger]");

/// Bytes of a file, each in it or not.
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

    /// The first byte that another one does not have.
    fn beyond(&self, other: &Set) -> Option<usize> {
        self.0.iter().zip(&other.0).position(|(one, other)| *one && !*other)
    }

    fn length(&self) -> usize {
        self.0.iter().filter(|byte| **byte).count()
    }
}

/// What the API tells of a file.
fn told(loan: &Value, path: &str) -> (u64, Vec<Range<u64>>) {
    let told = &loan["delivered"][path];
    let ranges = told["ranges"].as_array().unwrap_or_else(|| panic!("no {path} in {loan}"));
    let pair = |range: &Value| range[0].as_u64().unwrap()..range[1].as_u64().unwrap() + 1;
    (told["bytes"].as_u64().unwrap(), ranges.iter().map(pair).collect())
}

/// Waits until every body is over, also those that the origin sends, and what it sent has been
/// written.
async fn written(scene: &Scene) {
    let over = async || metric(&scene.metrics().await, "loangate_streams", "") == 0.0;
    scene.until("every body is over", over).await;
    scene.until("the origin's too", async || scene.origin.bodies() == 0).await;
    flushed(scene).await;
}

/// Waits for a flush that began after this was called.
async fn flushed(scene: &Scene) {
    let flushes = async || {
        metric(&scene.metrics().await, "loangate_metering_flushes_total", "outcome=\"written\"")
    };
    let before = flushes().await;
    scene.until("it is written", async || flushes().await >= before + 2.0).await;
}

/// A request that is to be made.
#[derive(Clone, Debug)]
struct Plan {
    file: &'static str,
    http2: bool,
    /// The ranges; the whole file where there are none.
    ranges: Vec<Range<u64>>,
    /// How many chunks are read before the reader hangs up.
    hang_up: Option<u32>,
}

/// What came of it: which bytes were received, and how many.
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
        // Once in a while all of it, which is no range at all.
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
        // The text between parts is no byte of the file: of several that were broken off, nothing
        // is claimed.
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
async fn after_random_requests_and_hang_ups_the_union_is_what_was_received_but_for_bytes_in_flight()
{
    let given = std::env::var("LOANGATE_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("LOANGATE_TEST_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);

    let scene = Scene::set(Setting { config: vec![OFTEN], ..Setting::default() }).await;
    let file = File::of(SIZE);
    scene.origin.put(&format!("{BOOK}/plain.mp3"), file.clone());
    scene.origin.put(&format!("{BOOK}/no-ranges.mp3"), File { ranges: false, ..file.clone() });
    scene.origin.put(
        &format!("{BOOK}/breaks.mp3"),
        File { breaks_within: Some(9_000_000), ..file.clone() },
    );
    let begun = scene.ask("PUT", &format!("/loans/{BOOK}"), &scene.token("kari"), "").await;
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
        let (bytes, ranges) = told(&loans[0], &format!("/files/{BOOK}/{name}"));
        assert!(
            ranges.windows(2).all(|two| two[0].end < two[1].start),
            "sorted and merged: {ranges:?}"
        );
        let union = Set::of(ranges);
        let received = Set::of(of_file.iter().flat_map(|outcome| outcome.received.clone()));
        assert_eq!(received.beyond(&union), None, "{name}: a byte was received and is not told of");
        assert_eq!(
            union.beyond(&Set::of(scene.origin.sent(&format!("{BOOK}/{name}")))),
            None,
            "{name}: never sent"
        );
        // Of a body that the reader took whole, that is all; of one that was broken off, what was
        // asked may have left.
        let may = |outcome: &&Outcome| {
            outcome.plan.hang_up.map_or(outcome.received.clone(), |_| {
                let asked = &outcome.plan.ranges;
                let first = asked.iter().map(|range| range.start).min().unwrap_or(0);
                let next = asked.iter().map(|range| range.end).max().unwrap_or(SIZE);
                std::iter::once(first..next).collect()
            })
        };
        assert_eq!(
            union.beyond(&Set::of(of_file.iter().flat_map(may))),
            None,
            "{name}: not asked for"
        );
        let count: u64 = of_file
            .iter()
            .flat_map(|outcome| &outcome.received)
            .map(|part| part.end - part.start)
            .sum();
        assert!(bytes >= count, "{name}: {count} bytes were received, and {bytes} told of");
        all_bytes += bytes;
        in_flight += union.length() - received.length();
    }
    // The other count of what was handed over has the text between parts too.
    let handed_over = metric(&scene.metrics().await, "loangate_delivered_bytes_total", "");
    assert!(all_bytes as f64 <= handed_over, "{all_bytes} of {handed_over}");
    let hung_up = outcomes.iter().filter(|outcome| outcome.plan.hang_up.is_some()).count();
    assert!(in_flight <= hung_up * IN_FLIGHT, "{in_flight} bytes after {hung_up} who hung up");
    println!("{all_bytes} bytes; {in_flight} more in the unions than readers have seen");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hang_ups_every_count_is_exact() {
    let mut chance = fastrand::Rng::with_seed(7);
    let scene = Scene::set(Setting { config: vec![OFTEN], ..Setting::default() }).await;
    let file = File::of(SIZE);
    for name in ["plain.mp3", "no-ranges.mp3", "breaks.mp3"] {
        let breaks_within = (name == "breaks.mp3").then_some(9_000_000);
        let file = File { ranges: name != "no-ranges.mp3", breaks_within, ..file.clone() };
        scene.origin.put(&format!("{BOOK}/{name}"), file);
    }
    scene.ask("PUT", &format!("/loans/{BOOK}"), &scene.token("kari"), "").await;
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut came: BTreeMap<&str, Vec<Range<u64>>> = BTreeMap::new();
    for plan in plans(&mut chance, 60) {
        let outcome = make(&scene, &file, Plan { hang_up: None, ..plan }).await;
        let received = outcome.received.iter().map(|part| part.end - part.start).sum::<u64>();
        *bytes.entry(outcome.plan.file).or_default() += received;
        came.entry(outcome.plan.file).or_default().extend(outcome.received);
    }
    written(&scene).await;
    let loans = scene.ledger().await;
    for (name, count) in bytes {
        let (bytes, ranges) = told(&loans[0], &format!("/files/{BOOK}/{name}"));
        assert_eq!(bytes, count, "{name}");
        assert!(Set::of(ranges).0 == Set::of(came[name].clone()).0, "{name}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_what_came_since_the_last_flush_and_never_makes_it_more() {
    let mut scene = Scene::around(Setting { config: vec![OFTEN], ..Setting::default() }).await;
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
        // Half of the time the reader stands still now, in the middle of a body: that keeps no
        // count back.
        flushed(&scene).await;
        seen.push(first..at);
        if round >= 2 {
            read(&mut at, first + 600_000).await;
        }
        gate.kill();
    }
    let mut gate = scene.spawn_gate().await;
    // What the origin still holds of the last body shows when its connection is gone.
    scene.until("the origin's bodies are over", async || scene.origin.bodies() == 0).await;
    let (bytes, ranges) = told(&scene.ledger().await[0], &path);
    let sent = scene.origin.sent(&format!("{BOOK}/audio.mp3"));
    assert!(bytes <= sent.iter().map(|part| part.end - part.start).sum(), "{bytes} of {sent:?}");
    let union = Set::of(ranges);
    assert_eq!(Set::of(seen).beyond(&union), None, "it was received before a flush, and is lost");
    assert_eq!(union.beyond(&Set::of(sent)), None, "it was never sent");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn an_orderly_end_writes_what_the_next_flush_would_have() {
    let mut scene = Scene::set(Setting { config: vec![SELDOM], ..Setting::default() }).await;
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
    // By the name of the file, however it was asked for.
    let name = format!("/files/{BOOK}/del 1/bok.epub");
    let delivered = serde_json::json!({ name: { "bytes": 5010, "ranges": [[0, 4999]] } });
    assert_eq!(scene.ledger().await[0]["delivered"], delivered);
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let one: Value = scene.admin(&format!("/api/v1/loans/{id}")).await.json().await.unwrap();
    assert_eq!(one["delivered"], delivered);
    scene.end().await;
}

#[tokio::test]
async fn each_loan_has_its_own_count_and_what_is_no_delivery_of_a_file_has_none() {
    let scene = Scene::set(Setting { config: vec![OFTEN], ..Setting::default() }).await;
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
