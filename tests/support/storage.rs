//! Storages of every kind with the same files: the scripted HTTP origin, an S3 server that checks
//! signatures, and a directory.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{File, Scene, Setting};

/// Access key ID of the S3 server.
pub(crate) const KEY_ID: &str = "AKIDLOANGATE";
pub(crate) const SECRET: &str = "secret-key-of-the-storage-only";
const BUCKET: &str = "books";

/// Kind of a storage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Http,
    S3,
    Directory,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Http, Kind::S3, Kind::Directory];
}

/// A running storage with its files.
#[derive(Debug)]
pub(crate) struct Storage {
    kind: Kind,
    /// Directory of the files, also of the S3 bucket.
    directory: PathBuf,
    /// Address of the S3 server.
    pub(crate) address: String,
    stop: CancellationToken,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Storage {
    /// Starts a scene with an origin of this kind and without a gate.
    pub(crate) async fn without_gate(kind: Kind, setting: Setting) -> (Scene, Storage) {
        let scene = Scene::without_gate(setting).await;
        let storage = Storage::start(kind, &scene).await;
        if kind != Kind::Http {
            storage.configure(&scene, &storage.lines(&storage.address, SECRET));
        }
        (scene, storage)
    }

    /// Like [`Storage::without_gate`], with a running gate.
    pub(crate) async fn scene(kind: Kind) -> (Scene, Storage) {
        let (mut scene, storage) = Storage::without_gate(kind, Setting::default()).await;
        scene.start_gate().await;
        (scene, storage)
    }

    /// Makes this storage the origin of the scene.
    pub(crate) fn configure(&self, scene: &Scene, lines: &str) {
        scene.replace_in_config(&format!("url = \"{}/\"", scene.origin.url), lines);
    }

    /// Starts a storage of this kind, which the scene does not use yet.
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

    /// Returns the lines of `[[origins]]` for this storage at this address.
    pub(crate) fn lines(&self, address: &str, secret: &str) -> String {
        match self.kind {
            Kind::Http => panic!("the scene has these lines"),
            Kind::Directory => format!("url = \"file://{}\"", self.directory.display()),
            Kind::S3 => format!(
                "url = \"s3://{BUCKET}\"\ns3 = {{ endpoint = \"http://{address}\", region = \
                 \"eu-north-1\", \
                 access_key_id = \"{KEY_ID}\", secret_access_key = \"{secret}\" }}"
            ),
        }
    }

    /// Stores a file. The storage chooses its header fields.
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

    /// Returns the path of a file on the disk.
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

/// Starts a proxy that aborts each connection after a random number of bytes: at most this limit,
/// and at least half of it, so that each connection brings a download on.
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
            tokio::spawn(forward_truncated(socket, to.clone(), fastrand::u64(within / 2..within)));
        }
    });
    address
}

async fn forward_truncated(mut client: tokio::net::TcpStream, to: String, after: u64) {
    use tokio::io::AsyncReadExt;
    let Ok(mut server) = tokio::net::TcpStream::connect(to).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut from_server = from_server.take(after);
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}
