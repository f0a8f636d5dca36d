//! May they? The gate's one question, and the [`Permit`] that is its yes.
//!
//! [`Gate::admit`] is called by the server for every request of a gated file. It looks in the cache
//! of decisions; on a miss it joins the flight of that reader and title, or starts it, on the slow
//! runtime. It calls circulation and nothing else. It promises that a permit is made only for a
//! loan that the ledger durably holds as accepted and whose end lies ahead, and that a hit does no
//! I/O and waits for nobody.

mod access;
mod cache;
mod end;
mod flight;
mod multi_title;
mod permit;
mod rules;
mod title_status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::circulation::{Asker, Circulation};
use crate::clock::{self, Clock};
use crate::loan::{Isbn, LoanId, LoanKey};
use crate::problem::Problem;
use crate::telemetry::{LogLimit, Metrics, Via};

pub use crate::circulation::Availability;
use access::Denied;
use cache::{Decision, Decisions};
use flight::{Flights, Landing, Stage};
pub use permit::Permit;

/// The keys of `[gate]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a request waits for a decision before it is sent away with `loan-pending`. Reading
    /// apps remember a failure and ignore Retry-After, so that an early answer is a broken book.
    pub patience: Duration,
    /// How long a refusal holds when Bokbasen names no time.
    pub refusal_ttl: Duration,
    /// `lending.flights`: for how many readers and titles a decision may be under way at once.
    pub flights: usize,
    /// How old what was read from the ledger may be while its change feed cannot be read: an
    /// acceptance is then read again, and a running stream whose loan cannot be confirmed is
    /// aborted.
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

/// Who asks for which title, and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The reader's library and pseudonym, and the title.
    pub key: LoanKey,
    /// The other titles whose loans would do as well, of which none is ever begun.
    pub further: &'a [Isbn],
    /// When the credential was issued; none counts as old.
    pub issued: Option<Timestamp>,
    /// Whether this request goes on with a download: such a one never begins a loan (invariant 7).
    pub continues: bool,
    /// Whether this route's loans are begun by an explicit request only.
    pub explicit: bool,
}

/// The gate's answer.
#[derive(Debug)]
pub struct Answer {
    /// The permit; or why not.
    pub permit: Result<Permit, Problem>,
    /// The title whose loan opens the file, or does not.
    pub isbn: Isbn,
    /// Where that is known from.
    pub via: Via,
}

/// What the cache says of a reader and a title.
enum Known {
    Open(Permit),
    Closed(Problem),
    Nothing,
}

/// When to come back for a loan that is not decided yet.
const COME_BACK: Duration = Duration::from_secs(2);

/// The gate. Clones share everything, over all worker threads.
#[derive(Clone, Debug)]
pub struct Gate {
    decisions: Arc<Decisions>,
    flights: Flights,
    clock: Clock,
    settings: Settings,
}

impl Gate {
    /// A gate over this loan's life; it subscribes to the ends of loans. Flights run on `slow`.
    pub fn new(
        settings: &Settings,
        circulation: Circulation,
        clock: Clock,
        metrics: Metrics,
        slow: Handle,
    ) -> Gate {
        let decisions =
            Arc::new(Decisions::new(clock.clone(), circulation.fed(), settings.freshness));
        let running = end::Running { decisions: decisions.clone(), slow: slow.clone() };
        circulation.watch_streams(settings.freshness, running);
        let closing = decisions.clone();
        let cutting = slow.clone();
        circulation.on_closed(move |closed| end::closed(&closing, &closed, &cutting));
        let flights = Flights::new(circulation, decisions.clone(), slow, settings.flights, metrics);
        Gate { decisions, flights, clock, settings: settings.clone() }
    }

    /// A permit for this reader and one of the titles, or why there is none.
    ///
    /// The permit's errors: `loan-refused`, `loan-ended`, `loan-pending`, `lending-unavailable`,
    /// `ledger-unavailable`, `overloaded`.
    pub async fn admit(&self, request: &Request<'_>) -> Answer {
        let now = self.clock.lending_now();
        let (isbn, via) = (request.key.isbn, Via::Cache);
        match self.known(&request.key, request.issued, now) {
            Known::Open(permit) => Answer { permit: Ok(permit), isbn, via },
            known if !request.further.is_empty() => {
                Box::pin(self.admit_among(request, known, now)).await
            }
            Known::Closed(problem) => Answer { permit: Err(problem), isbn, via },
            Known::Nothing => Box::pin(self.fly(request, self.patience())).await,
        }
    }

    /// What the cache says.
    fn known(&self, key: &LoanKey, issued: Option<Timestamp>, now: Timestamp) -> Known {
        match self.decisions.find(key, now) {
            Some(Decision::Accepted { loan, access, until }) if access.is_open() => {
                Known::Open(Permit::new(loan, *key, access, until, &self.clock))
            }
            Some(Decision::Refused { reason, until }) => {
                Known::Closed(refused(reason.to_string(), now, until))
            }
            Some(Decision::Ended { at }) if rules::is_old(issued, at) => {
                Known::Closed(Problem::LoanEnded)
            }
            Some(Decision::Accepted { .. } | Decision::Ended { .. }) | None => Known::Nothing,
        }
    }

    /// Begins a loan on the reader's explicit wish, or finds the live one: which loan, and whether
    /// it is new.
    ///
    /// # Errors
    /// As [`Gate::admit`].
    pub async fn begin(&self, request: &Request<'_>) -> Result<(LoanId, bool), Problem> {
        let (landing, via) = self.landed(request, self.patience()).await?;
        match landing {
            Landing::Open { loan, until, .. }
                if until > self.clock.lending_now() && !self.decisions.is_closed(loan) =>
            {
                Ok((loan, via == Via::Registered))
            }
            other => Err(self.refusal(request, other)),
        }
    }

    /// Waits for the flights of a request that the cache does not answer.
    async fn fly(&self, request: &Request<'_>, until: Instant) -> Answer {
        let (permit, via) = match self.landed(request, until).await {
            Ok((landing, via)) => (self.answer(request, &request.key, landing, until).await, via),
            Err(problem) => (Err(problem), Via::None),
        };
        Answer { permit, isbn: request.key.isbn, via }
    }

    /// Until when a request that comes now waits.
    fn patience(&self) -> Instant {
        Instant::now() + self.settings.patience
    }

    /// Waits for as long as patience lasts.
    async fn landed(
        &self,
        request: &Request<'_>,
        until: Instant,
    ) -> Result<(Landing, Via), Problem> {
        let landing = tokio::time::timeout_at(until, self.land(request)).await;
        landing.map_err(|_| Problem::LoanPending { retry_after: COME_BACK })
    }

    /// First asks the ledger; then, where a loan may be begun for this request, begins it.
    async fn land(&self, request: &Request<'_>) -> (Landing, Via) {
        let asker = Asker { key: request.key, issued: request.issued };
        let found = self.flights.join(asker, Stage::Look).await;
        let may_begin = match &found {
            Landing::Nothing => rules::may_begin(request, None),
            Landing::Ended { at, settled: true } => rules::may_begin(request, Some(*at)),
            _ => return (found, Via::Ledger),
        };
        match may_begin {
            Ok(()) => (self.begun(asker).await, Via::Registered),
            Err(reason) => (reason, Via::Ledger),
        }
    }

    /// Begins; once more where the flight was that of an older credential, whose no is not this
    /// one's.
    async fn begun(&self, asker: Asker) -> Landing {
        match self.flights.join(asker, Stage::Begin).await {
            Landing::Ended { at, .. } if !rules::is_old(asker.issued, at) => {
                self.flights.join(asker, Stage::Begin).await
            }
            landed => landed,
        }
    }

    /// A permit for a loan that is open, once the ledger has that it was opened.
    async fn answer(
        &self,
        request: &Request<'_>,
        key: &LoanKey,
        landing: Landing,
        patience: Instant,
    ) -> Result<Permit, Problem> {
        let (loan, access, until) = match landing {
            Landing::Open { loan, until, access }
                if until > self.clock.lending_now() && !self.decisions.is_closed(loan) =>
            {
                (loan, access, until)
            }
            other => return Err(self.refusal(request, other)),
        };
        let opened =
            tokio::time::timeout_at(patience, access.open(async || self.mark_opened(loan).await))
                .await;
        match opened {
            Ok(Ok(())) => Ok(Permit::new(loan, *key, access, until, &self.clock)),
            Ok(Err(Denied::Closed)) => Err(Problem::LoanEnded),
            Ok(Err(Denied::Unmarked)) | Err(_) => Err(Problem::LedgerUnavailable),
        }
    }

    /// Writes that a loan is opened; false where it is over.
    async fn mark_opened(&self, loan: LoanId) -> Result<bool, Denied> {
        let circulation = self.flights.circulation.clone();
        match self.flights.run(async move { circulation.mark_opened(loan).await }).await {
            Some(Ok(marked)) => Ok(marked),
            Some(Err(error)) => {
                static LIMIT: LogLimit = LogLimit::per_minute();
                if let Some(suppressed) = LIMIT.permit("opened") {
                    tracing::error!(%loan, %error, suppressed, "cannot write that a loan is opened; its reader gets nothing");
                }
                Err(Denied::Unmarked)
            }
            None => Err(Denied::Unmarked),
        }
    }

    /// What a landing means that opens nothing.
    fn refusal(&self, request: &Request<'_>, landing: Landing) -> Problem {
        let now = self.clock.lending_now();
        match landing {
            Landing::Open { .. } | Landing::TakenBack => Problem::LoanEnded,
            Landing::Refused { reason, until } => refused(reason.to_string(), now, until),
            Landing::Forbidden(reason) => {
                Problem::LoanRefused { reason: reason.to_owned(), retry_after: None }
            }
            Landing::Ended { at, .. } if rules::is_old(request.issued, at) => Problem::LoanEnded,
            // A later credential, but the end has not been acknowledged yet, or another came first.
            Landing::Ended { .. } | Landing::Nothing => {
                Problem::LoanPending { retry_after: COME_BACK }
            }
            Landing::Unavailable { retry_after } => Problem::LendingUnavailable { retry_after },
            Landing::Braked { until } => Problem::TooManyRequests {
                reason: "brake",
                retry_after: clock::until(self.clock.now(), until),
            },
            Landing::Unsure => Problem::LedgerUnavailable,
            Landing::Overloaded => Problem::Overloaded,
        }
    }
}

/// Bokbasen's code (assumed) for a title that it does not know: to a reader that is no refusal but
/// a wrong path.
const NO_SUCH_TITLE: &str = "TITLE_NOT_FOUND";

fn refused(reason: String, now: Timestamp, until: Timestamp) -> Problem {
    if reason == NO_SUCH_TITLE {
        return Problem::TitleNotFound;
    }
    Problem::LoanRefused { reason, retry_after: Some(clock::until(now, until)) }
}
