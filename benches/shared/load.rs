//! Load on a proxy: requests at full speed or at a fixed rate, handshakes, and idle connections.
//! Every response is checked.
#![allow(clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Timeout for a response, so that a hanging bench ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// Timeout until a reader has stalled.
const STALLS: Duration = Duration::from_secs(10);
/// Receive buffer of a stalled reader, in bytes.
const NARROW: u32 = 16 << 10;
/// Flow-control windows of the HTTP/2 client, in bytes.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// A file to request and the server that has it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) token: String,
    pub(crate) size: u64,
}

/// A number of connections, and of concurrent requests on each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Crowd {
    pub(crate) version: Version,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
}

/// A client that trusts a scene's certificate. It uses TLS 1.3 with one cipher, so that every peer
/// does the same work.
#[derive(Clone)]
pub(crate) struct Client {
    http1: TlsConnector,
    http2: TlsConnector,
    /// Never resumes a session: each handshake is full.
    fresh: TlsConnector,
}

impl Client {
    pub(crate) fn new(ca: &Path) -> Client {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites =
            vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let provider = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let speaking = |protocol: &[u8]| {
            let mut config = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            config
        };
        let mut fresh = speaking(b"http/1.1");
        fresh.resumption = rustls::client::Resumption::disabled();
        let connector = |config| TlsConnector::from(Arc::new(config));
        Client {
            http1: connector(speaking(b"http/1.1")),
            http2: connector(speaking(b"h2")),
            fresh: connector(fresh),
        }
    }

    /// Returns the name of the cipher that a server negotiates, from the TLS registry.
    pub(crate) async fn cipher(&self, port: u16, version: Version) -> String {
        let stream = connect(self.connector(version), port).await;
        format!("{:?}", stream.get_ref().1.negotiated_cipher_suite().unwrap().suite())
    }

    fn connector(&self, version: Version) -> &TlsConnector {
        if version == Version::HTTP_2 { &self.http2 } else { &self.http1 }
    }

    pub(crate) async fn open(&self, target: &Target, version: Version) -> Opened {
        let stream = TokioIo::new(connect(self.connector(version), target.port).await);
        if version == Version::HTTP_2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(stream)
                .await
                .unwrap();
            tokio::spawn(connection);
            Opened::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            Opened::Http1(sender)
        }
    }

    async fn open_all(&self, target: &Target, crowd: Crowd) -> Vec<Opened> {
        let mut opened = Vec::new();
        for _ in 0..crowd.connections {
            opened.push(self.open(target, crowd.version).await);
        }
        opened
    }

    /// Sends this many requests in total. Each connection sends the next one after a response.
    pub(crate) async fn closed(&self, target: &Target, crowd: Crowd, requests: usize) {
        let opened = self.open_all(target, crowd).await;
        let each = requests.div_ceil(crowd.connections * crowd.streams);
        join_all(
            opened
                .into_iter()
                .map(|opened| tokio::spawn(draw(opened, target.clone(), crowd, each))),
        )
        .await
        .into_iter()
        .for_each(|done| done.unwrap());
    }

    /// Sends requests at a rate for this time, spread over the connections. Returns the time of
    /// each from its scheduled moment, however late it was sent.
    pub(crate) async fn at_rate(
        &self,
        target: &Target,
        crowd: Crowd,
        rate: u32,
        during: Duration,
    ) -> Vec<Duration> {
        let (mut lanes, mut all) = (Vec::new(), Vec::new());
        for mut opened in self.open_all(target, crowd).await {
            let (lane, mut due) = mpsc::unbounded_channel::<Instant>();
            let target = target.clone();
            lanes.push(lane);
            all.push(tokio::spawn(async move {
                let mut took = Vec::new();
                while let Some(due) = due.recv().await {
                    opened.get(&target).await;
                    took.push(due.elapsed());
                }
                took
            }));
        }
        // A thread keeps the schedule: the runtime's clock has a resolution of milliseconds.
        #[allow(clippy::disallowed_methods)]
        std::thread::spawn(move || {
            let (began, apart) = (Instant::now(), Duration::from_secs(1) / rate);
            for number in 0..(during.as_secs_f64() * f64::from(rate)) as u32 {
                let due = began + apart * number;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let _ = lanes[number as usize % lanes.len()].send(due);
            }
        });
        join_all(all).await.into_iter().flat_map(|took| took.unwrap()).collect()
    }

    /// Makes this many full handshakes, some at once, and sends nothing after them.
    pub(crate) async fn handshakes(&self, port: u16, at_once: usize, each: usize) {
        let all = (0..at_once).map(|_| {
            let fresh = self.fresh.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    drop(connect(&fresh, port).await);
                }
            })
        });
        join_all(all).await.into_iter().for_each(|done| done.unwrap());
    }

    /// Makes resumed handshakes after a first full one. Returns how many were resumed.
    pub(crate) async fn resumptions(&self, target: &Target, at_once: usize, each: usize) -> usize {
        let all = (0..at_once).map(|_| {
            let (client, target) = (self.clone(), target.clone());
            tokio::spawn(async move {
                let mut resumed = 0;
                for _ in 0..each {
                    resumed += usize::from(client.resumed(&target).await);
                }
                resumed
            })
        });
        join_all(all).await.into_iter().map(|resumed| resumed.unwrap()).sum()
    }

    async fn resumed(&self, target: &Target) -> bool {
        let stream = connect(&self.http1, target.port).await;
        let kind = stream.get_ref().1.handshake_kind();
        // The ticket arrives after the handshake, so one response is read.
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Opened::Http1(sender).get(target).await;
        kind == Some(rustls::HandshakeKind::Resumed)
    }

    /// Sends this many requests over these connections and by these readers in turn.
    pub(crate) async fn in_turn(
        &self,
        opened: &mut [Opened],
        target: &Target,
        tokens: &[String],
        requests: usize,
    ) {
        let lanes = opened.len();
        let all = opened.iter_mut().enumerate().map(async |(lane, opened)| {
            for number in (lane..requests).step_by(lanes) {
                let token = tokens[number % tokens.len()].clone();
                opened.get(&Target { token, ..target.clone() }).await;
            }
        });
        join_all(all).await;
    }

    /// Returns a reader that stalls after this many bytes, or `None` if it did not get them.
    pub(crate) async fn stalled(
        &self,
        target: &Target,
        version: Version,
        taken: usize,
    ) -> Option<Stalled> {
        let stalls = async {
            if version == Version::HTTP_2 {
                self.stalled_over_http2(target, taken).await
            } else {
                self.stalled_over_http1(target, taken).await
            }
        };
        tokio::time::timeout(STALLS, stalls).await.ok()
    }

    async fn stalled_over_http1(&self, target: &Target, taken: usize) -> Stalled {
        let mut stream = handshake(&self.http1, narrow(target.port).await).await;
        let Target { path, token, .. } = target;
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begin = vec![0; taken];
        stream.read_exact(&mut begin).await.unwrap();
        assert!(begin.starts_with(b"HTTP/1.1 200 "), "{}", begin[..100].escape_ascii());
        Stalled::Http1(Box::new(stream))
    }

    async fn stalled_over_http2(&self, target: &Target, taken: usize) -> Stalled {
        let stream = TokioIo::new(handshake(&self.http2, narrow(target.port).await).await);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake::<_, Empty<Bytes>>(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("https://localhost{}", target.path));
        let request = request.header("authorization", &target.token).body(Empty::new()).unwrap();
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", target.path);
        let mut length = 0;
        while length < taken {
            length +=
                answer.frame().await.unwrap().unwrap().into_data().map_or(0, |data| data.len());
        }
        Stalled::Http2(sender, answer)
    }

    /// Returns connections that were used once and are idle while they are kept.
    pub(crate) async fn idle(
        &self,
        target: &Target,
        version: Version,
        count: usize,
    ) -> Vec<Opened> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            let mut opened = self.open(target, version).await;
            opened.get(target).await;
            all.push(opened);
        }
        all
    }
}

async fn connect(connector: &TlsConnector, port: u16) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    handshake(connector, stream).await
}

/// Opens a connection with a small receive buffer.
async fn narrow(port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(NARROW).unwrap();
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap()
}

async fn handshake(connector: &TlsConnector, stream: TcpStream) -> TlsStream<TcpStream> {
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio::time::timeout(PATIENCE, connector.connect(name, stream))
        .await
        .expect("no handshake")
        .unwrap()
}

async fn draw(opened: Opened, target: Target, crowd: Crowd, each: usize) {
    match opened {
        Opened::Http2(sender) => {
            let streams = (0..crowd.streams).map(|_| {
                let (mut opened, target) = (Opened::Http2(sender.clone()), target.clone());
                tokio::spawn(async move {
                    for _ in 0..each {
                        opened.get(&target).await;
                    }
                })
            });
            join_all(streams).await.into_iter().for_each(|done| done.unwrap());
        }
        mut opened @ Opened::Http1(_) => {
            for _ in 0..each {
                opened.get(&target).await;
            }
        }
    }
}

/// A stalled reader, which stalls while this value is kept.
pub(crate) enum Stalled {
    Http1(Box<TlsStream<TcpStream>>),
    Http2(http2::SendRequest<Empty<Bytes>>, Response<Incoming>),
}

/// An open client connection.
pub(crate) enum Opened {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Opened {
    /// Sends a request and reads the response to its end.
    pub(crate) async fn get(&mut self, target: &Target) {
        tokio::time::timeout(PATIENCE, self.fetch(target)).await.expect("no answer in a minute");
    }

    async fn fetch(&mut self, target: &Target) {
        let request = match self {
            Opened::Http1(_) => Request::get(&target.path).header("host", "localhost"),
            Opened::Http2(_) => Request::get(format!("https://localhost{}", target.path)),
        };
        let request = request.header("authorization", &target.token).body(Empty::new()).unwrap();
        let answer = match self {
            Opened::Http1(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await
            }
            Opened::Http2(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await
            }
        };
        let mut answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", target.path);
        let mut length = 0;
        while let Some(frame) = answer.frame().await {
            length += frame.unwrap().into_data().map_or(0, |data| data.len() as u64);
        }
        assert_eq!(length, target.size, "the response to {} is incomplete", target.path);
    }
}
