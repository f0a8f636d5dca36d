//! The check behind `/readyz`, which `app` builds.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::App;

/// The result of a readiness check: sentences about what does not work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Missing {
    /// Failures that affect all readers; the gate is not ready.
    pub needed: Vec<Cow<'static, str>>,
    /// Failures that affect some readers only; the gate stays ready.
    pub wanted: Vec<Cow<'static, str>>,
}

type CheckFuture = Pin<Box<dyn Future<Output = Missing> + Send>>;

/// The readiness check behind `/readyz`. The gate is not ready only if no reader can be served. If
/// Bokbasen is down, a load balancer must not remove every gate: readers with loans still need one.
pub(crate) struct Readiness(Box<dyn Fn() -> CheckFuture + Send + Sync>);

impl Readiness {
    /// Creates a readiness check from a function.
    pub(crate) fn new<F>(check: impl Fn() -> F + Send + Sync + 'static) -> Readiness
    where
        F: Future<Output = Missing> + Send + 'static,
    {
        Readiness(Box::new(move || Box::pin(check())))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readiness")
    }
}

/// Answers with what is missing, and 503 if no reader can be served.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let Missing { needed, wanted } = (app.parts.readiness.0)().await;
    let ready = needed.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let missing = [needed, wanted].concat();
    (status, Json(serde_json::json!({ "ready": ready, "missing": missing }))).into_response()
}
