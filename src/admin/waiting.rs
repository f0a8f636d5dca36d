//! The admin listener of a gate that cannot start yet, because it waits for its ledger.
//!
//! Only `app` uses it, before [`super::Admin`]. It has no API: `/readyz` says what is missing, so a
//! load balancer and an operator see a gate that waits, and not a gate that is gone.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio_util::task::TaskTracker;

use super::client_addresses::Peers;
use super::listen::{Shared, Stopping, TlsSource};
use super::sockets::Sockets;
use super::{AdminError, Settings, listen};

/// A running listener. Dropping it cancels all its tasks.
#[derive(Debug)]
pub(crate) struct Waiting {
    tasks: TaskTracker,
    stopping: Stopping,
}

impl Waiting {
    /// Serves requests from sockets. `/readyz` reports `missing`, a phrase without a secret.
    ///
    /// # Errors
    /// Returns [`AdminError`] if a socket cannot be used.
    pub(crate) fn start(
        settings: &Settings,
        sockets: Sockets,
        tls: TlsSource,
        missing: &'static str,
    ) -> Result<Waiting, AdminError> {
        let (_, listeners) = sockets.listeners().map_err(AdminError)?;
        let tls = settings.tls.then_some(tls);
        let router = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(async move || unready(missing)))
            .fallback(async move || unready(missing));
        let waiting = Waiting { tasks: TaskTracker::new(), stopping: Stopping::default() };
        let (tasks, stopping) = (waiting.tasks.clone(), waiting.stopping.clone());
        let shared = Shared { tls, router, peers: Peers::default(), tasks, stopping };
        for listener in listeners {
            waiting.tasks.spawn(listen::accept(Arc::new(listener), shared.clone()));
        }
        Ok(waiting)
    }

    /// Closes every connection and releases the sockets.
    pub(crate) async fn stop(self) {
        self.stopping.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stopping.stop();
    }
}

fn unready(missing: &'static str) -> Response {
    let body = serde_json::json!({ "ready": false, "missing": [missing] });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}
