//! The storage: a small HTTP origin that serves a collection's files to the gate and logs what is
//! asked of it.
//!
//! Whoever runs a demo calls [`Storage::start`]; it calls the answers and the log. A request is in
//! the log before its answer leaves. Every task belongs to the [`Running`] storage:
//! [`Running::stop`] ends and awaits them all, dropping it ends them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use super::file_response::{self, Slices};
use super::request_log::{Entry, Log};
use crate::clock::Clock;

#[cfg(test)]
mod tests;

/// Where the log is read.
const REQUESTS: &str = "/_requests";

/// The demo's storage.
#[derive(Debug)]
pub struct Storage {}

impl Storage {
    /// Listens, and serves the collection on the runtime that it is called on. The clock dates the
    /// log.
    ///
    /// # Errors
    /// What the system says where the address cannot be listened on.
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
        tracing::info!(%address, files = collection.files().len(), "the storage of samples listens");
        let (tasks, stop) = (running.tasks.clone(), running.stop.clone());
        running.tasks.spawn(accept(listener, shared, tasks, stop));
        Ok(running)
    }
}

/// A storage that serves. Dropping it ends it too, though without waiting.
#[derive(Debug)]
pub struct Running {
    url: String,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    /// Its address as a URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts every connection, and waits until all is over.
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

/// What every connection shares.
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
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(converse(stream, shared.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the storage cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// A connection until its end, or the storage's.
async fn converse(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    // Without it small answers wait for acknowledgements; where it fails they only wait.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let answer = shared.answer(&request);
        async move { answer }
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
    fn answer(&self, request: &Request<Incoming>) -> Result<Response<Slices>, http::Error> {
        let (method, path) = (request.method(), request.uri().path());
        if path != REQUESTS {
            let now = self.clock.now();
            self.log.add(Entry::new(now, method.as_str(), path, request.headers()));
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let answer = Response::builder()
                .status(StatusCode::METHOD_NOT_ALLOWED)
                .header(ALLOW, "GET, HEAD");
            return file_response::with_body(answer, Bytes::new(), method);
        }
        if path == REQUESTS {
            return self.requests(method);
        }
        match self.collection.file(path) {
            Some(file) => file_response::about(file, method, request.headers()),
            None => file_response::blank(StatusCode::NOT_FOUND),
        }
    }

    /// The log as it is now.
    fn requests(&self, method: &Method) -> Result<Response<Slices>, http::Error> {
        let Ok(entries) = self.log.json() else {
            return file_response::blank(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let answer = Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .header(CACHE_CONTROL, "no-store");
        file_response::with_body(answer, Bytes::from(entries), method)
    }
}
