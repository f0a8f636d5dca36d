//! An origin that breaks off, stalls or fails briefly: the reader notices nothing, and two files
//! are never mixed.

use std::cell::Cell;
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene, metric};

const PATH: &str = "/files/9788299999014/audio.mp3";
const SIZE: u64 = 2_000_000;

async fn scene_with(file: File) -> Scene {
    let setting = Setting {
        config: vec![("name = \"files\"", "name = \"files\"\nidle = \"300ms\"")],
        ..Setting::default()
    };
    let scene = Scene::start_with(setting).await;
    put(&scene, file);
    scene
}

fn put(scene: &Scene, file: File) {
    scene.origin.put(&format!("{BOOK}/audio.mp3"), file);
}

async fn get(scene: &Scene, http2: bool, range: Option<&str>) -> reqwest::Response {
    let client = if http2 { scene.http2() } else { scene.http1() };
    let mut request = scene.get(&client, PATH, &scene.token("kari"));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn broken_or_stalled_body_is_resumed_at_the_next_byte() {
    for (name, file) in [
        ("cut", File { abort_after: Some(400_000), ..File::of(SIZE) }),
        ("cut, chunked", File { abort_after: Some(700_000), has_length: false, ..File::of(SIZE) }),
        ("stalled", File { stall_after: Some(900_000), ..File::of(SIZE) }),
        ("cut anywhere", File { breaks_within: Some(SIZE / 2), ..File::of(SIZE) }),
    ] {
        let scene = scene_with(file.clone()).await;
        for http2 in [false, true] {
            for (range, part) in [
                (None, 0..SIZE),
                (Some("bytes=1000-1900000"), 1000..1_900_001),
                (Some("bytes=-1500000"), 500_000..SIZE),
            ] {
                let answer = get(&scene, http2, range).await;
                assert!(answer.status().is_success(), "{name}: {}", answer.status());
                let body = answer
                    .bytes()
                    .await
                    .unwrap_or_else(|error| panic!("{name}, {range:?}: {error}"));
                assert!(body == file.part(part), "{name}, {range:?}: other bytes");
            }
        }
        let metrics = scene.metrics().await;
        assert!(
            metric(&metrics, "loangate_origin_resumes_total", "outcome=\"resumed\"") >= 6.0,
            "{name}"
        );
        assert_eq!(
            metric(&metrics, "loangate_streams_closed_total", "end=\"complete\""),
            6.0,
            "{name}"
        );
        // The gate requests the rest of this very file.
        let again: Vec<_> = scene
            .origin
            .requests()
            .into_iter()
            .filter(|request| request.headers.contains_key("if-range"))
            .collect();
        assert!(again.iter().all(|request| request.headers["if-range"] == "\"v1\""
            && request.headers.contains_key("range")));
        scene.end().await;
    }
}

#[tokio::test]
async fn resume_without_ranges_skips_bytes_already_sent() {
    // The origin sometimes breaks off before any new byte, but rarely five times in a row.
    let file = File { ranges: false, breaks_within: Some(8 * SIZE), ..File::of(SIZE) };
    let scene = scene_with(file.clone()).await;
    assert_eq!(
        get(&scene, false, Some("bytes=0-0")).await.status(),
        StatusCode::PARTIAL_CONTENT,
        "a loan begins"
    );
    for http2 in [false, true] {
        for _ in 0..15 {
            let answer = get(&scene, http2, Some("bytes=500000-")).await;
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
            let body = answer.bytes().await.unwrap();
            let wanted = file.part(500_000..SIZE);
            let differs = body.iter().zip(&wanted).position(|(one, other)| one != other);
            assert!(
                body == wanted,
                "{} of {} bytes, from {differs:?} on others",
                body.len(),
                wanted.len()
            );
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn resume_needs_a_strong_validator_and_the_same_file() {
    let cut = || File { abort_after: Some(400_000), ..File::of(SIZE) };
    for (name, file) in [
        ("a weak tag", cut().field("etag", "W/\"v1\"")),
        ("a date alone", cut().field("etag", "")),
        ("no ranges, and never past the same byte", File { ranges: false, ..cut() }),
        ("nothing at all", File { abort_after: Some(0), ..File::of(SIZE) }),
    ] {
        let scene = scene_with(file).await;
        for http2 in [false, true] {
            let body = get(&scene, http2, None).await.bytes().await;
            assert!(body.is_err(), "{name}: {} bytes looked complete", body.unwrap().len());
        }
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_file_is_never_mixed_with_the_old_one() {
    let old = || File { abort_after: Some(300_000), ..File::of(SIZE) };
    let new = || File::with(vec![7; SIZE as usize]).field("etag", "\"v2\"");
    for http2 in [false, true] {
        for ranges in [true, false] {
            let scene = scene_with(old()).await;
            let mut answer = get(&scene, http2, None).await;
            let mut body = answer.chunk().await.unwrap().unwrap().to_vec();
            put(&scene, File { ranges, ..new() });
            let broken = loop {
                match answer.chunk().await {
                    Ok(Some(chunk)) => body.extend(chunk),
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            assert!(broken, "a complete response of {} bytes", body.len());
            assert!(body == old().part(0..body.len() as u64), "bytes of another file");
            let metrics = scene.metrics().await;
            assert_eq!(
                metric(&metrics, "loangate_origin_resumes_total", "outcome=\"changed\""),
                1.0
            );
            let body = get(&scene, http2, None).await.bytes().await.unwrap();
            assert!(body.iter().all(|byte| *byte == 7), "the next reader gets the new file");
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn resumes_can_be_disabled_and_failed_ones_are_counted() {
    for (resumes, expected) in [("0", 1), ("2", 3)] {
        let line: &'static str =
            Box::leak(format!("name = \"files\"\nresumes = {resumes}").into_boxed_str());
        let setting = Setting { config: vec![("name = \"files\"", line)], ..Setting::default() };
        let scene = Scene::start_with(setting).await;
        put(&scene, File { abort_after: Some(0), ..File::of(SIZE) });
        assert!(get(&scene, false, None).await.bytes().await.is_err());
        assert_eq!(scene.origin.requests().len(), expected, "resumes = {resumes}");
        scene.end().await;
    }
}

/// Starts a scene whose origin breaks off or stalls in each body and resets its connections. It
/// answers one request in five with 500, and sometimes sends the whole file for a range.
async fn troubled(size: u64) -> (Scene, File) {
    let config = vec![("name = \"files\"", "name = \"files\"\nidle = \"300ms\"\nresumes = 30")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.reset_connections();
    let file = File {
        breaks_within: Some(size),
        fails_one_in: Some(5),
        stalls_one_in: Some(20),
        ignores_range_one_in: Some(5),
        ..File::of(size)
    };
    (scene, file)
}

/// Downloads the file this many times, a few at once. Passes each body to `check`, with whether it
/// ended without an error.
async fn download(
    scene: &Scene,
    count: usize,
    before: impl Fn(usize),
    check: impl Fn(&[u8], bool),
) {
    let mut all = JoinSet::new();
    for number in 0..count {
        if number >= 8 {
            let (body, is_whole): (Vec<u8>, bool) = all.join_next().await.unwrap().unwrap();
            check(&body, is_whole);
        }
        before(number);
        let client = if number % 2 == 0 { scene.http1() } else { scene.http2() };
        let request =
            scene.get(&client, PATH, &scene.token("kari")).timeout(Duration::from_secs(600));
        all.spawn(async move {
            // The gate retries once; after that the client retries.
            let mut answer = request.try_clone().unwrap().send().await.unwrap();
            while answer.status() == StatusCode::BAD_GATEWAY {
                answer = request.try_clone().unwrap().send().await.unwrap();
            }
            assert_eq!(answer.status(), StatusCode::OK);
            let mut body = Vec::new();
            loop {
                match answer.chunk().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => return (body, true),
                    Err(_) => return (body, false),
                }
            }
        });
    }
    for (body, is_whole) in all.join_all().await {
        check(&body, is_whole);
    }
}

async fn downloads(count: usize, size: u64) {
    let (scene, file) = troubled(size).await;
    put(&scene, file.clone());
    let whole = file.part(0..size);
    let check =
        |body: &[u8], is_whole: bool| assert!(is_whole && body == whole, "{} bytes", body.len());
    download(&scene, count, |_| {}, check).await;
    println!("{count} downloads, {} requests to the origin", scene.origin.requests().len());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_from_an_unreliable_origin_are_complete() {
    downloads(40, 1_000_000).await;
}

/// Takes minutes: `cargo test --release --test it -- --ignored --nocapture thousand_downloads`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws 20 GB"]
async fn thousand_downloads_from_an_unreliable_origin_are_complete() {
    downloads(1000, 20_000_000).await;
}

/// Downloads a file while it is replaced repeatedly. Returns the number of complete downloads.
async fn downloads_while_replaced(count: usize, size: u64) -> usize {
    let (scene, file) = troubled(size).await;
    let other = {
        let content: Vec<u8> = file.part(0..size).iter().map(|byte| !byte).collect();
        File { content: Some(content.into()), ..file.clone().field("etag", "\"v2\"") }
    };
    let contents = [file.part(0..size), other.part(0..size)];
    let whole = Cell::new(0);
    let replace = |number: usize| {
        put(&scene, if number.is_multiple_of(2) { file.clone() } else { other.clone() })
    };
    let check = |body: &[u8], is_whole: bool| {
        let of = contents.iter().filter(|content| content.starts_with(body)).count();
        assert!(of > 0, "a mixed body of {} bytes", body.len());
        assert!(
            !is_whole || body.len() as u64 == size,
            "a complete response of {} bytes",
            body.len()
        );
        whole.set(whole.get() + usize::from(is_whole));
    };
    download(&scene, count, replace, check).await;
    scene.end().await;
    whole.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_of_a_changing_file_are_never_mixed() {
    let whole = downloads_while_replaced(100, 1_000_000).await;
    println!("{whole} of 100 were complete, the others broke off");
    assert!(whole < 100, "no file was replaced during its download");
}

/// Takes minutes; run like the other thousand downloads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "downloads some 10 GB"]
async fn thousand_downloads_of_a_changing_file_are_never_mixed() {
    let whole = downloads_while_replaced(1000, 20_000_000).await;
    println!("{whole} of 1000 were complete, the others broke off");
}
