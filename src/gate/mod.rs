//! The gate: decides whether a reader may have a title, and makes the [`Permit`] for it.
//!
//! The server calls [`Gate::admit`] for every request of a gated file. The gate looks in the cache
//! of decisions. On a miss it joins or starts the flight of that reader and title on the slow
//! runtime. It calls only circulation.
//!
//! Guarantees: a permit is made only for a loan that the ledger durably holds as accepted and that
//! is not yet due. A cache hit does no I/O and never waits.

mod access;
mod cache;
mod end;
mod flight;
mod multi_title;
mod permit;
mod preview;
mod rules;
mod shared_task;
mod title_status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::circulation::{Circulation, LoanOutcome, LoanRequest};
use crate::clock::{self, Clock};
use crate::loan::{Isbn, LoanId, LoanKey};
use crate::problem::Problem;
use crate::process_handles::ProcessHandles;
use crate::telemetry::{LogLimit, Via};

pub use crate::circulation::Availability;
use access::Denied;
use cache::{Decision, Decisions};
use flight::{Flights, Stage};
pub use permit::Permit;
pub use preview::{Preview, Previewed};
use rules::Judged;

/// The settings in `[gate]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a request waits for a decision before it gets `loan-pending`. Reading apps remember
    /// a failure and ignore Retry-After, so an early failure looks like a broken book.
    pub patience: Duration,
    /// How long a refusal holds if Bokbasen sends no time.
    pub refusal_ttl: Duration,
    /// `lending.flights`: maximum number of running flights, one for each reader and title.
    pub flights: usize,
    /// Maximum age of data read from the ledger while its change feed cannot be read. An older
    /// acceptance is read again, and a running stream whose loan cannot be confirmed is aborted.
    pub freshness: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            patience: Duration::from_secs(15),
            refusal_ttl: Duration::from_secs(60),
            flights: 10_000,
            freshness: Duration::from_secs(30),
        }
    }
}

/// A request for a title.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The reader's library and pseudonym, and the title.
    pub key: LoanKey,
    /// Alternative titles: a live loan of one of them opens the file too, but none is ever begun.
    pub alternative_titles: &'a [Isbn],
    /// When the credential was issued; without a time it counts as old.
    pub issued: Option<Timestamp>,
    /// Whether it was issued in the future when it was first seen.
    pub issued_ahead: bool,
    /// Whether this request continues a download. Such a request never begins a loan (invariant 7).
    pub continues: bool,
    /// Whether only an explicit request may begin loans on this route.
    pub explicit: bool,
}

impl Request<'_> {
    /// Returns the request for a loan of this reader and title.
    fn loan_request(&self, key: LoanKey) -> LoanRequest {
        LoanRequest { key, issued: self.issued, issued_ahead: self.issued_ahead }
    }
}

/// The gate's decision on a request.
#[derive(Debug)]
pub struct Answer {
    /// The permit, or the reason why there is none.
    pub permit: Result<Permit, Problem>,
    /// The title whose loan was decisive.
    pub isbn: Isbn,
    /// The source of the decision.
    pub via: Via,
}

/// Retry-After for a loan that is not decided yet.
const PENDING_RETRY_AFTER: Duration = Duration::from_secs(2);

/// The gate. Clones share all state, over all worker threads.
#[derive(Clone, Debug)]
pub struct Gate {
    decisions: Arc<Decisions>,
    flights: Flights,
    clock: Clock,
    settings: Settings,
}

impl Gate {
    /// Creates a gate over this circulation, and subscribes to the ends of loans.
    pub fn new(settings: &Settings, circulation: Circulation, handles: ProcessHandles) -> Gate {
        let ProcessHandles { clock, metrics, tracer, slow } = handles;
        let decisions =
            Arc::new(Decisions::new(clock.clone(), circulation.feed_status(), settings.freshness));
        let running = end::Running { decisions: decisions.clone(), slow: slow.clone() };
        circulation.watch_streams(settings.freshness, running);
        let closing = decisions.clone();
        let runtime = slow.clone();
        circulation.on_closed(move |closed| end::closed(&closing, &closed, &runtime));
        let flights =
            Flights::new(circulation, decisions.clone(), slow, settings.flights, (metrics, tracer));
        Gate { decisions, flights, clock, settings: settings.clone() }
    }

    /// Returns about how many decisions are cached.
    pub(crate) fn cached_decisions(&self) -> u64 {
        self.decisions.count()
    }

    /// Returns a permit for this reader and one of the titles, or the reason why there is none.
    ///
    /// Problems instead of a permit: `loan-refused`, `loan-ended`, `loan-pending`,
    /// `lending-unavailable`, `ledger-unavailable`, `overloaded`.
    pub async fn admit(&self, request: &Request<'_>) -> Answer {
        let now = self.clock.lending_now();
        let (isbn, via) = (request.key.isbn, Via::Cache);
        match self.look_up(&request.key, request.issued, now) {
            Some(Ok(permit)) => Answer { permit: Ok(permit), isbn, via },
            cached if !request.alternative_titles.is_empty() => {
                Box::pin(self.admit_among(request, cached.and_then(Result::err), now)).await
            }
            Some(Err(problem)) => Answer { permit: Err(problem), isbn, via },
            None => Box::pin(self.decide_by_flight(request, self.patience())).await,
        }
    }

    /// Returns what the cache decides about a reader and a title: a permit, or why there is none.
    fn look_up(
        &self,
        key: &LoanKey,
        issued: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Result<Permit, Problem>> {
        match self.decisions.find(key, now)? {
            Decision::Accepted { loan, access, until } if access.is_open() => {
                Some(Ok(Permit::new(loan, *key, access, until, &self.clock)))
            }
            Decision::Refused { reason, until } => {
                Some(Err(refused(reason.to_string(), now, until)))
            }
            Decision::Ended { at } if rules::is_old(issued, at) => Some(Err(Problem::LoanEnded)),
            Decision::Accepted { .. } | Decision::Ended { .. } => None,
        }
    }

    /// Begins a loan on the reader's explicit request, or finds the live one. Returns the loan, and
    /// whether it is new.
    ///
    /// # Errors
    /// As [`Gate::admit`].
    pub async fn begin(&self, request: &Request<'_>) -> Result<(LoanId, bool), Problem> {
        let (outcome, via) = self.await_flights(request, self.patience()).await;
        let (loan, _) = self.open_loan(request, outcome?)?;
        Ok((loan, via == Via::Registered))
    }

    /// Waits for the flights of a request that the cache does not decide.
    async fn decide_by_flight(&self, request: &Request<'_>, until: Instant) -> Answer {
        let (outcome, via) = self.await_flights(request, until).await;
        let permit = match outcome {
            Ok(outcome) => self.permit_for(request, &request.key, outcome, until).await,
            Err(problem) => Err(problem),
        };
        Answer { permit, isbn: request.key.isbn, via }
    }

    /// Returns until when a request that arrives now waits.
    fn patience(&self) -> Instant {
        Instant::now() + self.settings.patience
    }

    /// Waits for the flights of a request, at most until the deadline.
    async fn await_flights(
        &self,
        request: &Request<'_>,
        until: Instant,
    ) -> (Result<LoanOutcome, Problem>, Via) {
        let pending = Problem::LoanPending { retry_after: PENDING_RETRY_AFTER };
        let outcome = tokio::time::timeout_at(until, self.run_flights(request)).await;
        outcome.unwrap_or((Err(pending), Via::None))
    }

    /// Queries the ledger first. Then begins a loan if this request may.
    async fn run_flights(&self, request: &Request<'_>) -> (Result<LoanOutcome, Problem>, Via) {
        let loan_request = request.loan_request(request.key);
        let found = self.flights.join(loan_request, Stage::LookUp).await.map_err(Problem::from);
        match found.map(|outcome| rules::judge(request, outcome)) {
            Ok(Judged::MayBegin) => (self.begin_flight(loan_request).await, Via::Registered),
            Ok(Judged::MayNot(problem)) | Err(problem) => (Err(problem), Via::Ledger),
            Ok(Judged::Decided(outcome)) => (Ok(outcome), Via::Ledger),
        }
    }

    /// Begins a loan. Tries once more if the flight was started by an older credential, whose
    /// refusal does not apply to this one.
    async fn begin_flight(&self, loan_request: LoanRequest) -> Result<LoanOutcome, Problem> {
        match self.flights.join(loan_request, Stage::Begin).await? {
            LoanOutcome::Ended { at, .. } if !rules::is_old(loan_request.issued, at) => {
                Ok(self.flights.join(loan_request, Stage::Begin).await?)
            }
            outcome => Ok(outcome),
        }
    }

    /// Returns the open loan of an outcome and its due time, or why there is none.
    fn open_loan(
        &self,
        request: &Request<'_>,
        outcome: LoanOutcome,
    ) -> Result<(LoanId, Timestamp), Problem> {
        match outcome {
            LoanOutcome::Open { loan, until }
                if until > self.clock.lending_now() && !self.decisions.is_closed(loan) =>
            {
                Ok((loan, until))
            }
            other => Err(self.refusal(request, other)),
        }
    }

    /// Returns a permit for an open loan, once the ledger has marked it as opened.
    async fn permit_for(
        &self,
        request: &Request<'_>,
        key: &LoanKey,
        outcome: LoanOutcome,
        patience: Instant,
    ) -> Result<Permit, Problem> {
        let (loan, until) = self.open_loan(request, outcome)?;
        let access = self.decisions.access_of(key, loan);
        let opened =
            tokio::time::timeout_at(patience, access.open(async || self.mark_opened(loan).await))
                .await;
        match opened {
            Ok(Ok(())) => Ok(Permit::new(loan, *key, access, until, &self.clock)),
            Ok(Err(Denied::Closed)) => Err(Problem::LoanEnded),
            Ok(Err(Denied::Unmarked)) | Err(_) => Err(Problem::LedgerUnavailable),
        }
    }

    /// Marks a loan as opened in the ledger. Returns false if it is over.
    async fn mark_opened(&self, loan: LoanId) -> Result<bool, Denied> {
        let circulation = self.flights.circulation.clone();
        match self.flights.run(async move { circulation.mark_opened(loan).await }).await {
            Some(Ok(marked)) => Ok(marked),
            Some(Err(error)) => {
                static LIMIT: LogLimit = LogLimit::per_minute();
                if let Some(suppressed) = LIMIT.permit("opened") {
                    tracing::error!(
                        %loan,
                        %error,
                        suppressed,
                        "cannot mark a loan as opened; its reader gets no file"
                    );
                }
                Err(Denied::Unmarked)
            }
            None => Err(Denied::Unmarked),
        }
    }

    /// Returns the problem for an outcome that opens nothing.
    fn refusal(&self, request: &Request<'_>, outcome: LoanOutcome) -> Problem {
        let now = self.clock.lending_now();
        match outcome {
            // An open loan that is due or closed by now.
            LoanOutcome::Open { .. } | LoanOutcome::Withdrawn => Problem::LoanEnded,
            LoanOutcome::Refused { reason, until } => refused(reason.to_string(), now, until),
            LoanOutcome::Ended { at, .. } if rules::is_old(request.issued, at) => {
                Problem::LoanEnded
            }
            // The credential is newer, but the end is not acknowledged yet, or another flight was
            // first.
            LoanOutcome::Ended { .. } | LoanOutcome::NoLoan => {
                Problem::LoanPending { retry_after: PENDING_RETRY_AFTER }
            }
            LoanOutcome::Unavailable { retry_after } => Problem::LendingUnavailable { retry_after },
            LoanOutcome::Paused => Problem::LendingPaused,
            LoanOutcome::Braked { until } => Problem::TooManyRequests {
                reason: "brake",
                retry_after: clock::until(self.clock.now(), until),
            },
            LoanOutcome::Undetermined => Problem::LedgerUnavailable,
        }
    }
}

/// Bokbasen's code (assumed) for an unknown title: for a reader this is a wrong path, not a
/// refusal.
const UNKNOWN_TITLE_CODE: &str = "TITLE_NOT_FOUND";

fn refused(reason: String, now: Timestamp, until: Timestamp) -> Problem {
    if reason == UNKNOWN_TITLE_CODE {
        return Problem::TitleNotFound;
    }
    Problem::LoanRefused { reason, retry_after: Some(clock::until(now, until)) }
}
