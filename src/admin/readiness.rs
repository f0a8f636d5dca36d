//! The checks behind `/healthz` and `/readyz`, which `app` builds.

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

type AliveFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

/// The check behind `/healthz`: whether this process responds, whatever it can serve. One that does
/// not should be restarted.
pub(crate) struct Liveness(Box<dyn Fn() -> AliveFuture + Send + Sync>);

impl Liveness {
    /// Creates a check from a function that returns within seconds.
    pub(crate) fn new<F>(check: impl Fn() -> F + Send + Sync + 'static) -> Liveness
    where
        F: Future<Output = bool> + Send + 'static,
    {
        Liveness(Box::new(move || Box::pin(check())))
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Liveness")
    }
}

/// Answers whether the process responds.
pub(super) async fn alive(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    answer_alive(&app.parts.liveness).await
}

async fn answer_alive(liveness: &Liveness) -> (StatusCode, &'static str) {
    match (liveness.0)().await {
        true => (StatusCode::OK, "ok\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "a thread that serves readers does not respond; restart this gate if it stays\n",
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn process_whose_readers_threads_do_not_respond_is_not_healthy() {
        for (is_alive, status) in [(true, 200), (false, 503)] {
            let answer = answer_alive(&Liveness::new(move || async move { is_alive })).await;
            assert_eq!(answer.0, status);
        }
    }
}
