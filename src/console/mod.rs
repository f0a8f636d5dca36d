//! The console for people, at `/` of the admin listener: loans, and why a request was refused.
//!
//! `admin` mounts it. Pages are made on the server and work without a script. Only the sign-in
//! pages, the choice of language and theme, and static files are open without a session. [`roles`]
//! checks what a person may do. Every form has a token, and every look at loans and every action is
//! recorded by [`trail`].

mod actions;
mod address;
mod chart;
mod cookies;
mod done;
mod explanation;
mod failure;
mod files;
mod find;
mod forgery;
mod format;
mod help;
mod library;
mod live;
mod loan_page;
mod loans;
mod now;
mod now_charts;
mod now_systems;
mod oidc;
mod page;
mod plot;
mod preferences;
mod problems;
mod roles;
mod runbook;
mod session;
mod sign_in;
mod text;
mod trail;
mod trail_page;
mod visit;
mod why;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::middleware;
use axum::routing::{get, post};
use http::Extensions;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::gate::Gate;
use crate::ledger::{Access, Ledger};
use crate::monitor::Monitor;
use crate::reader::Readers;
use crate::server::{Explainer, RequestConfigs};
pub(crate) use actions::checked_reason;
use failure::Failure;
use live::Streams;
use oidc::Oidc;
pub(crate) use oidc::OidcSettings;
pub(crate) use oidc::Settings;
pub(crate) use session::Role;
use session::Sessions;

/// What the console uses of the listener that mounts it.
#[async_trait]
pub(crate) trait Host: Send + Sync {
    /// Returns whether this is the admin token. Delays the response to a wrong one. `client` are
    /// the extensions of the request.
    async fn is_token(&self, client: &Extensions, token: &str) -> bool;

    /// Returns the client's address; none if it is not known, as behind a proxy that ends TLS.
    fn address(&self, client: &Extensions) -> Option<IpAddr>;

    /// Records that the connection of a request has the session of this number.
    fn note_session(&self, client: &Extensions, session: u64);

    /// Records an access in the ledger. Returns false if it is not recorded for certain.
    async fn record(&self, access: Access) -> bool;
}

/// What the console uses.
pub(crate) struct Parts {
    /// The store of all loans, for support queries.
    pub(crate) ledger: Ledger,
    /// The gate, which ends loans.
    pub(crate) gate: Gate,
    /// Circulation, which queries Bokbasen.
    pub(crate) circulation: Circulation,
    /// The authenticator, which makes pseudonyms and links.
    pub(crate) readers: Arc<Readers>,
    /// The routes in use, which find a title's files.
    pub(crate) requests: RequestConfigs,
    /// Explains what requests get.
    pub(crate) explainer: Arc<Explainer>,
    /// What the gate's own watch has found, here and at the other gates.
    pub(crate) monitor: Monitor,
    /// The clock of this process.
    pub(crate) clock: Clock,
    /// Whether there is a list of prices, so that costs are shown.
    pub(crate) has_prices: bool,
    /// The public base URL of links, without a trailing slash.
    pub(crate) public_base: String,
    /// Whether browsers reach the console over TLS, so that cookies are secure.
    pub(crate) tls: bool,
    /// The keys of `[console]`.
    pub(crate) settings: Settings,
    /// The runtime for looks, whose threads give way to all others.
    pub(crate) low_priority: Handle,
    /// The listener that mounts it.
    pub(crate) host: Box<dyn Host>,
}

/// The console, with its sessions.
pub(crate) struct Console {
    parts: Parts,
    sessions: Sessions,
    counts: library::Counts,
    /// The download that is being written.
    downloads: Arc<Semaphore>,
    streams: Streams,
    /// Sign-in by a provider, if it is configured.
    oidc: Option<Oidc>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

/// Returns the routes of the console, which also answers for all other paths.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(parts: Parts) -> Router<S> {
    let sessions = Sessions::new(parts.clock.clone());
    let counts = library::Counts::new(parts.ledger.clone(), parts.clock.clone(), parts.has_prices);
    let (downloads, streams) = (Arc::new(Semaphore::new(1)), Streams::default());
    let oidc = Oidc::of(parts.settings.clone(), parts.clock.clone());
    let low_priority = parts.low_priority.clone();
    let console = Arc::new(Console { parts, sessions, counts, downloads, streams, oidc });
    let with_session = Router::new()
        .route("/", get(find::form))
        .route("/find", post(find::search))
        .route("/purpose", get(sign_in::purpose_form).post(sign_in::set_purpose))
        .route("/loans", get(loans::list))
        .route("/loans/{id}", get(loan_page::show))
        .route("/loans/{id}/end", post(actions::end))
        .route("/loans/{id}/link", post(actions::link))
        .route("/loans/{id}/poll", post(actions::poll))
        .route("/loans/{id}/balance", post(actions::mark_for_balance))
        .route("/library", get(library::show))
        .route("/library.csv", get(library::download_csv))
        .route("/library.xlsx", get(library::download_xlsx))
        .route("/library/availability", post(library::query_availability))
        .route("/why", get(why::forms).post(why::explain))
        .route("/why/{id}", get(why::recorded))
        .route("/now", get(now::show))
        .route("/problems", get(problems::show))
        .route("/runbook", get(runbook::show))
        .route("/trail", get(trail_page::list))
        .route("/help", get(help::show))
        .route("/sign-out", post(sign_in::sign_out))
        .fallback(async || Failure::NotFound)
        .layer(middleware::from_fn_with_state(low_priority, visit::give_way))
        .layer(middleware::from_fn(visit::check_form))
        .layer(middleware::from_fn(roles::check))
        .layer(middleware::from_fn(visit::require_session));
    let open = Router::new()
        .route("/sign-in", get(sign_in::form).post(sign_in::sign_in))
        .route(oidc::START, get(oidc::start))
        // HEAD would sign in, too.
        .route(
            oidc::CALLBACK,
            get(oidc::callback).head(async || http::StatusCode::METHOD_NOT_ALLOWED),
        )
        .route("/preferences", post(preferences::set))
        .route("/now/stream", get(live::now))
        .route("/problems/stream", get(live::problems))
        .layer(middleware::from_fn(visit::check_open_form));
    Router::new()
        .merge(with_session)
        .merge(open)
        .layer(middleware::from_fn_with_state(console.clone(), visit::enter))
        .route("/assets/{name}", get(files::serve))
        .layer(middleware::map_response(visit::protect))
        .with_state(console)
}
