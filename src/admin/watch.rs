//! What the gate's own watch has found: `GET /api/v1/problems`, `GET /api/v1/now`, and
//! `/status.json` for everybody.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::problems::AdminProblem;
use crate::monitor::{Gate, Point, Problem, Problems, Status, Window};
use crate::problem;

/// The problems of all gates of a cluster that need a person now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problems)]
pub(super) struct ShownProblems {
    /// When the gate last looked.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The gate that answered.
    node: String,
    /// The live gates of the cluster, the one that answered first.
    nodes: Vec<ShownNode>,
    /// The problems, the worst first. One that all gates have in common is listed once.
    problems: Vec<Problem>,
}

/// A live gate of the cluster.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProblemsNode)]
struct ShownNode {
    /// Its machine and the first port of its public listener.
    node: String,
    /// The number of its problems.
    problems: usize,
    /// Those of them that are not listed, or of a kind that only a newer version knows. Ask the
    /// gate itself.
    unlisted: usize,
}

/// The problems that need a person now, the worst first.
#[utoipa::path(get, path = "/api/v1/problems", tag = "support", responses(
    (status = 200, description = "What is wrong, and what to do", body = ShownProblems),
    (status = 401, response = inline(problem::Refused)),
))]
pub(super) async fn problems(State(app): State<Arc<App>>) -> Json<ShownProblems> {
    let Problems { at, node, gates, problems } = app.parts.monitor.problems();
    let nodes = gates.into_iter().map(|Gate { node, problems, unlisted, .. }| ShownNode {
        node,
        problems,
        unlisted,
    });
    let problems = problems.into_iter().map(|(_, problem)| problem).collect();
    Json(ShownProblems { at, node, nodes: nodes.collect(), problems })
}

/// How well readers are served, for the integrator's own status page. It needs no token, has no
/// private data, and may be read by any web page and stored for ten seconds.
#[utoipa::path(get, path = "/status.json", tag = "status", responses(
    (status = 200, description = "How well readers are served, and since when", body = Status),
))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    let fields = [(ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (CACHE_CONTROL, "public, max-age=10")];
    (fields, Json(app.parts.monitor.status())).into_response()
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NowQuery {
    /// `hour` (the default) or `day`.
    #[param(pattern = "^(hour|day)$")]
    window: Option<String>,
}

/// The last hour or day of one gate.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Now)]
pub(super) struct ShownNow {
    /// The gate that answered. Each gate of a cluster has its own series.
    node: String,
    /// The time from one point to the next, in seconds.
    resolution: u64,
    /// The points, the oldest first.
    points: Vec<Point>,
}

/// What the gate did in the last hour or day.
#[utoipa::path(get, path = "/api/v1/now", tag = "support", params(NowQuery), responses(
    (status = 200, description = "Rates and states, the oldest first", body = ShownNow),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
))]
pub(super) async fn now(
    State(app): State<Arc<App>>,
    query: Result<Query<NowQuery>, QueryRejection>,
) -> Result<Json<ShownNow>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let window = match query.window.as_deref() {
        None | Some("hour") => Window::Hour,
        Some("day") => Window::Day,
        Some(_) => {
            return Err(AdminProblem::malformed("window cannot be read. Write hour or day."));
        }
    };
    let (node, resolution, points) = app.parts.monitor.series(window);
    Ok(Json(ShownNow { node, resolution: resolution.as_secs(), points }))
}
