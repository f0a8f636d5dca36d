//! The server: its listener, its connections, and what happens to every request before and after
//! its call.
//!
//! Whoever starts a sandbox calls [`Sandbox::start`]; it calls the routes. Every task belongs to
//! the [`Running`] sandbox: [`Running::stop`] ends and awaits them all, dropping it ends them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
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
use super::context::{App, Cut};
use super::error_response::Rejected;
use super::faults::Faults;
use super::licence_pools::Pools;
use super::loan_store::Books;
use super::lookup::Scene;
use super::state::State;
use super::{Settings, calls, control};
use crate::clock::{self, Clock};

/// Why a sandbox cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The address cannot be listened on.
    #[error("the sandbox cannot listen on {address}: {cause}; choose another address, or port 0")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// The books cannot be opened.
    #[error("the sandbox cannot open its books in {dir}: {cause}")]
    Books {
        /// The directory.
        dir: String,
        /// What is wrong.
        cause: io::Error,
    },
}

/// Bokbasen's stand-in.
#[derive(Debug)]
pub struct Sandbox {}

impl Sandbox {
    /// Opens the books, listens, and serves on the runtime that it is called on.
    ///
    /// # Errors
    /// [`SandboxError`] where the address is taken or the books cannot be read.
    pub async fn start(settings: Settings, clock: Clock) -> Result<Running, SandboxError> {
        let books = Books::open(settings.dir.as_deref()).map_err(|cause| SandboxError::Books {
            dir: settings.dir.as_deref().unwrap_or("".as_ref()).display().to_string(),
            cause,
        })?;
        let failed = |cause| SandboxError::Listen { address: settings.listen, cause };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let state = State {
            bounds: settings.bounds.clone(),
            faults: Faults::new(settings.faults.clone()),
            scene: Scene::new(settings.world.clone(), clock.now()),
            tokens: Tokens::default(),
            pools: Pools::of(books.all()),
            books,
        };
        tracing::info!(%address, loans = state.books.all().len(), "the sandbox listens; it is not for production");
        let app = App::new(state, settings, clock);
        app.tasks.spawn(accept(listener, app.clone()));
        Ok(Running::new(address, app))
    }
}

/// A sandbox that serves. Dropping it ends it too, though without waiting.
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

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base of the API, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where OAuth tokens are given out.
    pub fn token_url(&self) -> &str {
        &self.token_url
    }

    /// Where legacy tickets are given out.
    pub fn login_url(&self) -> &str {
        &self.login_url
    }

    /// What it was started with, the credentials that it knows among them.
    pub fn settings(&self) -> &Settings {
        &self.app.settings
    }

    /// Cuts every connection, drops what is delayed, closes the books, and waits until all is over.
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

async fn accept(listener: TcpListener, app: App) {
    let router = Router::new()
        .merge(calls::routes())
        .merge(control::routes())
        .fallback(calls::no_such_path)
        .method_not_allowed_fallback(calls::no_such_method)
        .with_state(app.clone());
    loop {
        let accepted = tokio::select! {
            () = app.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                app.tasks.spawn(converse(stream, router.clone(), app.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the sandbox cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

/// A connection until its end, or the sandbox's.
async fn converse(stream: TcpStream, router: Router, app: App) {
    // Without it small answers wait for acknowledgements; where it fails they only wait.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(|request| answered(&routes, &app, request));
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

/// An error in a response's place makes hyper drop the connection without a byte.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox was told to cut this connection")]
struct CutHere;

async fn answered<S>(routes: &S, app: &App, request: Request<Incoming>) -> Result<Response, CutHere>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let started = Instant::now();
    let method = request.method().clone();
    let is_bokbasens = request.uri().path().starts_with("/v1/");
    let shown = shown_path(request.uri().path());
    let is_down = is_bokbasens && app.state().bounds.down;
    let mut response = if is_down {
        Rejected::by_fault(503, None).into_response()
    } else {
        match routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    let cut = response.extensions().get::<Cut>().is_some();
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    tracing::debug!(%method, path = shown, status, cut, ms, "the sandbox answered");
    if cut {
        return Err(CutHere);
    }
    // Bokbasen's own clock, which may be off, is what callers compare theirs with.
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

/// A path as the log may show it: a ticket is a secret, and a borrower is nobody's business.
fn shown_path(path: &str) -> String {
    for secret in ["/v1/tickets/", "/sandbox/borrowers/"] {
        if path.starts_with(secret) {
            return format!("{secret}…");
        }
    }
    path.to_owned()
}
