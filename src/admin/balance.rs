//! Balance of the ledger with Bokbasen: `POST /api/v1/balance` runs one, `GET` returns the last
//! report.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::accesses::Accessor;
use super::loans::{ledger_error, read};
use super::problems::AdminProblem;
use crate::circulation::{BalanceError, Report};
use crate::problem;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BalanceQuery {
    /// Only loans that began at this time or later. The default is every loan that can still be
    /// live, and all loans of the last 60 days.
    #[param(format = DateTime)]
    since: Option<String>,
}

/// Compares the ledger with Bokbasen's loans, repairs differences where a rule allows it, and
/// returns a report.
#[utoipa::path(post, path = "/api/v1/balance", tag = "support", params(BalanceQuery), responses(
    (status = 200, description = "What differed, and what was done about it", body = Report),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 409, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn balance(
    State(app): State<Arc<App>>,
    by: Accessor,
    query: Result<Query<BalanceQuery>, QueryRejection>,
) -> Result<Json<Report>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let since = read("since", query.since, "a time like 2026-01-31T00:00:00Z")?;
    app.record_access(&by, "run-balance", None, None).await?;
    // Spawned, so that a balance completes even if the client disconnects.
    let circulation = app.parts.circulation.clone();
    let balanced = tokio::spawn(async move { circulation.balance(since).await });
    match balanced.await {
        Ok(Ok(report)) => Ok(Json(report)),
        Ok(Err(BalanceError::UnderWay)) => Err(AdminProblem::UNDER_WAY),
        Ok(Err(BalanceError::Ledger(error))) => Err(ledger_error(error)),
        Err(_) => Err(AdminProblem::LEDGER),
    }
}

/// Returns the report of this process's last balance, scheduled or on demand.
#[utoipa::path(get, path = "/api/v1/balance", tag = "support", responses(
    (status = 200, description = "What differed, and what was done about it", body = Report),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn last(
    State(app): State<Arc<App>>,
    by: Accessor,
) -> Result<Json<Report>, AdminProblem> {
    app.record_access(&by, "show-balance", None, None).await?;
    let last = app.parts.circulation.last_balance();
    last.map(|report| Json(report.as_ref().clone())).ok_or(AdminProblem::NO_BALANCE)
}
