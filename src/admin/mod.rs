//! What operators and support staff ask: health, readiness, metrics, and which loans there are.
//!
//! The command line starts it, on a listener of its own and on the slow runtime, so that it never
//! competes with a reader. It reads the ledger, asks the gate to end a loan, and circulation to
//! balance the books. It promises that everything but `/healthz` and `/readyz` needs the bearer
//! token (`/metrics` unless the configuration opens it), and that beyond this machine it speaks TLS
//! only.

mod auth;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod balance;
mod client_addresses;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod ends;
mod hosts;
mod links;
mod listen;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod loans;
mod openapi;
mod problems;

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use rustls::ServerConfig;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer_budget::Buffers;
use crate::catalog::Catalog;
use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::reader::Readers;
use crate::supervise::supervise;
use crate::telemetry::Metrics;
use auth::WrongTokenLog;
use problems::Refused;

/// The keys of `[listen] admin` and `[admin]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where operators connect.
    pub listen: SocketAddr,
    /// The bearer token.
    pub token: SecretString,
    /// HTTPS with the server's certificate in place of plain HTTP.
    pub tls: bool,
    /// Whether `/metrics` needs no token.
    pub open_metrics: bool,
    /// Names in the field Host that are answered besides those of loopback, in lower case and
    /// without a port.
    pub hosts: Vec<String>,
}

/// File descriptors that the listener may hold.
pub const DESCRIPTORS: u64 = (client_addresses::MAX_CONNECTIONS + listen::RESERVE + 1) as u64;

/// What the answers are made of.
pub struct Parts {
    /// Which loans there are.
    pub ledger: Ledger,
    /// What was counted.
    pub metrics: Metrics,
    /// What readers' streams hold.
    pub buffers: Buffers,
    /// Whether everyone can be served.
    pub readiness: Readiness,
    /// What ends loans.
    pub gate: Gate,
    /// What balances the books.
    pub circulation: Circulation,
    /// What mints links.
    pub readers: Arc<Readers>,
    /// Where readers connect, as links name it: without a slash at the end.
    pub public_base: String,
    /// Where a title's files are.
    pub catalog: Arc<Catalog>,
    /// What time it is.
    pub clock: Clock,
    /// The description of the readers' API.
    pub readers_api: utoipa::openapi::OpenApi,
    /// The server's TLS settings.
    pub tls: Arc<ServerConfig>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("public_base", &self.public_base).finish_non_exhaustive()
    }
}

/// What is not as it should be.
#[derive(Clone, Debug, Default)]
pub struct Missing {
    /// What keeps the gate from serving anyone, as sentences.
    pub needed: Vec<Cow<'static, str>>,
    /// What keeps some readers from being served while others are.
    pub wanted: Vec<Cow<'static, str>>,
}

type Answer = Pin<Box<dyn Future<Output = Missing> + Send>>;

/// Tells what is missing. The gate is ready as long as nothing is that it needs: a balancer that
/// took every gate away because Bokbasen is down would cut off the readers who have their loans.
pub struct Readiness(Box<dyn Fn() -> Answer + Send + Sync>);

impl Readiness {
    /// A readiness that is found out by this question.
    pub fn new<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Readiness
    where
        F: Future<Output = Missing> + Send + 'static,
    {
        Readiness(Box::new(move || Box::pin(ask())))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readiness")
    }
}

/// Why the admin listener did not start.
#[derive(Debug, thiserror::Error)]
#[error("the admin listener cannot listen on {address}: {source}; is another program there?")]
pub struct AdminError {
    address: SocketAddr,
    source: std::io::Error,
}

/// The admin listener.
#[derive(Debug)]
pub struct Admin {}

/// A listener that answers; all its tasks end with it.
#[derive(Debug)]
pub struct Running {
    url: String,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// How long a request's body may take, and how large it may be, in bytes.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 64 * 1024;

struct App {
    settings: Settings,
    wrong_tokens: WrongTokenLog,
    parts: Parts,
    description: utoipa::openapi::OpenApi,
}

impl Admin {
    /// Listens, and answers on the runtime that it is called on.
    ///
    /// # Errors
    /// [`AdminError`], where the address is taken.
    pub async fn start(settings: &Settings, parts: Parts) -> Result<Running, AdminError> {
        let failed = |source| AdminError { address: settings.listen, source };
        let listener = tokio::net::TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = settings.tls.then(|| listen::acceptor(&parts.tls));
        let scheme = if settings.tls { "https" } else { "http" };
        let running = Running {
            url: format!("{scheme}://{address}"),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let description = openapi::description(parts.readers_api.clone());
        let metrics = parts.metrics.clone();
        let router = router(Arc::new(App {
            settings: settings.clone(),
            wrong_tokens: WrongTokenLog::default(),
            parts,
            description,
        }));
        let (listener, tasks, stop) =
            (Arc::new(listener), running.tasks.clone(), running.stop.clone());
        let accepting = supervise("accept-admin", metrics, running.stop.clone(), move || {
            listen::accept(
                listener.clone(),
                tls.clone(),
                router.clone(),
                tasks.clone(),
                stop.clone(),
            )
        });
        running.tasks.spawn(accepting);
        Ok(running)
    }
}

impl Running {
    /// Its address, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection and waits for that.
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

fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/api/v1/loans", get(loans::list))
        .route("/api/v1/loans/{id}", get(loans::one).delete(ends::end))
        .route("/api/v1/links", post(links::mint))
        .route("/api/v1/balance", get(balance::last).post(balance::balance))
        .route("/openapi.json", get(openapi::describe))
        .fallback(async || Refused::NOT_FOUND)
        .method_not_allowed_fallback(async || Refused::METHOD)
        .layer(middleware::from_fn_with_state(app.clone(), guard));
    let named = Router::new()
        .route("/metrics", get(metrics))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(app.clone(), check_host));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(named)
        .with_state(app)
}

/// Refuses names that the listener does not answer to, before anything else is looked at.
async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match hosts::allows(&request, &app.settings.hosts) {
        true => next.run(request).await,
        false => Refused::HOST.into_response(),
    }
}

/// Lets no request pass without the token, also where there is nothing behind it.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(refused) = authenticate(&app, &request).await {
        return refused.into_response();
    }
    match with_whole_body(request).await {
        Ok(request) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

fn authenticate<'a>(
    app: &'a App,
    request: &'a Request,
) -> impl Future<Output = Result<(), Refused>> + use<'a> {
    let peer = request.extensions().get().cloned();
    auth::authenticate(request.headers(), peer, &app.settings.token, &app.wrong_tokens)
}

/// The request with its body in memory, which has to arrive in time.
async fn with_whole_body(request: Request) -> Result<Request, Refused> {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, body.into())),
        Ok(Err(_)) => Err(Refused::malformed(
            "The body cannot be read, or has more than 64 KiB. Send a smaller one.",
        )),
        Err(_) => {
            Err(Refused::malformed("The body did not arrive within 10 seconds. Send it at once."))
        }
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let Missing { needed, wanted } = (app.parts.readiness.0)().await;
    let ready = needed.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let missing = [needed, wanted].concat();
    (status, Json(serde_json::json!({ "ready": ready, "missing": missing }))).into_response()
}

async fn metrics(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    if !app.settings.open_metrics {
        authenticate(&app, &request).await?;
    }
    app.parts.metrics.buffers(app.parts.buffers.held(), app.parts.buffers.total());
    let fields = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((fields, app.parts.metrics.render()).into_response())
}
