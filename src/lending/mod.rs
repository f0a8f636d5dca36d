//! Bokbasen: a pure client of its lending API, which knows nothing of ours but the vocabulary.
//!
//! Circulation calls it. Each call ends in an answer, or in a [`CallError`] that says whether
//! Bokbasen may have acted on it: that is what "one loan, once" stands on. A begin is sent once;
//! only what may be repeated is repeated. `wire` holds every path and body, so that a correction of
//! an assumption stays in one file; `auth` the two logins; `guard` the limits and breakers, which
//! protect Bokbasen from us and the kinds of calls from each other; `transport` sends every call.

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
use crate::telemetry::Metrics;

pub use auth::Auth;
pub use breaker::Passage;
pub use error::{CallError, SetUpError};
pub use kind::CallKind;
pub use listing::{Listing, Page, Unreadable};
pub use outage_reason::Trouble;
use transport::{Call, Transport};

/// The keys of `[lending]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The API's address.
    pub url: Url,
    /// How to log in.
    pub auth: Auth,
    /// How many calls may be in flight at once, of all kinds together; less than 8 counts as 8.
    pub concurrency: usize,
    /// How long one call may take.
    pub timeout: Duration,
}

/// A loan to be begun.
#[derive(Clone, Debug)]
pub struct Begin {
    /// Whose licence.
    pub library: LibraryId,
    /// Which title.
    pub isbn: Isbn,
    /// For whom.
    pub borrower: Borrower,
    /// Under which licence; none leaves the choice to Bokbasen.
    pub licence_id: Option<String>,
    /// By what we find it again.
    pub reference: Reference,
    /// From when.
    pub begin: Timestamp,
}

/// A loan as Bokbasen has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteLoan {
    /// Its name there.
    pub lending_id: String,
    /// The reference that it was begun with.
    pub reference: Option<Reference>,
    /// Whose licence.
    pub library: Option<LibraryId>,
    /// Which title.
    pub isbn: Option<Isbn>,
    /// When it began.
    pub begin: Option<Timestamp>,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a loan stands at Bokbasen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Not decided.
    Pending {
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// Accepted: the one standing that opens a file.
    Accepted(Terms),
    /// Refused.
    Refused(Refusal),
    /// Over.
    Ended(EndReason),
    /// A status that we do not know; it counts as not accepted.
    Unrecognised(String),
}

/// What a library has of a title.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Availability {
    /// Whether it can be borrowed now, by Bokbasen's word.
    pub available: bool,
    /// The licences, in Bokbasen's order.
    pub licences: Vec<FreeLicence>,
}

/// How a licence stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FreeLicence {
    /// Its name there.
    pub licence_id: String,
    /// Its type, like `PACKAGE`.
    pub kind: String,
    /// How many loans can be begun on it now.
    pub free: u32,
    /// When one more can be, where none can now.
    pub next_free: Option<Timestamp>,
}

impl Availability {
    /// When it can be borrowed next, where it cannot now and Bokbasen says so.
    pub fn next_free(&self) -> Option<Timestamp> {
        if self.available {
            None
        } else {
            self.licences.iter().filter_map(|licence| licence.next_free).min()
        }
    }
}

/// What came of telling Bokbasen about an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// It is over there.
    Done,
    /// It is not decided there yet, and can only be cancelled.
    StillPending,
    /// It can no longer be cancelled, only returned.
    CancelWindowClosed,
    /// 404 `LOAN_NOT_FOUND`. The loan is over there, unless it is so recent that the answer may
    /// lag.
    NoSuchLoan,
}

/// When a caller should try again while the clock is off.
const CLOCK_CHECKED_AGAIN: Duration = Duration::from_secs(5);

/// The client. Clones share its connections, its login and its limits.
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
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// Where TLS cannot be set up, or the address cannot be a base.
    pub fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Bokbasen, SetUpError> {
        let transport = Arc::new(Transport::new(settings, clock, metrics)?);
        Ok(Bokbasen { transport })
    }

    /// Begins a loan: sent once, whatever happens.
    ///
    /// # Errors
    /// [`CallError::NotSent`] and [`CallError::Rejected`] where it is certain that no loan was
    /// made; after [`CallError::Unknown`] ask for the reference before anything else (Bokbasen does
    /// not deduplicate).
    pub async fn begin(&self, begin: &Begin) -> Result<RemoteLoan, CallError> {
        if self.clock_is_off() {
            return Err(CallError::NotSent("the clock is too far from Bokbasen's".to_owned()));
        }
        let title = (begin.library.as_str(), begin.isbn.number());
        let subject = self.transport.guard.subject_within(begin.reference.as_str(), title);
        let call = Call::once((CallKind::Begin, subject), "begin", Method::POST, wire::loans())
            .body(&wire::NewLoan::from(begin));
        let answer = self.transport.send(&call).await?;
        self.checked(wire::remote_loan(&answer, self.transport.now())?)
    }

    /// One loan by its name there; none where Bokbasen does not know it.
    ///
    /// # Errors
    /// [`CallError`]; the question can be asked again.
    pub async fn loan(&self, lending_id: &str) -> Result<Option<RemoteLoan>, CallError> {
        let concern = (CallKind::Poll, self.transport.guard.subject(lending_id));
        let call = Call::repeatable(concern, "loan", Method::GET, wire::loan(lending_id));
        match self.transport.send(&call).await {
            Ok(answer) => self.checked(wire::remote_loan(&answer, self.transport.now())?).map(Some),
            Err(error) if error.is_no_such_loan() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every loan of a reference; more than one where a begin was carried out twice. The listing
    /// can lag behind a begin (assumed: by 2 s at most).
    ///
    /// # Errors
    /// [`CallError`]; the call may be repeated. What cannot be read, a loan without a reference,
    /// and an answer about other references only are errors too: the loan may exist all the same.
    pub async fn find(&self, reference: &Reference) -> Result<Vec<RemoteLoan>, CallError> {
        let concern = (CallKind::Read, self.transport.guard.subject(reference.as_str()));
        let mut found = Vec::new();
        let mut query = wire::by_reference(reference);
        for _ in 0..wire::MOST_PAGES {
            let call = Call::repeatable(concern, "find", Method::GET, wire::loans()).query(query);
            let answer = self.transport.send(&call).await?;
            let page = wire::page(&answer, self.transport.now())?;
            let last = page.loans.is_empty();
            found.extend(page.loans);
            match page.next {
                Some(next) if !last => query = wire::next_page(next),
                _ => return self.believed(found, reference),
            }
        }
        Err(CallError::Unknown("the listing of one reference has too many pages".to_owned()))
    }

    /// The loans of this reference out of a listing of it.
    fn believed(
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

    /// What a library has of a title, and how much of it is free.
    ///
    /// # Errors
    /// [`CallError`]; the question can be asked again.
    pub async fn availability(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, CallError> {
        self.availability_as(CallKind::Read, library, isbn).await
    }

    /// As [`Bokbasen::availability`], for a loan that is about to be begun: it has the priority of
    /// begins, and waits behind no app that lists what is free.
    ///
    /// # Errors
    /// [`CallError`]; nothing was begun.
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
        // In the bulkhead a group of its own: begins may hang although availability is answered.
        let subject = guard.apart(guard.subject(title), ("availability", title));
        let call = Call::repeatable(
            (kind, subject),
            "availability",
            Method::GET,
            wire::availability_at(library),
        );
        let answer = self.transport.send(&call.query(wire::of_title(isbn))).await?;
        wire::availability(&answer, isbn)
    }

    /// Every loan of a library that Bokbasen has from this moment on, page by page.
    pub fn listing(&self, library: LibraryId, after: Timestamp) -> Listing<'_> {
        let concern = (CallKind::Read, self.transport.guard.subject(library.as_str()));
        Listing::begin(self, concern, wire::of_library(library, after))
    }

    /// Returns a loan, as given back or as expired. May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; the end is then to be sent again.
    pub async fn return_loan(
        &self,
        lending_id: &str,
        ended: Timestamp,
        reason: EndReason,
    ) -> Result<Told, CallError> {
        let body = wire::Return::new(ended, reason);
        let call = Call::repeatable(
            self.end_of(lending_id),
            "return",
            Method::POST,
            wire::return_of(lending_id),
        )
        .body(&body);
        told(self.transport.send(&call).await)
    }

    /// Cancels a loan, which gives its licence back. May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; the end is then to be sent again.
    pub async fn cancel(&self, lending_id: &str, reason: &str) -> Result<Told, CallError> {
        let call = Call::repeatable(
            self.end_of(lending_id),
            "cancel",
            Method::POST,
            wire::cancel_of(lending_id),
        )
        .body(&wire::Cancel { reason });
        told(self.transport.send(&call).await)
    }

    /// Gives a loan back: cancelled where it still can be, which gives the licence back too, else
    /// returned. May be repeated.
    ///
    /// # Errors
    /// [`CallError`]; the end is then to be sent again.
    pub async fn give_back(
        &self,
        lending_id: &str,
        ended: Timestamp,
        reason: EndReason,
        why: &str,
    ) -> Result<Told, CallError> {
        match self.cancel(lending_id, why).await? {
            Told::CancelWindowClosed => self.return_loan(lending_id, ended, reason).await,
            told @ (Told::Done | Told::StillPending | Told::NoSuchLoan) => Ok(told),
        }
    }

    fn end_of(&self, lending_id: &str) -> transport::Concern {
        (CallKind::End, self.transport.guard.subject(lending_id))
    }

    /// How long no begin is sent, because too many failed or the clock is off; none while begins
    /// are sent.
    pub fn closed_for(&self) -> Option<Duration> {
        if self.clock_is_off() {
            return Some(CLOCK_CHECKED_AGAIN);
        }
        match self.passage(CallKind::Begin, false) {
            Passage::Closed(wait) => Some(wait),
            Passage::Open | Passage::Trial => None,
        }
    }

    /// Whether our clock is more than 15 minutes from Bokbasen's: then no loan is begun and no
    /// expiry registered.
    pub fn clock_is_off(&self) -> bool {
        self.transport.skew.is_off()
    }

    /// Whether the clocks were compared, or cannot be.
    pub fn clock_is_known(&self) -> bool {
        self.transport.skew.is_known()
    }

    /// Whether loans that seem due may be ended: the clock agrees with Bokbasen's as far as can be
    /// known.
    pub fn clock_can_end_loans(&self) -> bool {
        !self.clock_is_off() && self.clock_is_known()
    }

    /// Requests Bokbasen's time, where no call has brought it recently.
    pub async fn compare_clocks(&self) {
        if self.transport.skew.is_stale() {
            self.transport.ask_time().await;
        }
    }

    /// Whether calls of this kind are sent. `failed_last` says that the call before about the same
    /// loan failed: such calls are tried later than others.
    pub fn passage(&self, kind: CallKind, failed_last: bool) -> Passage {
        self.transport.guard.passage(kind, failed_last)
    }

    /// The most calls of this kind that are in flight at once: more only wait for each other.
    pub fn most_at_once(&self, kind: CallKind) -> usize {
        self.transport.guard.most(kind)
    }

    /// Whether Bokbasen failed to answer the last calls that a new loan needs, so that they are
    /// held back or only tried.
    pub fn is_failing(&self) -> bool {
        self.transport.is_failing()
    }

    /// The reason why calls fail at the moment; none while Bokbasen answers.
    pub fn trouble(&self) -> Option<Trouble> {
        self.transport.trouble()
    }

    /// The reason of the last failure since a call was answered, also if it was the only one.
    pub fn last_trouble(&self) -> Option<Trouble> {
        self.transport.last_trouble()
    }

    /// How far our clock is ahead of Bokbasen's; none until a call was answered.
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

    /// Makes a call of the API that changes nothing, for `loangate check`: it shows whether the
    /// address and the token are good, and sets [`Bokbasen::clock_ahead`].
    ///
    /// # Errors
    /// [`CallError`], if the call fails.
    pub async fn try_call(&self) -> Result<(), CallError> {
        self.find(&Reference::fresh()).await.map(drop)
    }

    /// Logs out, as far as the login knows that.
    pub async fn close(&self) {
        self.transport.log_out().await;
    }
}

/// What an answer to an end says (assumed: a loan that is over there counts as done).
fn told(answer: Result<transport::Answer, CallError>) -> Result<Told, CallError> {
    match answer {
        Ok(_) => Ok(Told::Done),
        Err(error) if error.is_no_such_loan() => Ok(Told::NoSuchLoan),
        Err(CallError::Rejected { status: 409, code, .. }) if code == wire::ALREADY_ENDED => {
            Ok(Told::Done)
        }
        Err(CallError::Rejected { status: 409, code, .. }) if code == wire::LOAN_PENDING => {
            Ok(Told::StillPending)
        }
        Err(CallError::Rejected { status: 409, code, .. })
            if code == wire::CANCEL_WINDOW_CLOSED =>
        {
            Ok(Told::CancelWindowClosed)
        }
        Err(error) => Err(error),
    }
}
