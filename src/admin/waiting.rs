//! The admin listener of a gate that cannot start yet, because it waits for its ledger.
//!
//! Only `app` uses it, before [`super::Admin`]. It has no API: `/readyz` says what is missing, so a
//! load balancer and an operator see a gate that waits, and not a gate that is gone.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AdminError, Settings, listen};

/// A running listener. Dropping it cancels all its tasks.
#[derive(Debug)]
pub(crate) struct Waiting {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Waiting {
    /// Starts to listen. `/readyz` reports `missing`, a phrase without a secret.
    ///
    /// # Errors
    /// Returns [`AdminError`] if the address cannot be bound.
    pub(crate) async fn start(
        settings: &Settings,
        tls: &ServerConfig,
        missing: &'static str,
    ) -> Result<Waiting, AdminError> {
        let failed = |source| AdminError { address: settings.listen, source };
        let listener = tokio::net::TcpListener::bind(settings.listen).await.map_err(failed)?;
        let tls = settings.tls.then(|| listen::acceptor(tls));
        let router = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(async move || unready(missing)))
            .fallback(async move || unready(missing));
        let waiting = Waiting { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let (tasks, stop) = (waiting.tasks.clone(), waiting.stop.clone());
        waiting.tasks.spawn(listen::accept(Arc::new(listener), tls, router, tasks, stop));
        Ok(waiting)
    }

    /// Closes every connection and releases the address.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn unready(missing: &'static str) -> Response {
    let body = serde_json::json!({ "ready": false, "missing": [missing] });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}
