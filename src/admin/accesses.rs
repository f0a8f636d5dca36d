//! The access trail: who of the staff looked at loans or acted on them, and why.
//!
//! Each handler that shows a borrower's loans, or acts on one, first records that in the ledger. If
//! the access cannot be recorded, it shows and does nothing. An end of a loan loses nothing by it:
//! it needs the ledger, too. `GET /api/v1/accesses` lists what was recorded.

#[expect(unused_imports, reason = "utoipa's macro reads it")]
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, State};
use http::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::loans::{ledger_error, read};
use super::problems::AdminProblem;
use crate::ledger::{Access, AccessFilter, AccessTarget, RecordedAccess};
use crate::loan::LibraryId;
use crate::lock::lock;
use crate::problem;

/// The header field with the reason of a request with the admin token.
const REASON: &str = "access-reason";
/// The maximum number of accesses that are being recorded. Readers' writes share the ledger.
const CONCURRENCY: usize = 16;
/// How long an access may take to be recorded, in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// A flood of looks grows the ledger by at most one access in this time, beyond the burst.
const PACE: Duration = Duration::from_millis(5);
const BURST: u32 = 1000;
/// The default and the maximum number of accesses in a list.
const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// Who sent a request, in which role, and why. The guard of the routes adds it to each request.
#[derive(Clone, Debug)]
pub(super) struct Accessor {
    /// The name of the person or of the credential.
    pub(super) who: Arc<str>,
    /// The role in which the person acts.
    pub(super) role: &'static str,
    /// The reason that the person gave.
    pub(super) why: Option<Arc<str>>,
}

impl Accessor {
    /// Returns the accessor of a request with the admin token.
    pub(super) fn with_token(headers: &HeaderMap) -> Accessor {
        let why = headers.get(REASON).map(|why| String::from_utf8_lossy(why.as_bytes()).into());
        Accessor { who: "admin token".into(), role: "admin", why }
    }
}

impl FromRequestParts<Arc<App>> for Accessor {
    type Rejection = AdminProblem;

    /// Rejects a request that no guard has passed: nobody would be named in the trail.
    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Accessor, AdminProblem> {
        parts.extensions.get().cloned().ok_or(AdminProblem::UNAUTHENTICATED)
    }
}

/// Limits how fast accesses are recorded.
#[derive(Debug)]
pub(super) struct AccessLimits {
    concurrency: Semaphore,
    /// When the next access may begin, if it had to wait for all before.
    next: Mutex<Instant>,
}

impl Default for AccessLimits {
    fn default() -> AccessLimits {
        AccessLimits { concurrency: Semaphore::new(CONCURRENCY), next: Mutex::new(Instant::now()) }
    }
}

impl AccessLimits {
    /// Returns how long this access waits for its turn; none if that exceeds [`DEADLINE`]. Such an
    /// access takes no turn, or a flood that is refused would also refuse accesses long after it.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let mut next = lock(&self.next);
        let following = (*next).max(now) + PACE;
        let wait = following.saturating_duration_since(now + PACE * BURST);
        (wait <= DEADLINE).then(|| {
            *next = following;
            wait
        })
    }
}

impl App {
    /// Records that a member of the staff does `what`, a slug. Call it before anything is shown or
    /// done.
    ///
    /// # Errors
    /// [`AdminProblem::UNRECORDED`]; nothing may be shown or done then. The access may have been
    /// recorded nevertheless.
    pub(super) async fn record_access(
        &self,
        by: &Accessor,
        what: &'static str,
        library: Option<LibraryId>,
        target: Option<AccessTarget>,
    ) -> Result<(), AdminProblem> {
        let access = Access::new(&by.who, by.role, what).of_library(library);
        self.record(access.to(target).because(by.why.as_deref())).await
    }

    /// As [`App::record_access`], for an access that is complete.
    pub(super) async fn record(&self, access: Access) -> Result<(), AdminProblem> {
        let what = access.what.clone();
        let wait = self.access_limits.wait(Instant::now());
        let recording = async {
            sleep(wait?).await;
            // The semaphore is never closed.
            let _permit = self.access_limits.concurrency.acquire().await.ok();
            Some(self.parts.ledger.record_access(access).await)
        };
        let why = match timeout(DEADLINE, recording).await {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(error))) => error.to_string(),
            Ok(None) => "too many accesses wait to be recorded".to_owned(),
            Err(_) => format!("no response within {} s", DEADLINE.as_secs()),
        };
        tracing::error!(error = why, %what, "an access could not be recorded, and was refused");
        Err(AdminProblem::UNRECORDED)
    }
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccessesQuery {
    /// Only accesses that concern this library, by its ISIL.
    #[param(max_length = 16, pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$")]
    library: Option<String>,
    /// Only accesses at this time or later.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Only accesses before this time.
    #[param(format = DateTime)]
    before: Option<String>,
    /// The most accesses, from 1 to 1000; the default is 100.
    #[param(value_type = u32, minimum = 1, maximum = 1000)]
    limit: Option<String>,
}

/// A list of accesses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accesses {
    accesses: Vec<ShownAccess>,
}

/// An access of the staff.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Access)]
pub(super) struct ShownAccess {
    #[schema(value_type = String, format = DateTime)]
    pub(super) at: Timestamp,
    /// The person, or the credential.
    pub(super) who: String,
    pub(super) role: String,
    /// A slug of what was shown or done, like `show-loan`.
    pub(super) what: String,
    /// The ISIL of the library; none if it concerned all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(super) library: Option<String>,
    /// What it concerned: one of `borrower` (a pseudonym), `loan`, `isbn` and `request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = BTreeMap<String, String>, required = false)]
    pub(super) target: Option<AccessTarget>,
    /// The reason that the person gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(super) why: Option<String>,
}

impl From<RecordedAccess> for ShownAccess {
    fn from(RecordedAccess { at, access, .. }: RecordedAccess) -> ShownAccess {
        let library = access.library().map(str::to_owned);
        let Access { who, role, what, target, why, .. } = access;
        ShownAccess { at, who, role, what: what.into_owned(), library, target, why }
    }
}

/// Accesses of the staff to loans, the newest first.
#[utoipa::path(get, path = "/api/v1/accesses", tag = "support", params(AccessesQuery), responses(
    (status = 200, description = "Who looked at loans or acted on them", body = Accesses),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: Accessor,
    query: Result<Query<AccessesQuery>, QueryRejection>,
) -> Result<Json<Accesses>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let filter = query.filter()?;
    app.record_access(&by, "list-accesses", filter.library, None).await?;
    let accesses = app.parts.ledger.accesses(&filter).await.map_err(ledger_error)?;
    Ok(Json(Accesses { accesses: accesses.into_iter().map(ShownAccess::from).collect() }))
}

impl AccessesQuery {
    fn filter(self) -> Result<AccessFilter, AdminProblem> {
        let limit = read("limit", self.limit, "a number from 1 to 1000")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(AdminProblem::malformed(
                "limit is out of bounds. Write a number from 1 to 1000.",
            ));
        }
        Ok(AccessFilter {
            library: read("library", self.library, "an ISIL like NO-0301000")?,
            since: read("since", self.since, "a time like 2026-01-31T00:00:00Z")?,
            before: read("before", self.before, "a time like 2026-01-31T00:00:00Z")?,
            after: None,
            limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn flood_is_paced_after_a_burst() {
        let (limits, now) = (AccessLimits::default(), Instant::now());
        let waits: Vec<Duration> = (0..BURST + 100).map(|_| limits.wait(now).unwrap()).collect();
        assert!(waits[..BURST as usize].iter().all(Duration::is_zero));
        assert_eq!(waits.last(), Some(&(PACE * 100)));
        // The burst is available again after the time that it takes at this pace.
        let later = now + PACE * (BURST + 100);
        assert!((0..BURST).all(|_| limits.wait(later) == Some(Duration::ZERO)));
        assert_eq!(limits.wait(later), Some(PACE));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_access_takes_no_turn() {
        let (limits, now) = (AccessLimits::default(), Instant::now());
        let granted = (0..100_000).map_while(|_| limits.wait(now)).count();
        assert_eq!(granted, BURST as usize + 2000);
        assert!((0..100_000).all(|_| limits.wait(now).is_none()));
        assert_eq!(limits.wait(now + PACE), Some(DEADLINE));
    }
}
