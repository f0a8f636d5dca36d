//! A full disk: readers with loans are served, and new readers soon after space is free.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::{BOOK, File, Scene, Setting, SmallDisk, metric};

/// Time within which a new reader is served after space is free, without a restart.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

async fn borrow(scene: &Scene, borrower: &str) -> (u16, Value) {
    let path = format!("/files/{BOOK}/book.epub");
    let answer = scene.get(&scene.http1(), &path, &scene.token(borrower)).send().await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn missing(scene: &Scene) -> Vec<String> {
    let answer = scene.admin("/readyz").await;
    assert_eq!(answer.status(), 200, "readers with loans are served");
    serde_json::from_value(answer.json::<Value>().await.unwrap()["missing"].take()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_readers_are_served_soon_after_a_full_disk() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let Some(disk) = SmallDisk::mount(&scene.dir.path().join("data"), 4096) else { return };
    scene.start_gate().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    assert_eq!(borrow(&scene, "kari").await.0, 200);
    for round in 0..2 {
        disk.fill();
        let mut refused = 0;
        for number in 0..20 {
            let (status, problem) = borrow(&scene, &format!("refused {round} {number}")).await;
            if status != 200 {
                assert_eq!(
                    (status, &problem["type"]),
                    (503, &"ledger-unavailable".into()),
                    "{problem}"
                );
                refused += 1;
            }
        }
        assert!(refused >= 19, "the disk was full, and only {refused} were refused");
        assert_eq!(borrow(&scene, "kari").await.0, 200, "kari has a loan");
        // The gate caches the result of a write test for a second.
        let (since, mut reasons) = (Instant::now(), missing(&scene).await);
        while reasons.is_empty() && since.elapsed() < SERVED_WITHIN {
            reasons = missing(&scene).await;
        }
        assert!(
            reasons.len() == 1
                && reasons[0].contains("cannot be written")
                && reasons[0].contains("full"),
            "{reasons:?}"
        );
        assert_eq!(metric(&scene.metrics().await, "loangate_ledger_writable", ""), 0.0);

        disk.free();
        let freed = Instant::now();
        let mut status = 0;
        while status != 200 {
            assert!(
                freed.elapsed() < SERVED_WITHIN,
                "not served after {:?}: {status}",
                freed.elapsed()
            );
            status = borrow(&scene, &format!("served {round}")).await.0;
        }
        while !missing(&scene).await.is_empty() {
            assert!(freed.elapsed() < SERVED_WITHIN, "{:?}", missing(&scene).await);
        }
        assert_eq!(metric(&scene.metrics().await, "loangate_ledger_writable", ""), 1.0);
    }
    // A gate also starts on a full disk.
    disk.fill();
    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(borrow(&scene, "kari").await.0, 200, "from the ledger");
    disk.free();
    scene.until("a new reader is served", async || borrow(&scene, "late").await.0 == 200).await;
    scene.end().await;
    drop(disk);
}
