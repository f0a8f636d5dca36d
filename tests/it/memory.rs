//! How much memory a gate takes whose readers draw large files, half of them without reading.

use std::cell::Cell;

use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::{AUDIO, File, Scene, Setting};

const READERS: usize = 64;
const STALLED: usize = 1000;
/// What the gate may have resident at the most, in KiB.
const MOST: u64 = 150 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_a_gigabyte_fit_into_150_megabytes() {
    draw(24 << 20).await;
}

/// Long, and worth its time with a release build: `cargo test --release --test it -- --ignored
/// --nocapture memory`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws 8 GiB"]
async fn readers_who_go_on_for_long_need_no_more() {
    draw(256 << 20).await;
}

/// As many as an app's morning brings, who all stand still: each holds a part of the file, and must
/// hold little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_who_stand_still_hold_less_than_200_megabytes() {
    let mut scene = Scene::around(Setting::default()).await;
    scene.replace_in_config("name = \"files\"", "name = \"files\"\nconnections = 2000");
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let mut gate = scene.spawn_gate().await;
    let idle = gate.memory();
    let mut stalled = Vec::new();
    let token = scene.token("kari");
    for (version, version_1) in [("HTTP/1.1", true), ("HTTP/2", false)] {
        let before = gate.memory();
        for _ in 0..STALLED / 2 {
            let client = if version_1 { scene.http1() } else { scene.http2() };
            let request = scene.get(&client, &format!("/files/{AUDIO}/audio.mp3"), &token);
            let answer = request.timeout(std::time::Duration::from_secs(600)).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            stalled.push(answer);
        }
        // What the last of them gets goes on for a moment.
        let (last, looks) = (Cell::new(0), Cell::new(0));
        scene
            .until("it has all come to rest", async || {
                let sent = scene.origin.bytes();
                looks.set(if last.replace(sent) == sent { looks.get() + 1 } else { 0 });
                looks.get() == 20
            })
            .await;
        let each = (gate.memory() - before) as f64 / (STALLED / 2) as f64;
        println!("a reader over {version} who stands still: {each:.0} KiB");
    }
    let most = gate.most_memory();
    println!(
        "{STALLED} of them: {:.1} MB at most, idle {:.1}",
        most as f64 / 1024.0,
        idle as f64 / 1024.0
    );
    assert!(most < 200 * 1024, "{most} KiB");
    drop(stalled);
    scene.until("the origin is let go", async || scene.origin.bodies() == 0).await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Half of the readers take so many bytes each and hang up; the others never read.
async fn draw(bytes: u64) {
    let mut scene = Scene::around(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let mut gate = scene.spawn_gate().await;
    let idle = gate.memory();

    let mut opening = JoinSet::new();
    for number in 0..READERS {
        // A client each, and so a connection each: on a shared one the stalled would hold the
        // others up.
        let client = if number / 2 % 2 == 0 { scene.http1() } else { scene.http2() };
        let token = scene.token(&format!("reader {number}"));
        let request = scene.get(&client, &format!("/files/{AUDIO}/audio.mp3"), &token);
        // The client's time is for the whole body.
        let request = request.timeout(std::time::Duration::from_secs(600));
        opening.spawn(async move { (number, request.send().await.unwrap()) });
    }
    let (mut stalled, mut reading) = (Vec::new(), JoinSet::new());
    let answers = opening.join_all().await;
    assert!(answers.iter().all(|(_, answer)| answer.status() == StatusCode::OK));
    for (number, mut answer) in answers {
        if number % 2 == 0 {
            stalled.push(answer);
            continue;
        }
        reading.spawn(async move {
            let mut taken = 0;
            while taken < bytes {
                taken += answer.chunk().await.unwrap().unwrap().len() as u64;
            }
        });
    }
    reading.join_all().await;
    let most = gate.most_memory();
    println!(
        "{READERS} readers of 1 GiB, half of them stalled, the others {} MiB each: VmHWM {:.1} MB (idle {:.1} MB)",
        bytes >> 20,
        most as f64 / 1024.0,
        idle as f64 / 1024.0,
    );
    assert!(most < MOST, "{most} KiB");
    drop(stalled);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}
