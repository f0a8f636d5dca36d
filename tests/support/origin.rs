//! A scriptable origin: slow, truncated, without ranges or without validators. It records its
//! requests.

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

/// Length of the byte pattern. No power of two divides it, so a byte in the wrong place is noticed.
const PERIOD: usize = 1_000_003;

/// Maximum number of recorded requests.
const MAX_RECORDED: usize = 100_000;

/// A file, and how the origin serves it.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) size: u64,
    /// Content of the file; the repeating pattern where this is `None`.
    pub(crate) content: Option<Bytes>,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) ranges: bool,
    /// Whether the response has a Content-Length. Without, it is chunked.
    pub(crate) has_length: bool,
    /// Status that replaces the correct one.
    pub(crate) status: Option<StatusCode>,
    /// Content-Range of a 206 that replaces the correct one.
    pub(crate) content_range: Option<String>,
    /// Number of body bytes after which the origin aborts the connection.
    pub(crate) abort_after: Option<u64>,
    /// Number of body bytes after which the body stalls.
    pub(crate) stall_after: Option<u64>,
    /// Whether the origin never sends a response head.
    pub(crate) silent: bool,
    /// Each body breaks off after a random number of bytes below this.
    pub(crate) breaks_within: Option<u64>,
    /// One response in this many is a 500.
    pub(crate) fails_one_in: Option<u32>,
    /// Of the bodies that break off, one in this many stalls instead.
    pub(crate) stalls_one_in: Option<u32>,
    /// One range request in this many is answered with the whole file.
    pub(crate) ignores_range_one_in: Option<u32>,
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
            has_length: true,
            status: None,
            content_range: None,
            abort_after: None,
            stall_after: None,
            silent: false,
            breaks_within: None,
            fails_one_in: None,
            stalls_one_in: None,
            ignores_range_one_in: None,
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

    /// Returns the bytes of this range of the file.
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

/// Returns a block of pseudo-random bytes.
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

/// A request that the origin received.
#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) at: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    files: Mutex<BTreeMap<String, File>>,
    recorded: Mutex<Vec<RecordedRequest>>,
    sent: Mutex<Vec<(String, Range<u64>)>>,
    /// Number of connections accepted so far.
    connections: AtomicUsize,
    /// Number of bodies that are being sent.
    bodies: AtomicUsize,
    /// Number of body bytes sent so far.
    bytes: AtomicU64,
    /// Whether the origin resets connections instead of closing them.
    resets: AtomicBool,
}

impl State {
    /// Records a request. Benches send more than [`MAX_RECORDED`], which nothing reads.
    fn record(&self, recorded: RecordedRequest) {
        let mut all = self.recorded.lock().unwrap();
        if all.len() < MAX_RECORDED {
            all.push(recorded);
        }
    }
}

/// A running origin on loopback.
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

    /// Serves this file at this path without a leading slash.
    pub(crate) fn put(&self, path: &str, file: File) {
        self.state.files.lock().unwrap().insert(format!("/{path}"), file);
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of bodies that are being sent. Each occupies a connection.
    pub(crate) fn bodies(&self) -> usize {
        self.state.bodies.load(Ordering::Relaxed)
    }

    /// Makes the origin reset further connections instead of closing them, which discards bytes.
    pub(crate) fn reset_connections(&self) {
        self.state.resets.store(true, Ordering::Relaxed);
    }

    /// Returns the number of body bytes sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// Returns all recorded requests.
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        self.state.recorded.lock().unwrap().clone()
    }

    /// Returns the ranges of the file that completed or aborted bodies have sent.
    pub(crate) fn sent(&self, path: &str) -> Vec<Range<u64>> {
        let sent = self.state.sent.lock().unwrap();
        sent.iter()
            .filter(|(other, _)| other.trim_start_matches('/') == path)
            .map(|(_, part)| part.clone())
            .collect()
    }

    /// Returns the number of requests whose path has this prefix.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.requests().iter().filter(|request| request.path.starts_with(path)).count()
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
        state.connections.fetch_add(1, Ordering::Relaxed);
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
    let recorded = RecordedRequest {
        method: request.method().clone(),
        path: path.clone(),
        headers: request.headers().clone(),
        at: Clock::system().now(),
    };
    state.record(recorded);
    let file = state.files.lock().unwrap().get(&path).cloned();
    let Some(mut file) = file else {
        let nothing =
            Sent { file: File::of(0), at: 0, end: 0, sent: 0, abort_delay: None, log: None };
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
            file.abort_after = breaks;
        }
    }
    if one_in(file.ignores_range_one_in) {
        file.ranges = false;
    }
    if file.silent {
        std::future::pending::<()>().await;
    }
    let range = request.headers().get("range").and_then(|range| range.to_str().ok());
    let range = range.filter(|_| file.ranges && request.method() == Method::GET);
    let part = range.map(|range| part_of(range, file.size));
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
        let content_range = format!("bytes {at}-{}/{}", end - 1, file.size);
        response =
            response.header("content-range", file.content_range.clone().unwrap_or(content_range));
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        response = response.header("content-range", format!("bytes */{}", file.size));
    }
    if file.has_length {
        response = response.header("content-length", end - at);
    }
    let end = if request.method() == Method::HEAD { at } else { end };
    state.bodies.fetch_add(1, Ordering::SeqCst);
    Ok(response
        .body(Sent { file, at, end, sent: 0, abort_delay: None, log: Some((path, state)) })
        .unwrap())
}

/// Parses a single range into its first and last byte. Returns `None` where it is not satisfiable.
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

/// A body that is being sent.
#[derive(Debug)]
struct Sent {
    file: File,
    at: u64,
    end: u64,
    sent: u64,
    /// Delay before the connection is aborted.
    abort_delay: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Path and state in which the sent range is recorded.
    log: Option<(String, Arc<State>)>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let Some((path, state)) = self.log.take() else { return };
        let mut sent = state.sent.lock().unwrap();
        if self.sent > 0 && sent.len() < MAX_RECORDED {
            sent.push((path, self.at - self.sent..self.at));
        }
        state.bodies.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Makes hyper abort the connection.
#[derive(Debug, thiserror::Error)]
#[error("aborted as configured")]
struct Aborted;

impl Body for Sent {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let this = self.get_mut();
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let mut end = this.end;
        if let Some(abort_delay) = this.file.abort_after {
            if this.sent >= abort_delay {
                // hyper drops its unsent bytes when a body fails, so earlier bytes are sent first.
                let pause = || Box::pin(tokio::time::sleep(Duration::from_millis(50)));
                ready!(this.abort_delay.get_or_insert_with(pause).as_mut().poll(context));
                return Poll::Ready(Some(Err(Aborted)));
            }
            end = end.min(this.at + abort_delay - this.sent);
        }
        if let Some(stall) = this.file.stall_after {
            if this.sent >= stall {
                return Poll::Pending; // stalls: nothing wakes this task
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
