//! The storage: a small HTTP origin that serves a collection's files to the gate and logs all
//! requests.
//!
//! [`Storage::start`] starts it. A request is in the log before its response is sent. The
//! [`Running`] storage owns every task. [`Running::stop`] stops all tasks and waits for them.
//! Dropping it stops them without waiting.

use std::io;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Collection;
use super::content::Slices;
use super::file_response;
use super::request_log::{Entry, Log};
use crate::accept::{self, AcceptRetry};
use crate::clock::Clock;

#[cfg(test)]
mod tests;

/// The path of the log.
const REQUESTS: &str = "/_requests";

/// The demo's storage, not yet started.
#[derive(Debug)]
pub struct Storage {}

impl Storage {
    /// Binds the address, and serves the collection on the current runtime. `clock` dates the log.
    ///
    /// # Errors
    /// Returns the system's error if the address cannot be bound.
    pub async fn start(
        listen: SocketAddr,
        collection: &Collection,
        clock: Clock,
    ) -> io::Result<Running> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { collection: collection.clone(), clock, log: Log::default() });
        let running = Running {
            url: format!("http://{address}"),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let files = collection.files().len();
        tracing::info!(%address, files, "the sample storage listens");
        let (tasks, stop) = (running.tasks.clone(), running.stop.clone());
        running.tasks.spawn(accept(listener, shared, tasks, stop));
        Ok(running)
    }
}

/// A running storage. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    url: String,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    /// Returns its base URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Closes all connections, and waits for all tasks.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The state that all connections share.
#[derive(Debug)]
struct Shared {
    collection: Collection,
    clock: Clock,
    log: Log,
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let log_failure = |error: &io::Error| {
        tracing::warn!(%error, "the storage cannot accept a connection");
        AcceptRetry::AfterDelay
    };
    while let Some((stream, _)) = accept::next(from_ref(&listener), &stop, log_failure).await {
        tasks.spawn(serve_connection(stream, shared.clone(), stop.clone()));
    }
}

/// Serves a connection until it ends or the storage stops.
async fn serve_connection(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    // Without it, small responses wait for ACKs. On failure they are only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let response = shared.response(&request);
        async move { response }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = stop.cancelled() => {}
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the storage ended early");
        }
    }
}

impl Shared {
    fn response(&self, request: &Request<Incoming>) -> Result<Response<Slices>, http::Error> {
        let (method, path) = (request.method(), request.uri().path());
        if path != REQUESTS {
            let now = self.clock.now();
            self.log.add(Entry::new(now, method.as_str(), path, request.headers()));
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let response = Response::builder()
                .status(StatusCode::METHOD_NOT_ALLOWED)
                .header(ALLOW, "GET, HEAD");
            return file_response::with_body(response, Slices::of(Bytes::new()), method);
        }
        if path == REQUESTS {
            return self.requests(method, request.uri().query());
        }
        match self.collection.file(path) {
            Some(file) => file_response::build(file, method, request.headers()),
            None => file_response::empty_response(StatusCode::NOT_FOUND),
        }
    }

    /// Builds the response with the log. The query `newest=8` limits it to the last 8 requests.
    fn requests(
        &self,
        method: &Method,
        query: Option<&str>,
    ) -> Result<Response<Slices>, http::Error> {
        let newest = query.and_then(|query| query.strip_prefix("newest=")?.parse().ok());
        let Ok(entries) = self.log.json(newest.unwrap_or(usize::MAX)) else {
            return file_response::empty_response(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let response = Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .header(CACHE_CONTROL, "no-store");
        file_response::with_body(response, Slices::of(Bytes::from(entries)), method)
    }
}
