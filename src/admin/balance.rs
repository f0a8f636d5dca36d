//! Balancing the books: `POST /api/v1/balance` runs a balance, `GET` shows the findings of the last
//! one.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::loans::{read, unreadable};
use super::problems::Refused;
use crate::circulation::{BalanceError, Report};
use crate::problem;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Loans that were begun earlier are not looked at; else all that can live, and those of the
    /// last 60 days.
    #[param(format = DateTime)]
    since: Option<String>,
}

/// Compares the ledger with Bokbasen's books, repairs what a rule allows, and reports.
#[utoipa::path(post, path = "/api/v1/balance", tag = "support", params(Asked), responses(
    (status = 200, description = "What differed, and what was done about it", body = Report),
    (status = 400, response = inline(problem::Refused)), (status = 401, response = inline(problem::Refused)),
    (status = 409, response = inline(problem::Refused)), (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn balance(
    State(app): State<Arc<App>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Report>, Refused> {
    let Query(asked) = asked.map_err(|rejection| Refused::malformed(rejection.body_text()))?;
    let since = read("since", asked.since, "a time like 2026-01-31T00:00:00Z")?;
    // Whoever hangs up does not stop it half-way.
    let circulation = app.parts.circulation.clone();
    let balanced = tokio::spawn(async move { circulation.balance(since).await });
    match balanced.await {
        Ok(Ok(report)) => Ok(Json(report)),
        Ok(Err(BalanceError::UnderWay)) => Err(Refused::UNDER_WAY),
        Ok(Err(BalanceError::Ledger(error))) => Err(unreadable(error)),
        Err(_) => Err(Refused::LEDGER),
    }
}

/// The report of the last balance of this process, by night or on demand.
#[utoipa::path(get, path = "/api/v1/balance", tag = "support", responses(
    (status = 200, description = "What differed, and what was done about it", body = Report),
    (status = 401, response = inline(problem::Refused)), (status = 404, response = inline(problem::Refused)),
))]
pub(super) async fn last(State(app): State<Arc<App>>) -> Result<Json<Report>, Refused> {
    let last = app.parts.circulation.last_balance();
    last.map(|report| Json(report.as_ref().clone())).ok_or(Refused::NO_BALANCE)
}
