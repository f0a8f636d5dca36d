//! Long downloads are spread over the worker threads: two at once do not share a core while another
//! is idle.

use http::StatusCode;

use crate::support::scene::Setting;
use crate::support::{AUDIO, File, Scene};

const GIB: u64 = 1 << 30;
const TRIES: usize = 20;

/// Returns the number of connections of each worker.
async fn connections(scene: &Scene) -> Vec<f64> {
    let text = scene.metrics().await;
    let lines = text.lines().filter_map(|line| line.strip_prefix("loangate_connections{worker="));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn two_long_downloads_at_once_are_served_by_two_workers() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: this machine has one core, and the gate one worker");
        return;
    }
    let scene = Scene::start_with(Setting::default()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(GIB));
    let token = scene.token("kari");
    let mut apart = 0;
    for _ in 0..TRIES {
        let clients = [scene.http1(), scene.http2()];
        let path = format!("/files/{AUDIO}/audio.mp3");
        let [one, two] = clients.each_ref().map(|client| scene.get(client, &path, &token).send());
        let (one, two) = tokio::try_join!(one, two).unwrap();
        assert_eq!([one.status(), two.status()], [StatusCode::OK; 2]);
        let now = connections(&scene).await;
        assert_eq!(now.iter().sum::<f64>(), 2.0);
        apart += usize::from(now.iter().all(|&connections| connections < 2.0));
        drop((one, two, clients));
        scene
            .until("both connections are closed", async || {
                connections(&scene).await.iter().sum::<f64>() == 0.0
            })
            .await;
    }
    // The kernel's hash alone would separate half of them. A worker that is otherwise busy may be
    // skipped.
    assert!(apart >= TRIES - 2, "only {apart} times of {TRIES}");
    scene.end().await;
}
