//! Readers who take nothing, too little or too much: cut, sent away or held to their share, and the
//! origin let go.

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
    let scene = Scene::set(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), file);
    scene
}

async fn ask(scene: &Scene, client: &reqwest::Client, reader: &str) -> reqwest::Response {
    scene.get(client, &path(), &scene.token(reader)).send().await.unwrap()
}

async fn streams(scene: &Scene, end: &str) -> f64 {
    metric(&scene.metrics().await, "loangate_streams_closed_total", &format!("end=\"{end}\""))
}

/// Reads to the end: how much came, and whether it ended well.
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
async fn a_reader_that_takes_nothing_is_cut_and_the_origin_is_let_go() {
    let scene = scene_with("[delivery]\nidle = \"300ms\"\n\n[ledger]", File::of(GIB)).await;
    for (number, client) in [scene.http1(), scene.http2()].into_iter().enumerate() {
        let stalled = ask(&scene, &client, "kari").await;
        assert_eq!(stalled.status(), StatusCode::OK);
        scene
            .until("the reader is cut", async || {
                streams(&scene, "too_slow").await == (number + 1) as f64
            })
            .await;
        scene.until("the origin is let go", async || scene.origin.bodies() == 0).await;
        let (taken, is_whole) = drain(stalled).await;
        assert!(!is_whole && taken < GIB, "what broke off must not look whole");
    }
    // Whoever takes is not cut, however long that lasts in all.
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(50_000_000));
    assert_eq!(drain(ask(&scene, &scene.http2(), "kari").await).await, (50_000_000, true));
    scene.end().await;
}

#[tokio::test]
async fn the_end_of_a_loan_cuts_a_reader_that_takes_nothing_and_lets_the_origin_go() {
    let scene = scene_with("[ledger]", File::of(GIB)).await;
    for (reader, client) in [("kari", scene.http1()), ("ola", scene.http2())] {
        let stalled = ask(&scene, &client, reader).await;
        assert_eq!(stalled.status(), StatusCode::OK);
        let (status, _) =
            scene.ask("DELETE", &format!("/loans/{AUDIO}"), &scene.token(reader), "").await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        scene.until("the origin is let go", async || scene.origin.bodies() == 0).await;
        assert!(!drain(stalled).await.1);
    }
    assert_eq!(streams(&scene, "cut").await, 2.0);
    scene.end().await;
}

#[tokio::test]
async fn a_reader_below_the_least_rate_is_cut_and_one_whom_the_origin_lets_wait_is_not() {
    let delivery = "[delivery]\nmin_rate = \"100MiB\"\nmin_rate_grace = \"400ms\"\n\n[ledger]";
    let mut scene = scene_with(delivery, File::of(GIB)).await;
    for client in [scene.http1(), scene.http2()] {
        let mut answer = ask(&scene, &client, "kari").await;
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
        scene.until("the origin is let go", async || scene.origin.bodies() == 0).await;
    }
    assert_eq!(streams(&scene, "too_slow").await, 2.0);
    scene.stop_gate().await;

    // The origin stands still for longer than the grace, and is then gone on with.
    scene.replace_in_config("name = \"files\"", "name = \"files\"\nidle = \"1500ms\"\nresumes = 1");
    scene.replace_in_config("min_rate = \"100MiB\"", "min_rate = \"1KiB\"");
    scene.start_gate().await;
    let file = File::of(3_000_000);
    scene
        .origin
        .put(&format!("{AUDIO}/audio.mp3"), File { stall_after: Some(1_000_000), ..file.clone() });
    let answer = ask(&scene, &scene.http2(), "kari").await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), file);
    assert_eq!(drain(answer).await, (3_000_000, true));
    scene.end().await;
}

#[tokio::test]
async fn what_a_fast_reader_holds_can_be_read_and_is_given_back() {
    let scene = scene_with("[server]\nbuffers = \"32MiB\"\n\n[ledger]", File::of(GIB)).await;
    let held = async || metric(&scene.metrics().await, "loangate_buffers_held_bytes", "");
    for client in [scene.http1(), scene.http2()] {
        let mut answer = ask(&scene, &client, "kari").await;
        let mut taken = 0;
        while held().await <= 64.0 * 1024.0 {
            for _ in 0..100 {
                taken += answer.chunk().await.unwrap().unwrap().len() as u64;
            }
            assert!(taken < GIB / 4, "it holds no more than at first");
        }
        assert_eq!(
            metric(&scene.metrics().await, "loangate_buffers_bytes", ""),
            32.0 * 1024.0 * 1024.0
        );
        drop((answer, client));
        scene.until("all is given back", async || held().await == 0.0).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_borrower_has_so_many_streams_at_once_over_all_connections() {
    let scene = scene_with("[delivery]\nstreams_per_borrower = 2\n\n[ledger]", File::of(GIB)).await;
    let one = ask(&scene, &scene.http1(), "kari").await;
    let client = scene.http2();
    let other = ask(&scene, &client, "kari").await;
    assert_eq!((one.status(), other.status()), (StatusCode::OK, StatusCode::OK));
    let third = ask(&scene, &client, "kari").await;
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(third.headers().contains_key("retry-after"));
    let problem: serde_json::Value = third.json().await.unwrap();
    assert_eq!(
        (&problem["type"], &problem["reason"]),
        (&"too-many-requests".into(), &"streams".into())
    );
    assert_eq!(scene.origin.bodies(), 2, "the origin was not asked");
    assert_eq!(ask(&scene, &client, "ola").await.status(), StatusCode::OK, "it is hers alone");
    let head = client.head(format!("{}{}", scene.base, path())).bearer_auth(scene.token("kari"));
    assert_eq!(head.send().await.unwrap().status(), StatusCode::OK, "a HEAD is no stream");
    drop(one);
    scene
        .until("there is room again", async || {
            ask(&scene, &client, "kari").await.status() == StatusCode::OK
        })
        .await;
    drop(other);
    scene.end().await;
}

#[tokio::test]
async fn a_borrower_takes_so_much_a_second_over_all_streams_and_others_are_free() {
    let scene =
        scene_with("[delivery]\nrate_per_borrower = \"1MiB\"\n\n[ledger]", File::of(2 << 20)).await;
    let (one, other) = (scene.http1(), scene.http2());
    let began = Instant::now();
    let (one, other) =
        tokio::join!(async { drain(ask(&scene, &one, "kari").await).await }, async {
            drain(ask(&scene, &other, "kari").await).await
        },);
    // 4 MiB, of which a second's worth comes at once, and what was on its way when the share was
    // used up.
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((one, other), ((2 << 20, true), (2 << 20, true)));
    scene.end().await;
}
