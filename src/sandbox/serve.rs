//! The sandbox's HTTP server: its listener, its connections, and the steps before and after every
//! call.
//!
//! [`Sandbox::start`] starts it. The [`Running`] sandbox owns every task. [`Running::stop`] stops
//! all tasks and waits for them. Dropping it stops them without waiting.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::header::DATE;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};

use super::auth::Tokens;
use super::context::{App, CloseConnection};
use super::error_response::Rejected;
use super::faults::Faults;
use super::licence_pools::Pools;
use super::loan_store::Books;
use super::lookup::WorldIndex;
use super::state::State;
use super::{Settings, calls, control, storage};
use crate::accept::{self, AcceptRetry};
use crate::clock::{self, Clock};

/// The reason why a sandbox cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The address cannot be bound.
    #[error("the sandbox cannot listen on {address}: {cause}; choose another address, or port 0")]
    Listen {
        /// The address that was configured.
        address: SocketAddr,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The books cannot be opened.
    #[error("the sandbox cannot open its books in {dir}: {cause}")]
    Books {
        /// The directory of the books.
        dir: String,
        /// The error of the file or its content.
        cause: io::Error,
    },
    /// The storage cannot be relayed.
    #[error("the sandbox cannot relay the storage: {0}")]
    Storage(reqwest::Error),
}

/// The Bokbasen stand-in, not yet started.
#[derive(Debug)]
pub struct Sandbox {}

impl Sandbox {
    /// Opens the books, binds the address, and serves on the current runtime.
    ///
    /// # Errors
    /// Returns [`SandboxError`] if the address is in use or the books cannot be read.
    pub async fn start(settings: Settings, clock: Clock) -> Result<Running, SandboxError> {
        let books = Books::open(settings.dir.as_deref()).map_err(|cause| SandboxError::Books {
            dir: settings.dir.as_deref().unwrap_or("".as_ref()).display().to_string(),
            cause,
        })?;
        let failed = |cause| SandboxError::Listen { address: settings.listen, cause };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let storage = storage::routes(settings.storage.as_ref()).map_err(SandboxError::Storage)?;
        let state = State {
            bounds: settings.bounds.clone(),
            faults: Faults::new(settings.faults.clone()),
            world_index: WorldIndex::new(settings.world.clone(), clock.now()),
            tokens: Tokens::default(),
            pools: Pools::of(books.all()),
            books,
        };
        tracing::info!(
            %address,
            loans = state.books.all().len(),
            "the sandbox listens; it is not for production"
        );
        let app = App::new(state, settings, clock);
        app.tasks.spawn(accept(listener, storage, app.clone()));
        Ok(Running::new(address, app))
    }
}

/// A running sandbox. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    app: App,
    address: SocketAddr,
    url: String,
    token_url: String,
    login_url: String,
}

impl Running {
    fn new(address: SocketAddr, app: App) -> Running {
        let url = format!("http://{address}");
        Running {
            app,
            address,
            token_url: format!("{url}/oauth/token"),
            login_url: format!("{url}/v1/tickets"),
            url,
        }
    }

    /// Returns the bound address, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the base URL of the API, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL of the OAuth token endpoint.
    pub fn token_url(&self) -> &str {
        &self.token_url
    }

    /// Returns the URL of the legacy ticket endpoint.
    pub fn login_url(&self) -> &str {
        &self.login_url
    }

    /// Returns the settings that it was started with, including the credentials.
    pub fn settings(&self) -> &Settings {
        &self.app.settings
    }

    /// Closes all connections, cancels delayed calls, closes the books, and waits for all tasks.
    pub async fn stop(self) {
        self.app.stop.cancel();
        self.app.tasks.close();
        self.app.tasks.wait().await;
        self.app.state().books.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.app.stop.cancel();
    }
}

async fn accept(listener: TcpListener, storage: Router<App>, app: App) {
    let router = storage
        .merge(calls::routes())
        .merge(control::routes())
        .fallback(calls::no_such_path)
        .method_not_allowed_fallback(calls::no_such_method)
        .with_state(app.clone());
    let log_failure = |error: &io::Error| {
        tracing::warn!(%error, "the sandbox cannot accept a connection");
        AcceptRetry::AfterDelay
    };
    while let Some((stream, _)) = accept::next(from_ref(&listener), &app.stop, log_failure).await {
        app.tasks.spawn(serve_connection(stream, router.clone(), app.clone()));
    }
}

/// Serves a connection until it ends or the sandbox stops.
async fn serve_connection(stream: TcpStream, router: Router, app: App) {
    // Without it, small responses wait for ACKs. On failure they are only slower.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(|request| respond(&routes, &app, request));
    let mut server = hyper::server::conn::http1::Builder::new();
    let connection =
        server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = app.stop.cancelled() => {}
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the sandbox ended early");
        }
    }
}

/// hyper closes the connection without a response if the service returns an error.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes this connection")]
struct ClosedByFault;

async fn respond<S>(
    routes: &S,
    app: &App,
    request: Request<Incoming>,
) -> Result<Response, ClosedByFault>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let started = Instant::now();
    let method = request.method().clone();
    let is_bokbasen_call = request.uri().path().starts_with("/v1/");
    let is_file = request.uri().path().starts_with(storage::PATH);
    let shown = loggable_path(request.uri().path());
    let is_down = is_bokbasen_call && app.state().bounds.down;
    let mut response = if is_down {
        Rejected::by_fault(503, None).into_response()
    } else {
        match routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    let closed = response.extensions().get::<CloseConnection>().is_some();
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    tracing::debug!(%method, path = shown, status, closed, ms, "the sandbox responded");
    if closed {
        return Err(ClosedByFault);
    }
    if is_file {
        return Ok(response);
    }
    // Callers compare their clock with this date, so it must include the skew.
    let now = {
        let state = app.state();
        if state.bounds.useless_date { Timestamp::UNIX_EPOCH } else { app.now(&state) }
    };
    let date =
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + clock::until(Timestamp::UNIX_EPOCH, now));
    if let Ok(date) = HeaderValue::from_str(&date) {
        response.headers_mut().insert(DATE, date);
    }
    Ok(response)
}

/// Returns a path for the log, without secrets: tickets and borrowers are replaced.
fn loggable_path(path: &str) -> String {
    for secret in ["/v1/tickets/", "/sandbox/borrowers/"] {
        if path.starts_with(secret) {
            return format!("{secret}…");
        }
    }
    path.to_owned()
}
