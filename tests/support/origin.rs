//! An origin that can be scripted: slow, short, without ranges, without validators; and that counts
//! what it is asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use loangate::clock::Clock;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A length that no power of two divides, so that a byte in the wrong place shows.
const PERIOD: usize = 1_000_003;

/// How many requests are remembered.
const MOST_ASKED: usize = 100_000;

/// A file, and how it is served.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) size: u64,
    /// Its content, where it is not the endless pattern.
    pub(crate) content: Option<Bytes>,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) ranges: bool,
    /// Whether the answer tells its length; without, it is chunked.
    pub(crate) told_length: bool,
    /// The status, where it is not what was asked.
    pub(crate) status: Option<StatusCode>,
    /// The Content-Range of a 206, where it is not what was asked.
    pub(crate) content_range: Option<String>,
    /// After so many bytes of a body the connection is cut.
    pub(crate) cut_after: Option<u64>,
    /// After so many bytes of a body nothing more comes.
    pub(crate) stall_after: Option<u64>,
    /// No head of an answer ever comes.
    pub(crate) silent: bool,
    /// Each answer breaks off after a random count of bytes below this.
    pub(crate) breaks_within: Option<u64>,
    /// One answer in so many is a 500.
    pub(crate) fails_one_in: Option<u32>,
    /// Of those that break off, one in so many stands still instead.
    pub(crate) stalls_one_in: Option<u32>,
    /// One question for a range in so many is answered with the whole file.
    pub(crate) whole_one_in: Option<u32>,
}

impl File {
    pub(crate) fn of(size: u64) -> File {
        File {
            size,
            content: None,
            fields: vec![
                ("content-type", "audio/mpeg".to_owned()),
                ("etag", "\"v1\"".to_owned()),
                ("last-modified", "Mon, 05 Jan 2026 08:00:00 GMT".to_owned()),
            ],
            ranges: true,
            told_length: true,
            status: None,
            content_range: None,
            cut_after: None,
            stall_after: None,
            silent: false,
            breaks_within: None,
            fails_one_in: None,
            stalls_one_in: None,
            whole_one_in: None,
        }
    }

    pub(crate) fn with(content: impl Into<Bytes>) -> File {
        let content = content.into();
        File { content: Some(content.clone()), ..File::of(content.len() as u64) }
    }

    pub(crate) fn field(mut self, name: &'static str, value: &str) -> File {
        self.fields.retain(|(other, _)| *other != name);
        if !value.is_empty() {
            self.fields.push((name, value.to_owned()));
        }
        self
    }

    /// What this part of it is.
    pub(crate) fn part(&self, range: Range<u64>) -> Vec<u8> {
        let mut part = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let slice = self.slice(at, range.end);
            at += slice.len() as u64;
            part.extend_from_slice(&slice);
        }
        part
    }

    fn slice(&self, from: u64, to: u64) -> Bytes {
        let length = usize::try_from(to - from).unwrap_or(usize::MAX);
        match &self.content {
            Some(content) => {
                let from = from as usize;
                content.slice(from..from + length.min(256 * 1024))
            }
            None => {
                let block = pattern();
                let from = (from % PERIOD as u64) as usize;
                block.slice(from..from + length.min(PERIOD - from).min(256 * 1024))
            }
        }
    }
}

/// A block of bytes without regularity.
fn pattern() -> Bytes {
    static BLOCK: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let byte = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        (0..PERIOD).map(byte).collect()
    });
    BLOCK.clone()
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) at: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    files: Mutex<BTreeMap<String, File>>,
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<Vec<(String, Range<u64>)>>,
    /// Bodies that are on their way.
    bodies: AtomicUsize,
    /// Bytes of bodies so far.
    bytes: AtomicU64,
    /// Whether connections are reset when they are closed.
    resets: AtomicBool,
}

impl State {
    /// Notes a request; a bench makes more of them than anybody looks at.
    fn remember(&self, asked: Asked) {
        let mut all = self.asked.lock().unwrap();
        if all.len() < MOST_ASKED {
            all.push(asked);
        }
    }
}

/// An origin that serves.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) url: String,
    state: Arc<State>,
    stop: CancellationToken,
}

impl Origin {
    pub(crate) async fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let origin = Origin { url, state: Arc::default(), stop: CancellationToken::new() };
        tokio::spawn(accept(listener, origin.state.clone(), origin.stop.clone()));
        origin
    }

    /// Serves this file at this path, which has no leading slash.
    pub(crate) fn put(&self, path: &str, file: File) {
        self.state.files.lock().unwrap().insert(format!("/{path}"), file);
    }

    /// How many bodies are on their way now: each holds a connection.
    pub(crate) fn bodies(&self) -> usize {
        self.state.bodies.load(Ordering::Relaxed)
    }

    /// Has every connection from now on be reset where it would be closed, which loses what is on
    /// its way.
    pub(crate) fn reset_connections(&self) {
        self.state.resets.store(true, Ordering::Relaxed);
    }

    /// How many bytes of bodies have been sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Which parts of the file at this path were sent so far, of bodies that are over: to the last
    /// byte that was taken.
    pub(crate) fn sent(&self, path: &str) -> Vec<Range<u64>> {
        let sent = self.state.sent.lock().unwrap();
        sent.iter()
            .filter(|(other, _)| other.trim_start_matches('/') == path)
            .map(|(_, part)| part.clone())
            .collect()
    }

    /// How many requests so far were for a path that starts so.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.starts_with(path)).count()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        if state.resets.load(Ordering::Relaxed) {
            socket.set_zero_linger().unwrap();
        }
        let (state, stop) = (state.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(state.clone(), request));
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = served => {}
            }
        });
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Sent>, Infallible> {
    let path = request.uri().path().to_owned();
    let asked = Asked {
        method: request.method().clone(),
        path: path.clone(),
        headers: request.headers().clone(),
        at: Clock::system().now(),
    };
    state.remember(asked);
    let file = state.files.lock().unwrap().get(&path).cloned();
    let Some(mut file) = file else {
        let nothing = Sent { file: File::of(0), at: 0, end: 0, sent: 0, cut: None, log: None };
        return Ok(Response::builder().status(404).body(nothing).unwrap());
    };
    let one_in = |many: Option<u32>| many.is_some_and(|many| fastrand::u32(..many) == 0);
    if one_in(file.fails_one_in) {
        file.status = Some(StatusCode::INTERNAL_SERVER_ERROR);
    }
    if let Some(within) = file.breaks_within {
        let breaks = Some(fastrand::u64(..within));
        if one_in(file.stalls_one_in) {
            file.stall_after = breaks;
        } else {
            file.cut_after = breaks;
        }
    }
    if one_in(file.whole_one_in) {
        file.ranges = false;
    }
    if file.silent {
        std::future::pending::<()>().await;
    }
    let asked = request.headers().get("range").and_then(|range| range.to_str().ok());
    let asked = asked.filter(|_| file.ranges && request.method() == Method::GET);
    let part = asked.map(|range| part_of(range, file.size));
    let (status, at, end) = match part {
        None => (StatusCode::OK, 0, file.size),
        Some(Some((first, last))) => (StatusCode::PARTIAL_CONTENT, first, last + 1),
        Some(None) => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let status = file.status.unwrap_or(status);
    let mut response = Response::builder().status(status);
    for (name, value) in &file.fields {
        response = response.header(*name, value);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let told = format!("bytes {at}-{}/{}", end - 1, file.size);
        response = response.header("content-range", file.content_range.clone().unwrap_or(told));
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        response = response.header("content-range", format!("bytes */{}", file.size));
    }
    if file.told_length {
        response = response.header("content-length", end - at);
    }
    let end = if request.method() == Method::HEAD { at } else { end };
    state.bodies.fetch_add(1, Ordering::SeqCst);
    Ok(response.body(Sent { file, at, end, sent: 0, cut: None, log: Some((path, state)) }).unwrap())
}

/// One range, first and last; none where it lies outside.
fn part_of(range: &str, size: u64) -> Option<(u64, u64)> {
    let end = size.checked_sub(1)?;
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last) = match (first, last) {
        ("", "0") => return None,
        ("", last) => (size.saturating_sub(last.parse().unwrap()), end),
        (first, "") => (first.parse().unwrap(), end),
        (first, last) => (first.parse().unwrap(), last.parse::<u64>().unwrap().min(end)),
    };
    (first <= last).then_some((first, last))
}

/// A body on its way.
#[derive(Debug)]
struct Sent {
    file: File,
    at: u64,
    end: u64,
    sent: u64,
    /// Runs before the connection is cut.
    cut: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Where it is noted what was sent of which path.
    log: Option<(String, Arc<State>)>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let Some((path, state)) = self.log.take() else { return };
        let mut sent = state.sent.lock().unwrap();
        if self.sent > 0 && sent.len() < MOST_ASKED {
            sent.push((path, self.at - self.sent..self.at));
        }
        state.bodies.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The connection is to be cut here.
#[derive(Debug, thiserror::Error)]
#[error("cut, as told")]
struct Cut;

impl Body for Sent {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let mut end = this.end;
        if let Some(cut) = this.file.cut_after {
            if this.sent >= cut {
                // What came before is sent first: hyper drops what it still holds when a body
                // fails.
                let pause = || Box::pin(tokio::time::sleep(Duration::from_millis(50)));
                ready!(this.cut.get_or_insert_with(pause).as_mut().poll(context));
                return Poll::Ready(Some(Err(Cut)));
            }
            end = end.min(this.at + cut - this.sent);
        }
        if let Some(stall) = this.file.stall_after {
            if this.sent >= stall {
                return Poll::Pending; // for ever: nobody wakes it
            }
            end = end.min(this.at + stall - this.sent);
        }
        let slice = this.file.slice(this.at, end);
        this.at += slice.len() as u64;
        this.sent += slice.len() as u64;
        if let Some((_, state)) = &this.log {
            state.bytes.fetch_add(slice.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
