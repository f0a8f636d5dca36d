//! Memory of a gate whose readers download large files while half of them stall.

use std::cell::Cell;

use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::{AUDIO, File, Scene, Setting};

const READERS: usize = 64;
const STALLED: usize = 1000;
/// Maximum resident memory of the gate, in KiB.
const MAX_KIB: u64 = 150 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_a_gigabyte_fit_into_150_megabytes() {
    download(24 << 20).await;
}

/// Slow; needs a release build: `cargo test --release --test it -- --ignored --nocapture memory`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws 8 GiB"]
async fn long_downloads_need_no_more_memory() {
    download(256 << 20).await;
}

/// A morning's readers of an app who all stall: each holds a buffer, which must be small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_stalled_readers_fit_into_200_megabytes() {
    let mut scene = Scene::without_gate(Setting::default()).await;
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
        // The last reader's transfer continues for a moment.
        let (last, looks) = (Cell::new(0), Cell::new(0));
        scene
            .until("all transfers have stalled", async || {
                let sent = scene.origin.bytes();
                looks.set(if last.replace(sent) == sent { looks.get() + 1 } else { 0 });
                looks.get() == 20
            })
            .await;
        let each = (gate.memory() - before) as f64 / (STALLED / 2) as f64;
        println!("a stalled reader over {version}: {each:.0} KiB");
    }
    let most = gate.peak_memory();
    println!(
        "{STALLED} of them: {:.1} MB at most, idle {:.1}",
        most as f64 / 1024.0,
        idle as f64 / 1024.0
    );
    assert!(most < 200 * 1024, "{most} KiB");
    drop(stalled);
    scene.until("the origin is released", async || scene.origin.bodies() == 0).await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Half of the readers receive this many bytes each and disconnect; the others never read.
async fn download(bytes: u64) {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let mut gate = scene.spawn_gate().await;
    let idle = gate.memory();

    let mut opening = JoinSet::new();
    for number in 0..READERS {
        // One client and connection per reader: on a shared connection the stalled streams would
        // block the others.
        let client = if number / 2 % 2 == 0 { scene.http1() } else { scene.http2() };
        let token = scene.token(&format!("reader {number}"));
        let request = scene.get(&client, &format!("/files/{AUDIO}/audio.mp3"), &token);
        // The client's timeout covers the whole body.
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
    let most = gate.peak_memory();
    println!(
        "{READERS} readers of 1 GiB, half of them stalled, the others {} MiB each: VmHWM {:.1} MB \
         (idle {:.1} MB)",
        bytes >> 20,
        most as f64 / 1024.0,
        idle as f64 / 1024.0,
    );
    assert!(most < MAX_KIB, "{most} KiB");
    drop(stalled);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}
