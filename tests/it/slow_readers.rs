//! Stalled, slow and too fast readers: they are aborted, refused or throttled, and the origin is
//! released.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::support::scene::Setting;
use crate::support::{AUDIO, File, Scene, metric};

const GIB: u64 = 1 << 30;

fn path() -> String {
    format!("/files/{AUDIO}/audio.mp3")
}

async fn scene_with(delivery: &'static str, file: File) -> Scene {
    let config = vec![("[ledger]", delivery)];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), file);
    scene
}

async fn fetch(scene: &Scene, client: &reqwest::Client, reader: &str) -> reqwest::Response {
    scene.get(client, &path(), &scene.token(reader)).send().await.unwrap()
}

async fn streams(scene: &Scene, end: &str) -> f64 {
    metric(&scene.metrics().await, "loangate_streams_closed_total", &format!("end=\"{end}\""))
}

/// Reads to the end. Returns the bytes received, and whether the body is complete.
async fn drain(mut answer: reqwest::Response) -> (u64, bool) {
    let mut taken = 0;
    loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => taken += bytes.len() as u64,
            Ok(None) => return (taken, true),
            Err(_) => return (taken, false),
        }
    }
}

#[tokio::test]
async fn stalled_reader_is_aborted_and_the_origin_released() {
    let scene = scene_with("[delivery]\nidle = \"300ms\"\n\n[ledger]", File::of(GIB)).await;
    for (number, client) in [scene.http1(), scene.http2()].into_iter().enumerate() {
        let stalled = fetch(&scene, &client, "kari").await;
        assert_eq!(stalled.status(), StatusCode::OK);
        scene
            .until("the reader is aborted", async || {
                streams(&scene, "too_slow").await == (number + 1) as f64
            })
            .await;
        scene.until("the origin is released", async || scene.origin.bodies() == 0).await;
        let (taken, is_whole) = drain(stalled).await;
        assert!(!is_whole && taken < GIB, "an aborted body must not look complete");
    }
    // A reader who keeps reading is not aborted, whatever the total time.
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(50_000_000));
    assert_eq!(drain(fetch(&scene, &scene.http2(), "kari").await).await, (50_000_000, true));
    scene.end().await;
}

#[tokio::test]
async fn loan_end_aborts_a_stalled_reader_and_frees_the_origin() {
    let scene = scene_with("[ledger]", File::of(GIB)).await;
    for (reader, client) in [("kari", scene.http1()), ("ola", scene.http2())] {
        let stalled = fetch(&scene, &client, reader).await;
        assert_eq!(stalled.status(), StatusCode::OK);
        let (status, _) =
            scene.call_api("DELETE", &format!("/loans/{AUDIO}"), &scene.token(reader), "").await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        scene.until("the origin is released", async || scene.origin.bodies() == 0).await;
        assert!(!drain(stalled).await.1);
    }
    assert_eq!(streams(&scene, "cut").await, 2.0);
    scene.end().await;
}

#[tokio::test]
async fn minimum_rate_aborts_slow_readers_not_slow_origins() {
    let delivery = "[delivery]\nmin_rate = \"100MiB\"\nmin_rate_grace = \"400ms\"\n\n[ledger]";
    let mut scene = scene_with(delivery, File::of(GIB)).await;
    for client in [scene.http1(), scene.http2()] {
        let mut answer = fetch(&scene, &client, "kari").await;
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        let mut taken = 0;
        let broke = loop {
            turn.tick().await;
            match answer.chunk().await {
                Ok(Some(bytes)) => taken += bytes.len() as u64,
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(broke && taken > 0 && taken < GIB, "{taken}");
        scene.until("the origin is released", async || scene.origin.bodies() == 0).await;
    }
    assert_eq!(streams(&scene, "too_slow").await, 2.0);
    scene.stop_gate().await;

    // The origin stalls for longer than the grace, and the gate then resumes.
    scene.replace_in_config("name = \"files\"", "name = \"files\"\nidle = \"1500ms\"\nresumes = 1");
    scene.replace_in_config("min_rate = \"100MiB\"", "min_rate = \"1KiB\"");
    scene.start_gate().await;
    let file = File::of(3_000_000);
    scene
        .origin
        .put(&format!("{AUDIO}/audio.mp3"), File { stall_after: Some(1_000_000), ..file.clone() });
    let answer = fetch(&scene, &scene.http2(), "kari").await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), file);
    assert_eq!(drain(answer).await, (3_000_000, true));
    scene.end().await;
}

#[tokio::test]
async fn buffers_of_a_fast_reader_are_reported_and_released() {
    let scene = scene_with("[server]\nbuffers = \"32MiB\"\n\n[ledger]", File::of(GIB)).await;
    let held = async || metric(&scene.metrics().await, "loangate_buffers_held_bytes", "");
    for client in [scene.http1(), scene.http2()] {
        let mut answer = fetch(&scene, &client, "kari").await;
        let mut taken = 0;
        while held().await <= 64.0 * 1024.0 {
            for _ in 0..100 {
                taken += answer.chunk().await.unwrap().unwrap().len() as u64;
            }
            assert!(taken < GIB / 4, "the gate read more than at first");
        }
        assert_eq!(
            metric(&scene.metrics().await, "loangate_buffers_bytes", ""),
            32.0 * 1024.0 * 1024.0
        );
        drop((answer, client));
        scene.until("all buffers are released", async || held().await == 0.0).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn stream_limit_counts_all_connections_of_a_borrower() {
    let scene = scene_with("[delivery]\nstreams_per_borrower = 2\n\n[ledger]", File::of(GIB)).await;
    let one = fetch(&scene, &scene.http1(), "kari").await;
    let client = scene.http2();
    let other = fetch(&scene, &client, "kari").await;
    assert_eq!((one.status(), other.status()), (StatusCode::OK, StatusCode::OK));
    let third = fetch(&scene, &client, "kari").await;
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(third.headers().contains_key("retry-after"));
    let problem: serde_json::Value = third.json().await.unwrap();
    assert_eq!(
        (&problem["type"], &problem["reason"]),
        (&"too-many-requests".into(), &"streams".into())
    );
    assert_eq!(scene.origin.bodies(), 2, "the refused request did not reach the origin");
    assert_eq!(
        fetch(&scene, &client, "ola").await.status(),
        StatusCode::OK,
        "the limit of one borrower does not apply to another"
    );
    let head = client.head(format!("{}{}", scene.base, path())).bearer_auth(scene.token("kari"));
    assert_eq!(
        head.send().await.unwrap().status(),
        StatusCode::OK,
        "a HEAD does not count as a stream"
    );
    drop(one);
    scene
        .until("another stream is allowed", async || {
            fetch(&scene, &client, "kari").await.status() == StatusCode::OK
        })
        .await;
    drop(other);
    scene.end().await;
}

#[tokio::test]
async fn rate_limit_counts_all_streams_of_a_borrower() {
    let scene =
        scene_with("[delivery]\nrate_per_borrower = \"1MiB\"\n\n[ledger]", File::of(2 << 20)).await;
    let (one, other) = (scene.http1(), scene.http2());
    let began = Instant::now();
    let (one, other) =
        tokio::join!(async { drain(fetch(&scene, &one, "kari").await).await }, async {
            drain(fetch(&scene, &other, "kari").await).await
        },);
    // 4 MiB. The first second's allowance is immediate, and so is what was in flight when it was
    // used up.
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((one, other), ((2 << 20, true), (2 << 20, true)));
    scene.end().await;
}
