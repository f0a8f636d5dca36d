//! Pauses of lending: `POST /api/v1/lending/pause` and `…/resume`, and their list.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::accesses::Accessor;
use super::links::library_of;
use super::loans::ledger_error;
use super::problems::AdminProblem;
use super::request_body;
use crate::console::checked_reason;
use crate::ledger::{Pause, PauseOrigin};
use crate::loan::LibraryId;
use crate::problem;

/// Which lending to pause.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseRequest {
    /// The ISIL of the library, unless `all` is true.
    library: Option<String>,
    /// Whether to pause all libraries.
    #[serde(default)]
    all: bool,
    /// Why, for those who ask: up to 200 characters without control characters.
    reason: String,
}

/// Which lending to resume.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeRequest {
    /// The ISIL of the library, unless `all` is true.
    library: Option<String>,
    /// Whether to end the pause of all libraries. Those of single libraries stay.
    #[serde(default)]
    all: bool,
}

/// The pauses of lending.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pauses {
    /// Whether lending of all libraries is paused.
    all: bool,
    /// Each pause, that of all libraries first.
    pauses: Vec<PauseView>,
}

/// A pause of lending.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pause)]
struct PauseView {
    /// The ISIL of the library; absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    library: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Who paused it.
    who: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    why: Option<String>,
}

/// Pauses lending: no loan begins until it is resumed. Loans that have begun go on, and ends are
/// sent. A pause that is there already stays as it is. Idempotent.
#[utoipa::path(post, path = "/api/v1/lending/pause", tag = "support",
    request_body = PauseRequest, responses(
    (status = 200, description = "Lending is paused", body = Pauses),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<Json<Pauses>, AdminProblem> {
    let PauseRequest { library, all, reason } = request_body::parse(&body)?;
    let library = which(&app, library.as_deref(), all).await?;
    let reason = checked_reason(&reason).ok_or(AdminProblem::malformed(
        "A pause needs a reason: up to 200 characters without control or invisible characters.",
    ))?;
    let by = Accessor { why: Some(reason.as_str().into()), ..by };
    app.record_access(&by, "pause-lending", library, None).await?;
    let since = app.parts.clock.now();
    let origin = PauseOrigin { since, who: by.who.to_string(), why: Some(reason) };
    app.parts.ledger.pause_lending(&Pause { library, origin }).await.map_err(ledger_error)?;
    list_of(&app).await
}

/// Resumes lending of one library, or ends the pause of all. Idempotent.
#[utoipa::path(post, path = "/api/v1/lending/resume", tag = "support",
    request_body = ResumeRequest, responses(
    (status = 200, description = "The pauses that are left", body = Pauses),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<Json<Pauses>, AdminProblem> {
    let ResumeRequest { library, all } = request_body::parse(&body)?;
    let library = which(&app, library.as_deref(), all).await?;
    app.record_access(&by, "resume-lending", library, None).await?;
    app.parts.ledger.resume_lending(library).await.map_err(ledger_error)?;
    list_of(&app).await
}

/// Returns the pauses of lending.
#[utoipa::path(get, path = "/api/v1/lending", tag = "support", responses(
    (status = 200, description = "The pauses", body = Pauses),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn pauses(State(app): State<Arc<App>>) -> Result<Json<Pauses>, AdminProblem> {
    list_of(&app).await
}

/// Returns the library; none for all. One that the ledger knows by other letters is a mistake: a
/// pause of it would pause nothing.
async fn which(
    app: &App,
    library: Option<&str>,
    all: bool,
) -> Result<Option<LibraryId>, AdminProblem> {
    let library = match (library, all) {
        (Some(library), false) => library_of(library)?,
        (None, true) => return Ok(None),
        _ => {
            return Err(AdminProblem::malformed(
                "It must be clear what is meant. Write library, or all: true, and not both.",
            ));
        }
    };
    let known = app.parts.ledger.libraries().await.map_err(ledger_error)?;
    let same = |known: &&LibraryId| known.as_str().eq_ignore_ascii_case(library.as_str());
    match known.iter().find(same) {
        Some(known) if *known != library => Err(AdminProblem::malformed(format!(
            "The ledger has no loans of {library}, but of {known}. Write that."
        ))),
        _ => Ok(Some(library)),
    }
}

async fn list_of(app: &App) -> Result<Json<Pauses>, AdminProblem> {
    let pauses = app.parts.ledger.pauses().await.map_err(ledger_error)?;
    let all = pauses.iter().any(|pause| pause.library.is_none());
    let view = |Pause { library, origin }: Pause| PauseView {
        library: library.map(|library| library.to_string()),
        since: origin.since,
        who: origin.who,
        why: origin.why,
    };
    Ok(Json(Pauses { all, pauses: pauses.into_iter().map(view).collect() }))
}
