//! Several ranges in one request (RFC 9110 §14.2 and §14.6): the gate builds the multipart response
//! from any origin, and never sends more bytes than the file has.

use http::StatusCode;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::multipart::parts;
use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene};

const PATH: &str = "/files/9788299999014/audio.mp3";
const SIZE: u64 = 300_000;

async fn scene_with(file: File) -> Scene {
    let scene = Scene::start_with(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/audio.mp3"), file);
    let begun = scene.get(&scene.http1(), PATH, &scene.token("kari")).header("range", "bytes=0-0");
    assert_eq!(begun.send().await.unwrap().status(), StatusCode::PARTIAL_CONTENT, "a loan begins");
    scene
}

async fn get(
    scene: &Scene,
    client: &reqwest::Client,
    range: &str,
    if_range: Option<&str>,
) -> reqwest::Response {
    let mut request = scene.get(client, PATH, &scene.token("kari")).header("range", range);
    if let Some(validator) = if_range {
        request = request.header("if-range", validator);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn several_ranges_are_sent_as_ordered_parts() {
    for (name, file) in [
        ("ranges", File::of(SIZE)),
        ("one that breaks", File { breaks_within: Some(SIZE), ..File::of(SIZE) }),
    ] {
        let scene = scene_with(file.clone()).await;
        for client in [scene.http1(), scene.http2()] {
            for (range, wanted) in [
                ("bytes=0-99,1000-1999", vec![(0, 99), (1000, 1999)]),
                ("bytes=200000-,0-9", vec![(0, 9), (200_000, SIZE - 1)]),
                ("bytes=0-0,-1", vec![(0, 0), (SIZE - 1, SIZE - 1)]),
                ("bytes=500-999,0-9,700-1500", vec![(0, 9), (500, 1500)]),
                ("bytes=0-9,1000000-,5000-5009", vec![(0, 9), (5000, 5009)]),
            ] {
                let answer = get(&scene, &client, range, None).await;
                let received = parts(answer).await;
                let bounds: Vec<(u64, u64)> =
                    received.iter().map(|part| (part.0, part.1)).collect();
                assert_eq!(bounds, wanted, "{name}: {range}");
                for (first, last, complete, bytes) in received {
                    assert_eq!(complete, SIZE);
                    assert!(
                        bytes == file.part(first..last + 1),
                        "{name}: {range}: other bytes at {first}"
                    );
                }
            }
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn multipart_is_used_only_if_smaller_than_the_file() {
    let file = File::of(SIZE);
    let scene = scene_with(file.clone()).await;
    let client = scene.http2();
    for (range, part) in [
        ("bytes=0-99,100-199", 0..200),
        ("bytes=0-99,150-199", 0..200),
        ("bytes=1000-1999,900000-", 1000..2000),
    ] {
        let answer = get(&scene, &client, range, None).await;
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(answer.headers()["content-type"], "audio/mpeg", "{range}");
        assert_eq!(
            answer.headers()["content-range"],
            format!("bytes {}-{}/{SIZE}", part.start, part.end - 1)
        );
        assert_eq!(answer.bytes().await.unwrap(), file.part(part), "{range}");
    }
    let many: String =
        (0..1000).map(|number| format!("{}-{},", number * 150, number * 150)).collect();
    let many = format!("bytes={}", many.trim_end_matches(','));
    let overlapping = format!("bytes={}", vec!["0-"; 100].join(","));
    for range in [many.as_str(), "bytes=0-149900,150010-", "bytes=0-9,x-y", "bytes=9-0,0-9"] {
        let answer = get(&scene, &client, range, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", &range[..30.min(range.len())]);
        assert_eq!(answer.bytes().await.unwrap().len() as u64, SIZE, "more bytes than the file");
    }
    let answer = get(&scene, &client, &overlapping, None).await;
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        answer.bytes().await.unwrap().len() as u64,
        SIZE,
        "overlapping ranges get the file once"
    );
    let past = get(&scene, &client, "bytes=300000-,400000-", None).await;
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(past.headers()["content-range"], format!("bytes */{SIZE}"));
    scene.end().await;
}

#[tokio::test]
async fn parts_are_of_one_file_or_the_file_is_sent_whole() {
    for (file, if_range, status) in [
        (File::of(SIZE), Some("\"v1\""), 206),
        (File::of(SIZE), Some("\"v2\""), 200),
        (File::of(SIZE).field("etag", "W/\"v1\""), None, 200),
        (File::of(SIZE).field("etag", ""), None, 200),
        (File { ranges: false, ..File::of(SIZE) }, None, 200),
    ] {
        let scene = scene_with(File::of(SIZE)).await;
        scene.origin.put(&format!("{BOOK}/audio.mp3"), file);
        let answer = get(&scene, &scene.http1(), "bytes=0-9,2000-2009", if_range).await;
        assert_eq!(answer.status().as_u16(), status, "{if_range:?}");
        if status == 200 {
            assert_eq!(answer.bytes().await.unwrap().len() as u64, SIZE);
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn parts_of_a_replaced_file_are_refused() {
    let scene = scene_with(File::of(SIZE)).await;
    let fetch = async || {
        let request = scene.get(&scene.http2(), PATH, &scene.token("kari"));
        request
            .header("range", "bytes=0-9,2000-2009")
            .header("if-match", "\"v1\"")
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(
        fetch().await,
        StatusCode::PARTIAL_CONTENT,
        "the file's metadata is cached from now on"
    );
    scene.origin.put(&format!("{BOOK}/audio.mp3"), File::of(SIZE).field("etag", "\"v2\""));
    assert_eq!(fetch().await, StatusCode::PRECONDITION_FAILED);
    scene.end().await;
}

/// Returns which bytes a set of ranges selects by the RFC.
fn meant(ranges: &[(u64, Option<u64>)]) -> Vec<bool> {
    let mut bytes = vec![false; SIZE as usize];
    for (first, last) in ranges {
        let last = last.unwrap_or(SIZE - 1).min(SIZE - 1);
        for byte in bytes.iter_mut().take(last as usize + 1).skip(*first as usize) {
            *byte = true;
        }
    }
    bytes
}

#[test]
fn random_range_sets_get_every_requested_byte() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let file = File::of(SIZE);
    let whole = file.part(0..SIZE);
    let scene = runtime.block_on(scene_with(file));
    let client = scene.http2();
    let range = (0..SIZE, proptest::option::of(0..50_000_u64))
        .prop_map(|(first, more)| (first, more.map(|more| first + more)));
    let mut runner =
        TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&proptest::collection::vec(range, 1..8), |ranges| {
        let texts: Vec<String> = ranges
            .iter()
            .map(|(first, last)| {
                format!("{first}-{}", last.map_or_else(String::new, |last| last.to_string()))
            })
            .collect();
        let field = format!("bytes={}", texts.join(","));
        runtime.block_on(async {
            let answer = get(&scene, &client, &field, None).await;
            let several =
                answer.headers()["content-type"].to_str().unwrap().starts_with("multipart");
            let mut received = vec![false; SIZE as usize];
            let mut take = |first: u64, bytes: &[u8]| {
                assert!(
                    bytes == &whole[first as usize..first as usize + bytes.len()],
                    "other bytes"
                );
                received[first as usize..first as usize + bytes.len()].fill(true);
            };
            if several {
                for (first, _, _, bytes) in parts(answer).await {
                    take(first, &bytes);
                }
            } else {
                let first = answer.headers().get("content-range").map_or(0, |field| {
                    field.to_str().unwrap()["bytes ".len()..]
                        .split('-')
                        .next()
                        .unwrap()
                        .parse()
                        .unwrap()
                });
                take(first, &answer.bytes().await.unwrap());
            }
            for (place, wanted) in meant(&ranges).into_iter().enumerate() {
                assert!(!wanted || received[place], "{field}: byte {place} is missing");
            }
        });
        Ok(())
    });
    outcome.unwrap();
    runtime.block_on(scene.end());
}
