//! Balancing the books: `POST /api/v1/balance`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::App;
use super::loans::{read, unreadable};
use super::refused::Refused;
use crate::circulation::{BalanceError, Report};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Asked {
    since: Option<String>,
}

/// Compares the ledger with Bokbasen's books, repairs what a rule allows, and reports.
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
