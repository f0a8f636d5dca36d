//! The calls of Bokbasen's API, one method for each.

use http::Method;
use jiff::Timestamp;

use super::call::{Call, CallScope};
use super::response::ApiResponse;
use super::{
    Availability, Begin, Bokbasen, CallError, CallKind, EndAck, Listing, MaySend, RemoteLoan,
    protocol_breaches, wire,
};
use crate::crash;
use crate::loan::{EndReason, Isbn, LibraryId, Reference};
use crate::telemetry::LendingCall;

impl Bokbasen {
    /// Begins a loan. The request is never sent twice. It waits for a slot, a login and a
    /// connection under one deadline. It is sent only if `may_send` returns true immediately before
    /// its first byte.
    ///
    /// # Errors
    /// [`CallError::NotSent`] and [`CallError::Rejected`] if it is certain that no loan was
    /// created. After [`CallError::Unknown`], find the reference before anything else: Bokbasen
    /// does not deduplicate.
    pub async fn begin(&self, begin: &Begin, may_send: MaySend) -> Result<RemoteLoan, CallError> {
        if self.clock_is_off() {
            return Err(CallError::NotSent("the clock is too far from Bokbasen's".to_owned()));
        }
        let title = (begin.library.as_str(), begin.isbn.number());
        let subject = self.transport.guard.subject_within(begin.reference.as_str(), title);
        let call =
            Call::once((CallKind::Begin, subject), LendingCall::Begin, Method::POST, wire::loans())
                .body(&wire::NewLoan::from(begin))
                .guarded(self.transport.send_guard(may_send));
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
        if crash::has_defect("finds-no-loan") {
            return Ok(Vec::new());
        }
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
        if crash::has_defect("sends-no-end") {
            return Ok(EndAck::Done);
        }
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

    fn end_scope(&self, lending_id: &str) -> CallScope {
        (CallKind::End, self.transport.guard.subject(lending_id))
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
}

/// Interprets the response to an end (assumed: an end of a loan that is already over is done).
fn end_response(response: Result<ApiResponse, CallError>) -> Result<EndAck, CallError> {
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
