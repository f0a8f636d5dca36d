//! An origin that breaks off, stands still or fails for a moment: the reader notices nothing, and
//! no two files are mixed.

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
        // It is asked for the rest of this very file.
        let again: Vec<_> = scene
            .origin
            .asked()
            .into_iter()
            .filter(|asked| asked.headers.contains_key("if-range"))
            .collect();
        assert!(
            again.iter().all(|asked| asked.headers["if-range"] == "\"v1\""
                && asked.headers.contains_key("range"))
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
            assert_eq!(
                metric(&metrics, "loangate_origin_resumes_total", "outcome=\"changed\""),
                1.0
            );
            let body = get(&scene, http2, None).await.bytes().await.unwrap();
            assert!(body.iter().all(|byte| *byte == 7), "and the next reader gets the new one");
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn the_resumes_can_be_switched_off_and_count_what_was_in_vain() {
    for (resumes, asked) in [("0", 1), ("2", 3)] {
        let line: &'static str =
            Box::leak(format!("name = \"files\"\nresumes = {resumes}").into_boxed_str());
        let setting = Setting { config: vec![("name = \"files\"", line)], ..Setting::default() };
        let scene = Scene::set(setting).await;
        put(&scene, File { cut_after: Some(0), ..File::of(SIZE) });
        assert!(get(&scene, false, None).await.bytes().await.is_err());
        assert_eq!(scene.origin.asked().len(), asked, "resumes = {resumes}");
        scene.end().await;
    }
}

/// An origin that breaks off each answer somewhere, or stands still there, resets its connections,
/// answers 500 one time in five, and now and then all of the file where a range was asked.
async fn troubled(size: u64) -> (Scene, File) {
    let config = vec![("name = \"files\"", "name = \"files\"\nidle = \"300ms\"\nresumes = 30")];
    let scene = Scene::set(Setting { config, ..Setting::default() }).await;
    scene.origin.reset_connections();
    let file = File {
        breaks_within: Some(size),
        fails_one_in: Some(5),
        stalls_one_in: Some(20),
        whole_one_in: Some(5),
        ..File::of(size)
    };
    (scene, file)
}

/// Draws the file so many times, a few at once, and looks at what came: the bytes, and whether
/// their end was clean.
async fn draw(scene: &Scene, count: usize, before: impl Fn(usize), look: impl Fn(&[u8], bool)) {
    let mut all = JoinSet::new();
    for number in 0..count {
        if number >= 8 {
            let (body, is_whole): (Vec<u8>, bool) = all.join_next().await.unwrap().unwrap();
            look(&body, is_whole);
        }
        before(number);
        let client = if number % 2 == 0 { scene.http1() } else { scene.http2() };
        let request =
            scene.get(&client, PATH, &scene.token("kari")).timeout(Duration::from_secs(600));
        all.spawn(async move {
            // The gate repeats a request once; after that it is the reader's program that tries
            // again.
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
        look(&body, is_whole);
    }
}

async fn downloads(count: usize, size: u64) {
    let (scene, file) = troubled(size).await;
    put(&scene, file.clone());
    let whole = file.part(0..size);
    let look =
        |body: &[u8], is_whole: bool| assert!(is_whole && body == whole, "{} bytes", body.len());
    draw(&scene, count, |_| {}, look).await;
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

/// Draws a file that is replaced again and again while it is drawn, from that origin: how many were
/// whole.
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
    let look = |body: &[u8], is_whole: bool| {
        let of = contents.iter().filter(|content| content.starts_with(body)).count();
        assert!(of > 0, "a mixed body of {} bytes", body.len());
        assert!(!is_whole || body.len() as u64 == size, "a clean end after {} bytes", body.len());
        whole.set(whole.get() + usize::from(is_whole));
    };
    draw(&scene, count, replace, look).await;
    scene.end().await;
    whole.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_file_that_is_replaced_again_and_again_no_reader_gets_a_mixture() {
    let whole = downloads_while_replaced(100, 1_000_000).await;
    println!("{whole} of 100 were whole, the others broke off");
    assert!(whole < 100, "none was replaced under way");
}

/// As `a_thousand_downloads`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws some 10 GB"]
async fn a_thousand_downloads_while_replaced_of_a_file_are_never_a_mixture() {
    let whole = downloads_while_replaced(1000, 20_000_000).await;
    println!("{whole} of 1000 were whole, the others broke off");
}
