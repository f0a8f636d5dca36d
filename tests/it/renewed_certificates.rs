//! Certificates that are renewed while readers are connected, without a signal.

use std::fs;
use std::path::Path;

use http::StatusCode;
use loangate::clock::Clock;

use crate::support::{BOOK, File, Scene, Setting, initialised, metric, raw_client};

const FILES: [&str; 2] = ["server.pem", "server.key"];

async fn ready(scene: &Scene) -> String {
    let response = scene.admin("/readyz").await;
    assert_eq!(response.status(), StatusCode::OK, "the readers are served");
    response.text().await.unwrap()
}

async fn counted(scene: &Scene, outcome: &str) -> f64 {
    let label = format!("outcome=\"{outcome}\"");
    metric(&scene.metrics().await, "loangate_certificate_renewals_total", &label)
}

/// Returns whether a new connection is made by this CA's certificate.
async fn presents(scene: &Scene, directory: &Path) -> bool {
    raw_client::trusts(scene.address(), &directory.join("certs/ca.pem")).await
}

/// Replaces the certificate and its key by those of another directory.
fn renew(scene: &Scene, from: &Path) {
    for file in FILES {
        fs::copy(from.join("certs").join(file), scene.dir.path().join("certs").join(file)).unwrap();
    }
}

#[tokio::test]
async fn renewed_certificate_is_used_by_itself_and_a_bad_one_is_not() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.start_gate().await;
    let own = scene.dir.path().to_owned();
    let (good, other) = (tempfile::tempdir().unwrap(), initialised());
    fs::create_dir(good.path().join("certs")).unwrap();
    for file in FILES.iter().chain(&["ca.pem"]) {
        fs::copy(own.join("certs").join(file), good.path().join("certs").join(file)).unwrap();
    }
    let (client, book) = (scene.http1(), format!("/files/{BOOK}/book.epub"));
    let read = async || scene.get(&client, &book, &scene.token("kari")).send().await.unwrap();
    assert_eq!(read().await.status(), StatusCode::OK);

    renew(&scene, other.path());
    scene.until("the other certificate", async || presents(&scene, other.path()).await).await;
    assert!(!presents(&scene, &own).await);
    // The connection of before goes on: the client does not trust the other CA.
    assert_eq!(read().await.status(), StatusCode::OK);
    assert_eq!(counted(&scene, "applied").await, 1.0);

    // The key of another certificate, and no certificate at all.
    let other_key = fs::read(good.path().join("certs/server.key")).unwrap();
    let bad = [("server.key", other_key), ("server.pem", b"x".into())];
    for (number, (file, text)) in bad.into_iter().enumerate() {
        fs::write(own.join("certs").join(file), text).unwrap();
        let wanted = (number + 1) as f64;
        scene.until("it is refused", async || counted(&scene, "refused").await == wanted).await;
        let detail = ready(&scene).await;
        assert!(detail.contains("renewed certificate cannot be used"), "{detail}");
        assert!(presents(&scene, other.path()).await, "the old one stays");
    }

    renew(&scene, good.path());
    scene.until("the first certificate", async || presents(&scene, good.path()).await).await;
    assert!(!ready(&scene).await.contains("certificate"));
    let expiry =
        metric(&scene.metrics().await, "loangate_certificate_expiry_timestamp_seconds", "");
    assert!(expiry > Clock::system().now().as_second() as f64);
    scene.end().await;
}
