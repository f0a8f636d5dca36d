//! Ending a loan for support: `DELETE /api/v1/loans/{id}?reason=…`.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::loans::unreadable_path;
use super::problems::Refused;
use crate::problem;

/// The longest reason, in characters.
const LONGEST: usize = 200;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Why, in words for the history: up to 200 characters, none of them a control character.
    #[param(
        required,
        value_type = String,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001F\\u007F-\\u009F]*$"
    )]
    reason: Option<String>,
}

/// Ends a loan: access stops before this answers, and the end is on its way to Bokbasen.
/// Idempotent.
#[utoipa::path(delete, path = "/api/v1/loans/{id}", operation_id = "support_end", tag = "support",
    params(("id" = String, Path), Asked), responses(
    (status = 202, description = "Access has stopped"),
    (status = 400, response = inline(problem::Refused)), (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)), (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn end(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<StatusCode, Refused> {
    let Query(asked) = asked.map_err(|rejection| Refused::malformed(rejection.body_text()))?;
    let reason = asked.reason.filter(|reason| !reason.trim().is_empty());
    let reason = reason.ok_or(Refused::malformed(
        "An end needs a reason, for the loan's history. Write ?reason=…",
    ))?;
    if reason.chars().count() > LONGEST || reason.chars().any(char::is_control) {
        return Err(Refused::malformed(
            "The reason is longer than 200 characters, or has control characters.",
        ));
    }
    let id = id.map_err(unreadable_path)?.parse().map_err(|_| Refused::NO_SUCH_LOAN)?;
    match app.parts.gate.revoke_loan(id, Some(reason)).await? {
        true => Ok(StatusCode::ACCEPTED),
        false => Err(Refused::NO_SUCH_LOAN),
    }
}
