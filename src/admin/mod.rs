//! Admin listener for operators and support staff: health, readiness, metrics, loans, links,
//! explanations, balances, usage reports, reloads, and the console.
//!
//! `app` starts it on its own listener and on the slow runtime, so that it never competes with
//! readers. It reads the ledger, ends loans through the gate, and runs balances through
//! circulation. It serves TCP, and a Unix socket if one is configured. Everything except
//! `/healthz`, `/readyz` and `/status.json` needs the bearer token; the configuration can exempt
//! `/metrics`. Beyond this machine it serves TLS only.

#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod accesses;
mod auth;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod balance;
mod client_addresses;
mod console_host;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod counts;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod ends;
mod explain;
mod forwarded;
mod hosts;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod lending;
mod links;
mod listen;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod loans;
mod openapi;
mod privacy;
mod problems;
mod readiness;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod reload;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod reports;
mod request_body;
mod running;
mod sockets;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod status;
mod waiting;
#[allow(unused_qualifications, reason = "utoipa's macros write them")]
mod watch;

pub(crate) use forwarded::{ForwardedField, Proxies};
pub(crate) use readiness::{Liveness, Missing, Readiness};
pub(crate) use running::Running;
pub(crate) use sockets::Sockets;
pub(crate) use waiting::Waiting;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::buffer_budget::Buffers;
use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::console;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::monitor::Monitor;
use crate::public_addresses::PublicAddresses;
use crate::reader::Readers;
use crate::reload::Reloading;
use crate::server::{Explainer, RequestConfigs};
use crate::supervise::supervise;
use crate::telemetry::{Metrics, Task};
use accesses::{AccessLimits, Accessor};
use auth::WrongTokenLog;
use client_addresses::{Peer, Peers};
use listen::Shared;
use problems::AdminProblem;

/// The keys of `[listen] admin` and `[admin]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address of the admin listener.
    pub listen: SocketAddr,
    /// The path of its Unix socket, which serves plain HTTP; none without one.
    pub socket: Option<PathBuf>,
    /// The bearer token of operators.
    pub token: SecretString,
    /// Whether to serve HTTPS with the server's certificate instead of plain HTTP.
    pub tls: bool,
    /// The proxies that name their clients.
    pub proxies: Proxies,
    /// Whether `/metrics` needs no token.
    pub open_metrics: bool,
    /// The accepted names in the Host header, in lower case. Loopback names are always accepted.
    pub hosts: Vec<String>,
}

/// The sockets that it listens on: TCP, and a Unix socket.
const MAX_LISTENERS: usize = 2;
/// The most file descriptors that the listener holds.
pub(crate) const DESCRIPTORS: u64 =
    (client_addresses::MAX_CONNECTIONS + MAX_LISTENERS * (listen::RESERVED_DESCRIPTORS + 1)) as u64;

/// The services that the admin listener uses.
pub(crate) struct Parts {
    /// The store of all loans.
    pub ledger: Ledger,
    /// The metrics of `/metrics`.
    pub metrics: Metrics,
    /// The buffer budget of readers' streams, for its metrics.
    pub buffers: Buffers,
    /// The check behind `/healthz`.
    pub liveness: Liveness,
    /// The check behind `/readyz`.
    pub readiness: Readiness,
    /// The gate, which ends loans.
    pub gate: Gate,
    /// Circulation, which runs balances.
    pub circulation: Circulation,
    /// The authenticator, which mints links.
    pub readers: Arc<Readers>,
    /// The public base URL of links, without a trailing slash.
    pub public_base: String,
    /// The addresses of the public listener.
    pub public_addresses: PublicAddresses,
    /// Explains what requests would get.
    pub explainer: Arc<Explainer>,
    /// Whether there is a list of prices of usage reports.
    pub has_prices: bool,
    /// The routes in use, which find a title's files.
    pub requests: RequestConfigs,
    /// Reloads the configuration.
    pub reload: Reloading,
    /// What the gate's own watch has found.
    pub monitor: Monitor,
    /// The keys of `[console]`.
    pub console: console::Settings,
    /// The clock of this process.
    pub clock: Clock,
    /// The OpenAPI description of the readers' API.
    pub readers_api: utoipa::openapi::OpenApi,
    /// The TLS settings of the public listener.
    pub tls: listen::TlsSource,
    /// The runtime for looks at the console, whose threads give way to all others.
    pub low_priority: Handle,
    /// Returns when the first of its certificates expires.
    pub certificate_expiry: Box<dyn Fn() -> Option<Timestamp> + Send + Sync>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("public_base", &self.public_base).finish_non_exhaustive()
    }
}

/// The reason why the admin listener did not start.
#[derive(Debug, thiserror::Error)]
#[error("the admin listener cannot use a listening socket: {0}")]
pub(crate) struct AdminError(std::io::Error);

/// The admin listener, before its start.
#[derive(Debug)]
pub(crate) struct Admin {}

struct App {
    settings: Settings,
    wrong_tokens: WrongTokenLog,
    parts: Parts,
    description: utoipa::openapi::OpenApi,
    access_limits: AccessLimits,
    /// The address of this listener, and when it started.
    url: String,
    started: Timestamp,
}

impl Admin {
    /// Serves requests on the current runtime. Once `handed_over` is cancelled, it accepts no more
    /// connections.
    ///
    /// # Errors
    /// Returns [`AdminError`] if a socket cannot be used.
    pub(crate) fn start(
        settings: &Settings,
        sockets: Sockets,
        parts: Parts,
        handed_over: &CancellationToken,
    ) -> Result<Running, AdminError> {
        let (address, listeners) = sockets.listeners().map_err(AdminError)?;
        let tls = settings.tls.then(|| parts.tls.clone());
        let scheme = if settings.tls { "https" } else { "http" };
        let running = Running::new(format!("{scheme}://{address}"), handed_over);
        let description = openapi::description(parts.readers_api.clone());
        let (metrics, started) = (parts.metrics.clone(), parts.clock.now());
        let router = router(Arc::new(App {
            settings: settings.clone(),
            wrong_tokens: WrongTokenLog::default(),
            parts,
            description,
            access_limits: AccessLimits::default(),
            url: running.url().to_owned(),
            started,
        }));
        let (tasks, stopping) = (running.tasks.clone(), running.stopping.clone());
        let shared = Shared { tls, router, peers: Peers::default(), tasks, stopping };
        for listener in listeners.into_iter().map(Arc::new) {
            let (metrics, stop) = (metrics.clone(), running.stopping.accepting.clone());
            let shared = shared.clone();
            let run = move || listen::accept(listener.clone(), shared.clone());
            running.tasks.spawn(supervise(Task::AcceptAdmin, metrics, stop, run));
        }
        Ok(running)
    }
}

fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/api/v1/loans", get(loans::list))
        .route("/api/v1/loans/{id}", get(loans::one).delete(ends::end))
        .route("/api/v1/accesses", get(accesses::list))
        .route("/api/v1/links", post(links::mint))
        .route("/api/v1/problems", get(watch::problems))
        .route("/api/v1/now", get(watch::now))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/explain", post(explain::explain))
        .route("/api/v1/balance", get(balance::last).post(balance::balance))
        .route("/api/v1/reports", get(reports::list))
        .route("/api/v1/reports/{loan}", get(reports::one).post(reports::resolve))
        .route("/api/v1/lending", get(lending::pauses))
        .route("/api/v1/lending/pause", post(lending::pause))
        .route("/api/v1/lending/resume", post(lending::resume))
        .route("/api/v1/privacy/export", post(privacy::export))
        .route("/api/v1/privacy/erase", post(privacy::erase))
        .route("/api/v1/reload", post(reload::reload))
        .route("/openapi.json", get(openapi::describe))
        .route("/api", any(async || AdminProblem::NOT_FOUND))
        .route("/api/", any(async || AdminProblem::NOT_FOUND))
        .route("/api/{*path}", any(async || AdminProblem::NOT_FOUND))
        .method_not_allowed_fallback(async || AdminProblem::METHOD)
        .layer(middleware::from_fn_with_state(app.clone(), guard));
    let named = Router::new()
        .route("/metrics", get(metrics))
        .merge(guarded)
        .merge(console::router(console_host::parts(&app)))
        .layer(middleware::from_fn_with_state(app.clone(), check_host))
        .layer(middleware::from_fn_with_state(app.clone(), name_client));
    Router::new()
        .route("/healthz", get(readiness::alive))
        .route("/readyz", get(readiness::ready))
        .route("/status.json", get(watch::status))
        .merge(named)
        .with_state(app)
}

/// Adds the client of the request, which a proxy may name, for the limits of one address.
async fn name_client(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
        let client = peer.client(request.headers(), &app.settings.proxies);
        request.extensions_mut().insert(client);
    }
    next.run(request).await
}

/// Rejects requests for other host names, before any other check.
async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match hosts::allows(&request, &app.settings.hosts) {
        true => next.run(request).await,
        false => AdminProblem::HOST.into_response(),
    }
}

/// Rejects requests without the token, including those for unknown paths of the API.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(refused) = authenticate(&app, &request).await {
        return refused.into_response();
    }
    match request_body::read(request).await {
        Ok(mut request) => {
            let by = Accessor::with_token(request.headers());
            request.extensions_mut().insert(by);
            private(next.run(request).await)
        }
        Err(refused) => refused.into_response(),
    }
}

/// Adds the fields of a response about readers or with a secret: nobody stores it, and no browser
/// guesses its type.
fn private(mut response: Response) -> Response {
    let fields = response.headers_mut();
    fields.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn authenticate<'a>(
    app: &'a App,
    request: &'a Request,
) -> impl Future<Output = Result<(), AdminProblem>> + use<'a> {
    let client = request.extensions().get().cloned();
    auth::authenticate(request.headers(), client, &app.settings.token, &app.wrong_tokens)
}

async fn metrics(State(app): State<Arc<App>>, request: Request) -> Result<Response, AdminProblem> {
    if !app.settings.open_metrics {
        authenticate(&app, &request).await?;
    }
    let Parts { metrics, buffers, gate, requests, .. } = &app.parts;
    metrics.buffers(buffers.held(), buffers.total());
    metrics.cached_decisions(gate.cached_decisions());
    metrics.connections_limit(requests.connections_limit());
    metrics.read_process();
    let fields = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((fields, metrics.render()).into_response())
}
