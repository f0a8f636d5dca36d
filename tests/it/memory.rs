//! How much memory a gate takes whose readers draw large files, half of them without reading.

use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::{AUDIO, File, Scene, Setting};

const READERS: usize = 64;
/// What the gate may have resident at the most, in KiB.
const MOST: u64 = 150 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_a_gigabyte_fit_into_150_megabytes() {
    draw(24 << 20).await;
}

/// Long, and worth its time with a release build: `cargo test --release --test it -- --ignored --nocapture memory`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws 8 GiB"]
async fn readers_who_go_on_for_long_need_no_more() {
    draw(256 << 20).await;
}

/// Half of the readers take so many bytes each and hang up; the others never read.
async fn draw(bytes: u64) {
    let mut scene = Scene::around(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let mut gate = scene.spawn_gate().await;
    let idle = gate.memory();

    let mut opening = JoinSet::new();
    for number in 0..READERS {
        // A client each, and so a connection each: on a shared one the stalled would hold the others up.
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
