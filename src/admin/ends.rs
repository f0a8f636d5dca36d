//! End of a loan by support: `DELETE /api/v1/loans/{id}?reason=…`.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::accesses::Accessor;
use super::loans::find;
use super::problems::AdminProblem;
use crate::console::checked_reason;
use crate::problem;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EndQuery {
    /// The reason, for the loan's history: up to 200 characters without control characters.
    #[param(
        required,
        value_type = String,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001F\\u007F-\\u009F]*$"
    )]
    reason: Option<String>,
}

/// Ends a loan. Access stops before the response; the end is sent to Bokbasen afterwards.
/// Idempotent.
#[utoipa::path(delete, path = "/api/v1/loans/{id}", operation_id = "support_end", tag = "support",
    params(("id" = String, Path), EndQuery), responses(
    (status = 202, description = "Access has stopped"),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn end(
    State(app): State<Arc<App>>,
    by: Accessor,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<EndQuery>, QueryRejection>,
) -> Result<StatusCode, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let reason = query.reason.filter(|reason| !reason.trim().is_empty());
    let reason = reason.ok_or(AdminProblem::malformed(
        "An end needs a reason, for the loan's history. Write ?reason=…",
    ))?;
    let reason = checked_reason(&reason).ok_or(AdminProblem::malformed(
        "The reason is longer than 200 characters, or has control or invisible characters.",
    ))?;
    let loan = find(&app, id).await?;
    let by = Accessor { why: Some(reason.as_str().into()), ..by };
    app.record_access(&by, "end-loan", Some(loan.id.library()), Some(loan.id.into())).await?;
    match app.parts.gate.revoke_loan(loan.id, Some(reason)).await? {
        true => Ok(StatusCode::ACCEPTED),
        false => Err(AdminProblem::NO_SUCH_LOAN),
    }
}
