//! An origin that is a directory serves its own regular files and nothing else of this machine.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;

use crate::support::storage::{Kind, Storage};
use crate::support::{File, Scene, Setting};

async fn scene(lines: &str) -> (Scene, Storage) {
    let (mut scene, storage) = Storage::without_gate(Kind::Directory, Setting::default()).await;
    scene.replace_in_config("name = \"files\"", &format!("name = \"files\"\n{lines}"));
    scene.start_gate().await;
    storage.put(&scene, "covers/a.png", &File::of(100));
    storage.put(&scene, "covers/below/b.png", &File::of(100));
    (scene, storage)
}

async fn status(scene: &Scene, name: &str) -> StatusCode {
    let request = scene.http2().get(format!("{}/covers/{name}", scene.base));
    request.timeout(Duration::from_secs(20)).send().await.unwrap().status()
}

fn make_fifo(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let (scene, storage) = scene("").await;
    make_fifo(&storage.place("covers/fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(storage.place("covers/socket")).unwrap();
    symlink("fifo", storage.place("covers/link-to-fifo")).unwrap();
    symlink("below", storage.place("covers/link-to-directory")).unwrap();
    for name in ["fifo", "socket", "link-to-fifo", "below", "link-to-directory"] {
        assert_eq!(status(&scene, name).await, StatusCode::NOT_FOUND, "{name}");
    }
    assert_eq!(status(&scene, "a.png").await, StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn links_out_of_the_directory_are_followed_only_on_request() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret.png"), b"secret").unwrap();
    make_fifo(&outside.path().join("fifo"));
    for (lines, out) in [("", StatusCode::NOT_FOUND), ("follow_symlinks = true", StatusCode::OK)] {
        let (scene, storage) = scene(lines).await;
        let link = |target: &Path, name: &str| {
            symlink(target, storage.place(&format!("covers/{name}"))).unwrap()
        };
        link(&outside.path().join("secret.png"), "absolute.png");
        let up = "../".repeat(storage.place("covers").components().count());
        let relative = format!("{up}{}", outside.path().join("secret.png").display());
        link(Path::new(&relative), "relative.png");
        link(outside.path(), "directory");
        link(Path::new("absolute.png"), "twice.png");
        for name in ["absolute.png", "relative.png", "directory/secret.png", "twice.png"] {
            assert_eq!(status(&scene, name).await, out, "{name}, {lines}");
        }
        link(Path::new("below/b.png"), "inside.png");
        link(Path::new("../covers/a.png"), "up-and-inside.png");
        for name in ["inside.png", "up-and-inside.png"] {
            assert_eq!(status(&scene, name).await, StatusCode::OK, "{name}, {lines}");
        }
        // With either value of `follow_symlinks`, these are not regular files.
        link(Path::new("/dev/zero"), "zero.png");
        link(&outside.path().join("fifo"), "fifo.png");
        link(Path::new("circle.png"), "circle.png");
        link(Path::new("/proc/self/fd/0"), "magic.png");
        link(Path::new("/nowhere"), "nowhere.png");
        for name in ["zero.png", "fifo.png", "circle.png", "magic.png", "nowhere.png", "directory"]
        {
            assert_eq!(status(&scene, name).await, StatusCode::NOT_FOUND, "{name}, {lines}");
        }
        scene.end().await;
    }
}
