//! Storages of every kind with the same files: the scripted HTTP origin, a real S3 server that
//! checks signatures, a directory.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{File, Scene, Setting};

/// The S3 server's one key.
pub(crate) const KEY_ID: &str = "AKIDLOANGATE";
pub(crate) const SECRET: &str = "of-the-storage-and-of-nobody-else";
const BUCKET: &str = "books";

/// What kind of storage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Http,
    S3,
    Directory,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Http, Kind::S3, Kind::Directory];
}

/// A storage that serves.
#[derive(Debug)]
pub(crate) struct Storage {
    kind: Kind,
    /// The files of S3's bucket, or of the directory.
    directory: PathBuf,
    /// Of the S3 server.
    pub(crate) address: String,
    stop: CancellationToken,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Storage {
    /// A scene whose origin is of this kind, and whose gate is not started yet.
    pub(crate) async fn around(kind: Kind, setting: Setting) -> (Scene, Storage) {
        let scene = Scene::around(setting).await;
        let storage = Storage::start(kind, &scene).await;
        if kind != Kind::Http {
            storage.lead_to(&scene, &storage.lines(&storage.address, SECRET));
        }
        (scene, storage)
    }

    /// As [`Storage::around`], with the gate.
    pub(crate) async fn scene(kind: Kind) -> (Scene, Storage) {
        let (mut scene, storage) = Storage::around(kind, Setting::default()).await;
        scene.start_gate().await;
        (scene, storage)
    }

    /// Has the scene's origin be this.
    pub(crate) fn lead_to(&self, scene: &Scene, lines: &str) {
        scene.replace_in_config(&format!("url = \"{}/\"", scene.origin.url), lines);
    }

    /// A storage of this kind for a scene whose origin it is not yet.
    pub(crate) async fn start(kind: Kind, scene: &Scene) -> Storage {
        let directory = scene.dir.path().join("storage");
        std::fs::create_dir_all(directory.join(BUCKET)).unwrap();
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        if kind == Kind::S3 {
            let files = s3s_fs::FileSystem::new(&directory).unwrap();
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
            tokio::spawn(serve(listener, builder.build(), stop.clone()));
        }
        Storage { kind, directory: directory.join(BUCKET), address, stop }
    }

    /// The lines of `[[origins]]` that lead here, by this address.
    pub(crate) fn lines(&self, address: &str, secret: &str) -> String {
        match self.kind {
            Kind::Http => panic!("the scene has these lines"),
            Kind::Directory => format!("url = \"file://{}\"", self.directory.display()),
            Kind::S3 => format!(
                "url = \"s3://{BUCKET}\"\ns3 = {{ endpoint = \"http://{address}\", region = \"eu-north-1\", \
                 access_key_id = \"{KEY_ID}\", secret_access_key = \"{secret}\" }}"
            ),
        }
    }

    /// Puts this file there; what it is sent as is up to the storage.
    pub(crate) fn put(&self, scene: &Scene, path: &str, file: &File) {
        if self.kind == Kind::Http {
            let sent: Vec<String> =
                path.split('/').map(|part| loangate::path::encoded(part).collect()).collect();
            return scene.origin.put(&sent.join("/"), file.clone());
        }
        let place = self.directory.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        let part = place.with_extension("part");
        std::fs::write(&part, file.part(0..file.size)).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_600_000);
        std::fs::File::options().append(true).open(&part).unwrap().set_modified(long_ago).unwrap();
        std::fs::rename(part, place).unwrap();
    }

    /// Where a file is on the disk.
    pub(crate) fn place(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }
}

async fn serve(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                () = stop.cancelled() => {}
                _ = http.serve_connection(TokioIo::new(socket), service) => {}
            }
        });
    }
}

/// An address that leads to another, and breaks each connection after a random count of bytes below
/// this on their way back.
pub(crate) async fn breaking(to: String, within: u64, stop: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((socket, _)) = accepted else { continue };
            tokio::spawn(break_off(socket, to.clone(), fastrand::u64(1..within)));
        }
    });
    address
}

async fn break_off(mut here: tokio::net::TcpStream, to: String, after: u64) {
    use tokio::io::AsyncReadExt;
    let Ok(mut there) = tokio::net::TcpStream::connect(to).await else { return };
    let (mut from_here, mut to_here) = here.split();
    let (from_there, mut to_there) = there.split();
    let mut from_there = from_there.take(after);
    tokio::select! {
        _ = tokio::io::copy(&mut from_here, &mut to_there) => {}
        _ = tokio::io::copy(&mut from_there, &mut to_here) => {}
    }
}
