//! `GET /api/v1/status`: one look at this gate, for `loangate status` and `loangate top`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::counts::{self, Counts, Current};
use super::problems::AdminProblem;
use crate::circulation::RunningBalance;
use crate::ledger::LedgerError;
use crate::monitor::{Activity, CallRates, Status};
use crate::problem;

/// The deadline of reading the ledger. Without an answer, its counts are left out.
const LEDGER_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// Whether to count what is in the ledger: `true` (the default) or `false`.
    ledger: bool,
}

impl Default for StatusQuery {
    fn default() -> StatusQuery {
        StatusQuery { ledger: true }
    }
}

/// One look at a gate.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GateStatus)]
pub(super) struct GateStatus {
    /// The machine and the first port of the public listener.
    node: String,
    /// The version of the program.
    version: &'static str,
    /// The id of the process.
    process: u32,
    /// When the gate started.
    #[schema(value_type = String, format = DateTime)]
    started: Timestamp,
    /// The URL of links, and that of the admin listener.
    public_url: String,
    admin_url: String,
    /// The addresses of the public listener.
    public_addresses: Vec<String>,
    /// How well readers are served.
    serving: Status,
    /// The number of problems at all gates.
    problems: usize,
    /// The number of pauses of lending; absent without an answer of the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    pauses: Option<usize>,
    /// Loans that are open, of all gates; absent without an answer of the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    loans: Option<usize>,
    /// The gates that use the ledger, this one included.
    gates: usize,
    /// When the first certificate expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime, required = false)]
    certificate_expires: Option<Timestamp>,
    /// How far the balance is that runs at this gate; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    balance: Option<RunningBalance>,
    /// The last minute; absent if the gate has just started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    last_minute: Option<LastMinute>,
    /// What the gate has counted since its start.
    counts: Counts,
    /// What the gate has at this moment.
    current: Current,
}

/// What a gate did in the last minute.
#[derive(Debug, Serialize, ToSchema)]
struct LastMinute {
    /// Loans that Bokbasen accepted.
    loans: f64,
    /// Answered requests.
    requests: f64,
    /// Refused requests.
    refusals: f64,
    /// The share of requests under a loan whose decision was cached, from 0 to 1; absent without
    /// such requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, required = false)]
    hit_rate: Option<f64>,
    /// Body bytes sent to readers, for each second.
    bytes_per_second: f64,
    /// Response bodies in progress now.
    streams: u64,
    /// Calls to Bokbasen.
    lending: Calls,
    /// Requests to each storage.
    origins: BTreeMap<String, Calls>,
    /// Ends that Bokbasen has not acknowledged now, and the age of the oldest one in seconds.
    ends_waiting: u64,
    oldest_end: u64,
}

/// Calls of another system in a minute.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusCalls)]
struct Calls {
    answered: f64,
    failed: f64,
}

/// One look at this gate: what it is, how well it serves, and what it does.
#[utoipa::path(get, path = "/api/v1/status", tag = "support", operation_id = "gate_status",
    params(StatusQuery), responses(
    (status = 200, description = "What the gate is and does", body = GateStatus),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
))]
pub(super) async fn status(
    State(app): State<Arc<App>>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Json<GateStatus>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let ledger = &app.parts.ledger;
    let counting = async {
        let loans = ledger.count_accepted().await?;
        Ok::<_, LedgerError>((loans, ledger.pauses().await?.len()))
    };
    let (loans, pauses) = match query.ledger {
        true => timeout(LEDGER_DEADLINE, counting).await.ok().and_then(Result::ok).unzip(),
        false => (None, None),
    };
    let watched = app.parts.monitor.problems();
    let unlisted: usize = watched.gates.iter().map(|gate| gate.unlisted).sum();
    let own = watched.gates.into_iter().find(|gate| gate.is_own);
    let (counts, current) = counts::read(&app.parts);
    Ok(Json(GateStatus {
        node: watched.node,
        version: env!("CARGO_PKG_VERSION"),
        process: std::process::id(),
        started: app.started,
        public_url: app.parts.public_base.clone(),
        admin_url: app.url.clone(),
        public_addresses: app.parts.public_addresses.iter().map(|each| each.to_string()).collect(),
        serving: app.parts.monitor.status(),
        problems: watched.problems.len() + unlisted,
        pauses,
        loans,
        gates: 1 + ledger.other_processes(),
        certificate_expires: (app.parts.certificate_expiry)(),
        balance: app.parts.circulation.running_balance(),
        last_minute: own.and_then(|gate| gate.recent).map(last_minute),
        counts,
        current,
    }))
}

fn last_minute(activity: Activity) -> LastMinute {
    let Activity { hits, misses, .. } = activity;
    let decided = hits.saturating_add(misses);
    let origins = activity.origins.into_iter();
    LastMinute {
        loans: activity.loans,
        requests: activity.requests,
        // `sum` of none is -0.
        refusals: activity.refusals.values().fold(0.0, |sum, rate| sum + rate),
        hit_rate: (decided > 0).then(|| hits as f64 / decided as f64),
        bytes_per_second: activity.bytes,
        streams: activity.streams,
        lending: calls(activity.lending),
        origins: origins.map(|(name, rates)| (name, calls(rates))).collect(),
        ends_waiting: activity.ends_waiting,
        oldest_end: activity.oldest_end,
    }
}

fn calls(rates: CallRates) -> Calls {
    Calls { answered: rates.answered, failed: rates.failed }
}
