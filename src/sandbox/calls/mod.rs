//! Bokbasen's calls over HTTP, one function each.
//!
//! The server routes requests here, and the calls use [`App`]. Each call has the same order:
//! authentication, parsing, faults, and then the call itself.

mod loans;
mod login;
mod reports;
mod titles;

use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::App;
use super::error_response::Rejected;

/// The routes of Bokbasen's API.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/oauth/token", post(login::token))
        .route("/v1/tickets", post(login::ticket))
        .route("/v1/tickets/{ticket}", delete(login::log_out))
        .route("/v1/license-types", get(titles::licence_types))
        .route("/v1/libraries/{isil}/availability", get(titles::availability))
        .route("/v1/libraries/{isil}/inventory", get(titles::inventory))
        .route("/v1/libraries/{isil}/titles/{isbn}/licenses", get(titles::licences))
        .route("/v1/loans", post(loans::begin).get(loans::list))
        .route("/v1/loans/{loan}", get(loans::loan))
        .route("/v1/loans/{loan}/return", post(loans::return_loan))
        .route("/v1/loans/{loan}/cancel", post(loans::cancel))
        .route("/reporting/loan/v1", post(reports::report))
}

/// Returns 404, for an undocumented path.
pub(super) async fn no_such_path() -> Rejected {
    Rejected::not_found("NO_SUCH_PATH", "There is nothing at this address.")
}

/// Returns 405, for an undocumented method.
pub(super) async fn no_such_method() -> Rejected {
    Rejected::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "METHOD_NOT_ALLOWED",
        "This address does not know the method.",
    )
}

/// Returns the media type of a body, without its parameters.
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).unwrap_or("");
    essence.trim().to_ascii_lowercase()
}

/// Parses a JSON body.
fn json<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Rejected> {
    if media_type(headers) != "application/json" {
        return Err(Rejected::malformed("The body must be application/json."));
    }
    serde_json::from_slice(body).map_err(|error| Rejected::malformed_body(&error))
}

/// Builds a JSON response.
fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    (status, Json(body)).into_response()
}
