//! An origin that breaks off, stands still or fails for a moment: the reader notices nothing, and no two files are mixed.

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
    let scene = Scene::set(setting).await;
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
async fn what_breaks_off_or_stands_still_is_gone_on_with_from_the_next_byte() {
    for (name, file) in [
        ("cut", File { cut_after: Some(400_000), ..File::of(SIZE) }),
        ("cut, chunked", File { cut_after: Some(700_000), told_length: false, ..File::of(SIZE) }),
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
                let body = answer.bytes().await.unwrap_or_else(|error| panic!("{name}, {range:?}: {error}"));
                assert!(body == file.part(part), "{name}, {range:?}: other bytes");
            }
        }
        let metrics = scene.metrics().await;
        assert!(metric(&metrics, "loangate_origin_resumes_total", "outcome=\"resumed\"") >= 6.0, "{name}");
        assert_eq!(metric(&metrics, "loangate_streams_closed_total", "end=\"complete\""), 6.0, "{name}");
        // It is asked for the rest of this very file.
        let again: Vec<_> =
            scene.origin.asked().into_iter().filter(|asked| asked.headers.contains_key("if-range")).collect();
        assert!(
            again
                .iter()
                .all(|asked| asked.headers["if-range"] == "\"v1\"" && asked.headers.contains_key("range"))
        );
        scene.end().await;
    }
}

#[tokio::test]
async fn an_origin_without_ranges_is_gone_on_with_by_passing_over_what_came_before() {
    // Now and then it breaks off before what is new, but hardly five times in a row.
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
            assert!(body == wanted, "{} of {} bytes, from {differs:?} on others", body.len(), wanted.len());
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn without_a_strong_validator_or_with_another_file_the_reader_sees_a_break() {
    let cut = || File { cut_after: Some(400_000), ..File::of(SIZE) };
    for (name, file) in [
        ("a weak tag", cut().field("etag", "W/\"v1\"")),
        ("a date alone", cut().field("etag", "")),
        ("no ranges, and never beyond the same byte", File { ranges: false, ..cut() }),
        ("nothing at all", File { cut_after: Some(0), ..File::of(SIZE) }),
    ] {
        let scene = scene_with(file).await;
        for http2 in [false, true] {
            let body = get(&scene, http2, None).await.bytes().await;
            assert!(body.is_err(), "{name}: {} bytes looked whole", body.unwrap().len());
        }
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_under_way_is_never_mixed_with_the_one_before() {
    let old = || File { cut_after: Some(300_000), ..File::of(SIZE) };
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
            assert!(broken, "a clean end after {} bytes", body.len());
            assert!(body == old().part(0..body.len() as u64), "bytes of another file");
            let metrics = scene.metrics().await;
            assert_eq!(metric(&metrics, "loangate_origin_resumes_total", "outcome=\"changed\""), 1.0);
            let body = get(&scene, http2, None).await.bytes().await.unwrap();
            assert!(body.iter().all(|byte| *byte == 7), "and the next reader gets the new one");
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn the_resumes_can_be_switched_off_and_count_what_was_in_vain() {
    for (resumes, asked) in [("0", 1), ("2", 3)] {
        let line: &'static str = Box::leak(format!("name = \"files\"\nresumes = {resumes}").into_boxed_str());
        let setting = Setting { config: vec![("name = \"files\"", line)], ..Setting::default() };
        let scene = Scene::set(setting).await;
        put(&scene, File { cut_after: Some(0), ..File::of(SIZE) });
        assert!(get(&scene, false, None).await.bytes().await.is_err());
        assert_eq!(scene.origin.asked().len(), asked, "resumes = {resumes}");
        scene.end().await;
    }
}

/// So many downloads from an origin that breaks each answer somewhere and answers 500 one time in five.
async fn downloads(count: usize, size: u64) {
    let file = File { breaks_within: Some(size), fails_one_in: Some(5), ..File::of(size) };
    let scene = scene_with(file.clone()).await;
    let whole = file.part(0..size);
    let mut all = JoinSet::new();
    for number in 0..count {
        if number >= 8 {
            let body: bytes::Bytes = all.join_next().await.unwrap().unwrap();
            assert!(body == whole, "other bytes");
        }
        let request = scene.get(
            &if number % 2 == 0 { scene.http1() } else { scene.http2() },
            PATH,
            &scene.token("kari"),
        );
        let request = request.timeout(Duration::from_secs(600));
        all.spawn(async move {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.bytes().await.unwrap()
        });
    }
    for body in all.join_all().await {
        assert!(body == whole, "other bytes");
    }
    println!("{count} downloads, {} requests to the origin", scene.origin.asked().len());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_from_an_origin_that_breaks_every_answer_are_whole() {
    downloads(40, 1_000_000).await;
}

/// Some minutes: `cargo test --release --test it -- --ignored --nocapture a_thousand_downloads`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws 20 GB"]
async fn a_thousand_downloads_from_an_origin_that_breaks_every_answer_are_whole() {
    downloads(1000, 20_000_000).await;
}
