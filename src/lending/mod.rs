//! Client of Bokbasen's lending API. It depends only on the shared types in `loan`.
//!
//! Circulation calls it. Each call returns a response or a [`CallError`], which says whether
//! Bokbasen may have acted on the call. The invariant "one loan, once" rests on that distinction. A
//! begin is sent once; only repeatable calls are retried.
//!
//! - `wire` holds every path and body, so that one file changes when an assumption is corrected.
//! - `auth` holds the two login methods.
//! - `guard` holds the limits and breakers. They protect Bokbasen from loangate, and each kind of
//!   call from the others.
//! - `transport` sends every call.

mod auth;
mod breaker;
mod bulkhead;
mod clock_skew;
mod error;
mod guard;
mod kind;
mod listing;
mod outage_reason;
mod protocol_breaches;
mod transport;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use url::Url;

use crate::clock::Clock;
use crate::loan::{Borrower, EndReason, Isbn, LibraryId, Reference, Refusal, Terms};
use crate::telemetry::{LendingCall, Metrics};

pub use auth::Auth;
pub use breaker::Passage;
pub use error::{CallError, SetUpError};
pub use kind::CallKind;
pub use listing::{Listing, Page, Unreadable};
pub use outage_reason::OutageReason;
use transport::{Call, Transport};

/// The keys of `[lending]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The base URL of the API.
    pub url: Url,
    /// The login method and its credentials.
    pub auth: Auth,
    /// The most calls in flight at once, all kinds together; less than 8 counts as 8.
    pub concurrency: usize,
    /// The longest that one call may take.
    pub timeout: Duration,
}

/// A request to begin a loan.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The library that owns the licence.
    pub library: LibraryId,
    /// The title to lend.
    pub isbn: Isbn,
    /// The pseudonymous borrower.
    pub borrower: Borrower,
    /// The licence to use; none leaves the choice to Bokbasen.
    pub licence_id: Option<String>,
    /// Our unique reference, by which [`Bokbasen::find`] finds the loan.
    pub reference: Reference,
    /// The time at which the loan begins.
    pub begin: Timestamp,
}

/// A loan as Bokbasen reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteLoan {
    /// Bokbasen's id of the loan.
    pub lending_id: String,
    /// The reference of the begin request.
    pub reference: Option<Reference>,
    /// The library that owns the licence.
    pub library: Option<LibraryId>,
    /// The title that is lent.
    pub isbn: Option<Isbn>,
    /// The time at which the loan began.
    pub begin: Option<Timestamp>,
    /// The status of the loan.
    pub standing: Standing,
}

/// The status of a loan at Bokbasen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Bokbasen has not decided yet.
    Pending {
        /// The time to wait before the next poll.
        retry_after: Option<Duration>,
    },
    /// Bokbasen accepted the loan. Only this status opens a file.
    Accepted(Terms),
    /// Bokbasen refused the loan.
    Refused(Refusal),
    /// The loan is over.
    Ended(EndReason),
    /// An unknown status; it counts as not accepted.
    Unrecognised(String),
}

/// The availability of one title at one library.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Availability {
    /// Whether Bokbasen reports that the title can be borrowed now.
    pub available: bool,
    /// The library's licences for the title, in Bokbasen's order.
    pub licences: Vec<FreeLicence>,
}

/// A licence and its free loans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FreeLicence {
    /// Bokbasen's id of the licence.
    pub licence_id: String,
    /// The licence type, such as `PACKAGE`.
    pub kind: String,
    /// The number of loans that can begin on it now.
    pub free: u32,
    /// The time of the next free loan, if none is free now.
    pub next_free: Option<Timestamp>,
}

impl Availability {
    /// Returns the earliest time at which a licence becomes free; none if the title is available
    /// now or Bokbasen names no time.
    pub fn next_free(&self) -> Option<Timestamp> {
        if self.available {
            None
        } else {
            self.licences.iter().filter_map(|licence| licence.next_free).min()
        }
    }
}

/// Bokbasen's response to a return or cancel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndAck {
    /// The loan is over at Bokbasen.
    Done,
    /// Bokbasen has not decided the loan yet; it can only be cancelled.
    StillPending,
    /// The loan can no longer be cancelled, only returned.
    CancelWindowClosed,
    /// 404 `LOAN_NOT_FOUND`. The loan is over at Bokbasen, unless it is so recent that Bokbasen may
    /// not show it yet.
    NoSuchLoan,
}

/// The retry delay for callers while the clock is off.
const CLOCK_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Client of Bokbasen. Clones share its connections, its login and its limits.
#[derive(Clone)]
pub struct Bokbasen {
    transport: Arc<Transport>,
}

impl fmt::Debug for Bokbasen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bokbasen").finish_non_exhaustive()
    }
}

impl Bokbasen {
    /// Creates a client without sending anything.
    ///
    /// # Errors
    /// [`SetUpError`] if TLS cannot be set up, or if the address cannot be a base URL.
    pub fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Bokbasen, SetUpError> {
        let transport = Arc::new(Transport::new(settings, clock, metrics)?);
        Ok(Bokbasen { transport })
    }

    /// Begins a loan. The request is never sent twice.
    ///
    /// # Errors
    /// [`CallError::NotSent`] and [`CallError::Rejected`] if it is certain that no loan was
    /// created. After [`CallError::Unknown`], find the reference before anything else: Bokbasen
    /// does not deduplicate.
    pub async fn begin(&self, begin: &Begin) -> Result<RemoteLoan, CallError> {
        if self.clock_is_off() {
            return Err(CallError::NotSent("the clock is too far from Bokbasen's".to_owned()));
        }
        let title = (begin.library.as_str(), begin.isbn.number());
        let subject = self.transport.guard.subject_within(begin.reference.as_str(), title);
        let call =
            Call::once((CallKind::Begin, subject), LendingCall::Begin, Method::POST, wire::loans())
                .body(&wire::NewLoan::from(begin));
        let response = self.transport.send(&call).await?;
        self.checked(wire::remote_loan(&response, self.transport.now())?)
    }

    /// Returns one loan by Bokbasen's id; none if Bokbasen does not know it.
    ///
    /// # Errors
    /// [`CallError`]; the call may be repeated.
    pub async fn loan(&self, lending_id: &str) -> Result<Option<RemoteLoan>, CallError> {
        let scope = (CallKind::Poll, self.transport.guard.subject(lending_id));
        let call = Call::repeatable(scope, LendingCall::Loan, Method::GET, wire::loan(lending_id));
        match self.transport.send(&call).await {
            Ok(response) => {
                self.checked(wire::remote_loan(&response, self.transport.now())?).map(Some)
            }
            Err(error) if error.is_no_such_loan() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns every loan of a reference; more than one if Bokbasen executed a begin twice. The
    /// listing can lag behind a begin (assumed: by 2 s at most).
    ///
    /// # Errors
    /// [`CallError`]; the call may be repeated. An unreadable loan, a loan without a reference, and
    /// a listing of other references only are errors too: the loan may exist all the same.
    pub async fn find(&self, reference: &Reference) -> Result<Vec<RemoteLoan>, CallError> {
        let scope = (CallKind::Read, self.transport.guard.subject(reference.as_str()));
        let mut found = Vec::new();
        let mut query = wire::by_reference(reference);
        for _ in 0..wire::MAX_PAGES {
            let call =
                Call::repeatable(scope, LendingCall::Find, Method::GET, wire::loans()).query(query);
            let response = self.transport.send(&call).await?;
            let page = wire::page(&response, self.transport.now())?;
            let last = page.loans.is_empty();
            found.extend(page.loans);
            match page.next {
                Some(next) if !last => query = wire::next_page(next),
                _ => return self.checked_listing(found, reference),
            }
        }
        Err(CallError::Unknown("the listing of one reference has too many pages".to_owned()))
    }

    /// Checks a listing of one reference and returns the loans that have it.
    fn checked_listing(
        &self,
        mut found: Vec<RemoteLoan>,
        reference: &Reference,
    ) -> Result<Vec<RemoteLoan>, CallError> {
        self.transport.breaches.check_found(&found, reference);
        if !protocol_breaches::is_believable(&found, reference) {
            let why =
                "the listing of a reference shows loans without a reference, or of others only";
            return Err(CallError::Unknown(why.to_owned()));
        }
        found.retain(|loan| loan.reference.as_ref() == Some(reference));
        Ok(found)
    }

    fn checked(&self, loan: RemoteLoan) -> Result<RemoteLoan, CallError> {
        self.transport.breaches.check(&loan);
        Ok(loan)
    }

    /// Returns a library's licences for a title, with their free loans.
    ///
    /// # Errors
    /// [`CallError`]; the call may be repeated.
    pub async fn availability(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, CallError> {
        self.availability_as(CallKind::Read, library, isbn).await
    }

    /// As [`Bokbasen::availability`], but with the priority of begins. It does not wait behind apps
    /// that list free titles.
    ///
    /// # Errors
    /// [`CallError`]; no loan was begun.
    pub async fn availability_to_begin(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, CallError> {
        self.availability_as(CallKind::Begin, library, isbn).await
    }

    async fn availability_as(
        &self,
        kind: CallKind,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, CallError> {
        let (guard, title) = (&self.transport.guard, (library.as_str(), isbn.number()));
        // A bulkhead group of its own: begins may hang while availability calls are answered.
        let subject = guard.with_group(guard.subject(title), ("availability", title));
        let call = Call::repeatable(
            (kind, subject),
            LendingCall::Availability,
            Method::GET,
            wire::availability_at(library),
        );
        let response = self.transport.send(&call.query(wire::of_title(isbn))).await?;
        wire::availability(&response, isbn)
    }

    /// Lists every loan of a library that Bokbasen has from this time on, page by page.
    pub fn listing(&self, library: LibraryId, after: Timestamp) -> Listing<'_> {
        let scope = (CallKind::Read, self.transport.guard.subject(library.as_str()));
        Listing::begin(self, scope, wire::of_library(library, after))
    }

    /// Ends a loan as returned or as expired. May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; send the end again then.
    pub async fn return_loan(
        &self,
        lending_id: &str,
        ended: Timestamp,
        reason: EndReason,
    ) -> Result<EndAck, CallError> {
        let body = wire::Return::new(ended, reason);
        let call = Call::repeatable(
            self.end_scope(lending_id),
            LendingCall::Return,
            Method::POST,
            wire::return_of(lending_id),
        )
        .body(&body);
        end_response(self.transport.send(&call).await)
    }

    /// Cancels a loan, which releases its licence. May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; send the end again then.
    pub async fn cancel(&self, lending_id: &str, reason: &str) -> Result<EndAck, CallError> {
        let call = Call::repeatable(
            self.end_scope(lending_id),
            LendingCall::Cancel,
            Method::POST,
            wire::cancel_of(lending_id),
        )
        .body(&wire::Cancel { reason });
        end_response(self.transport.send(&call).await)
    }

    /// Cancels a loan if that is still possible, which releases the licence too; else returns it.
    /// May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; send the end again then.
    pub async fn cancel_or_return(
        &self,
        lending_id: &str,
        ended: Timestamp,
        reason: EndReason,
        why: &str,
    ) -> Result<EndAck, CallError> {
        match self.cancel(lending_id, why).await? {
            EndAck::CancelWindowClosed => self.return_loan(lending_id, ended, reason).await,
            response @ (EndAck::Done | EndAck::StillPending | EndAck::NoSuchLoan) => Ok(response),
        }
    }

    fn end_scope(&self, lending_id: &str) -> transport::CallScope {
        (CallKind::End, self.transport.guard.subject(lending_id))
    }

    /// Returns how long begins are held back, because too many failed or the clock is off; none
    /// while begins are sent.
    pub fn closed_for(&self) -> Option<Duration> {
        if self.clock_is_off() {
            return Some(CLOCK_RETRY_DELAY);
        }
        match self.passage(CallKind::Begin, false) {
            Passage::Closed(wait) => Some(wait),
            Passage::Open | Passage::Trial => None,
        }
    }

    /// Whether our clock differs from Bokbasen's by more than 15 minutes. No loan is begun and no
    /// expiry is registered then.
    pub fn clock_is_off(&self) -> bool {
        self.transport.skew.is_off()
    }

    /// Whether the clocks were compared, or cannot be compared.
    pub fn clock_is_known(&self) -> bool {
        self.transport.skew.is_known()
    }

    /// Whether loans that seem due may be ended: as far as is known, the clock agrees with
    /// Bokbasen's.
    pub fn clock_can_end_loans(&self) -> bool {
        !self.clock_is_off() && self.clock_is_known()
    }

    /// Requests Bokbasen's time if no response carried it recently.
    pub async fn compare_clocks(&self) {
        if self.transport.skew.is_stale() {
            self.transport.request_time().await;
        }
    }

    /// Whether calls of this kind are sent. `failed_last` means that the previous call about the
    /// same loan failed; such calls are tried later than others.
    pub fn passage(&self, kind: CallKind, failed_last: bool) -> Passage {
        self.transport.guard.passage(kind, failed_last)
    }

    /// Returns the most calls of this kind in flight at once; further calls wait.
    pub fn most_at_once(&self, kind: CallKind) -> usize {
        self.transport.guard.max_in_flight(kind)
    }

    /// Whether a breaker is open for begins or polls, the calls that a new loan needs.
    pub fn is_failing(&self) -> bool {
        self.transport.is_failing()
    }

    /// Returns the reason why calls fail at the moment; none while Bokbasen answers.
    pub fn trouble(&self) -> Option<OutageReason> {
        self.transport.trouble()
    }

    /// Returns the reason of the last failure since a call was answered, also if it was the only
    /// one.
    pub fn last_trouble(&self) -> Option<OutageReason> {
        self.transport.last_trouble()
    }

    /// Returns how far our clock is ahead of Bokbasen's; none until a call was answered.
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        self.transport.skew.ahead_of_bokbasen()
    }

    /// Logs in for `loangate check`.
    ///
    /// # Errors
    /// [`CallError`], if the login fails.
    pub async fn try_login(&self) -> Result<(), CallError> {
        self.transport.login().await
    }

    /// Sends a read-only call, for `loangate check`. It shows whether the address and the token are
    /// good, and sets [`Bokbasen::clock_ahead`].
    ///
    /// # Errors
    /// [`CallError`], if the call fails.
    pub async fn try_call(&self) -> Result<(), CallError> {
        self.find(&Reference::generate()).await.map(drop)
    }

    /// Logs out, if the login method supports it.
    pub async fn close(&self) {
        self.transport.log_out().await;
    }
}

/// Interprets the response to an end (assumed: an end of a loan that is already over is done).
fn end_response(response: Result<transport::ApiResponse, CallError>) -> Result<EndAck, CallError> {
    match response {
        Ok(_) => Ok(EndAck::Done),
        Err(error) if error.is_no_such_loan() => Ok(EndAck::NoSuchLoan),
        Err(CallError::Rejected { status: 409, code, .. }) if code == wire::ALREADY_ENDED => {
            Ok(EndAck::Done)
        }
        Err(CallError::Rejected { status: 409, code, .. }) if code == wire::LOAN_PENDING => {
            Ok(EndAck::StillPending)
        }
        Err(CallError::Rejected { status: 409, code, .. })
            if code == wire::CANCEL_WINDOW_CLOSED =>
        {
            Ok(EndAck::CancelWindowClosed)
        }
        Err(error) => Err(error),
    }
}
