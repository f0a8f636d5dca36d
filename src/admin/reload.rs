//! `POST /api/v1/reload` reloads the configuration, as SIGHUP does, and returns what changed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::problems::AdminProblem;
use crate::problem;
use crate::reload::{NotReloaded, Reloaded, WrongKey};

/// A problem document with the mistakes of the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WrongConfiguration {
    #[serde(rename = "type")]
    #[schema(example = "configuration-wrong")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// The mistakes.
    mistakes: Vec<WrongKey>,
}

/// Reloads the configuration. A mistake changes nothing.
#[utoipa::path(post, path = "/api/v1/reload", tag = "support", responses(
    (status = 200, description = "What changed, and what needs a restart", body = Reloaded),
    (status = 401, response = inline(problem::Refused)),
    (status = 409, response = inline(problem::Refused)),
    (status = 422, description = "The mistakes; nothing has changed", body = WrongConfiguration,
        content_type = "application/problem+json"),
))]
pub(super) async fn reload(State(app): State<Arc<App>>) -> Response {
    match (app.parts.reload)().await {
        Ok(reloaded) => Json(reloaded).into_response(),
        Err(NotReloaded::UnderWay) => AdminProblem::RELOADING.into_response(),
        Err(NotReloaded::Wrong(mistakes)) => {
            let wrong = WrongConfiguration {
                kind: "configuration-wrong",
                title: "Configuration wrong",
                status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
                detail: "The configuration has mistakes, so the one before stays in use. Correct \
                         them and reload again."
                    .to_owned(),
                mistakes,
            };
            let mut response = (StatusCode::UNPROCESSABLE_ENTITY, Json(wrong)).into_response();
            let kind = http::HeaderValue::from_static("application/problem+json");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
    }
}
