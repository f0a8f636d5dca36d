//! Client of the Reporting API (page "Reporting API"), which counts loans that are paid by use.
//!
//! It has connections, a login, limits and a breaker of its own, so that reports never delay a
//! loan. Bokbasen documents no idempotency key, so a report is sent once, and the result says
//! whether Bokbasen may have recorded it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use jiff::civil::Date;
use url::Url;

use super::call::Call;
use super::transport::Transport;
use super::{Auth, CallError, CallKind, MaySend, SetUpError, Settings, wire};
use crate::clock::Clock;
use crate::loan::Isbn;
use crate::telemetry::{LendingCall, Metrics};

/// The most reports in flight at once. Circulation sends one after the other.
const CONCURRENCY: usize = 8;

/// Where reports are sent.
#[derive(Clone, Debug)]
pub struct ReportingSettings {
    /// The base URL of the API.
    pub url: Url,
    /// The audience of its OAuth tokens; none for that of the loans.
    pub audience: Option<String>,
}

/// A report to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UsageReport {
    /// The title.
    pub isbn: Isbn,
    /// How the licence is paid, as Bokbasen names it.
    pub model: &'static str,
    /// The price, in øre.
    pub price: u64,
    /// The day on which it became due, in Europe/Oslo.
    pub date: Date,
}

/// The result of sending a report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReportOutcome {
    /// Bokbasen has recorded it.
    Recorded,
    /// Nothing was recorded, for a reason that concerns all reports. It may be sent again, but not
    /// before this time has passed.
    NotRecorded(String, Option<Duration>),
    /// Nothing was recorded: Bokbasen refuses this report.
    Refused(String),
    /// Bokbasen may have recorded it. It must not be sent again.
    Unknown(String),
}

/// Client of the Reporting API. Clones share its connections, its login and its limits.
#[derive(Clone)]
pub struct Reporting {
    transport: Arc<Transport>,
}

impl fmt::Debug for Reporting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporting").finish_non_exhaustive()
    }
}

impl Reporting {
    /// Creates a client with the login of the loans, without sending anything.
    ///
    /// # Errors
    /// [`SetUpError`] if TLS cannot be set up, or if the address cannot be a base URL.
    pub fn new(
        settings: &ReportingSettings,
        lending: &Settings,
        clock: &Clock,
        metrics: Metrics,
    ) -> Result<Reporting, SetUpError> {
        let mut auth = lending.auth.clone();
        if let (Auth::OAuth { audience, .. }, Some(own)) = (&mut auth, &settings.audience) {
            own.clone_into(audience);
        }
        let settings =
            Settings { url: settings.url.clone(), auth, concurrency: CONCURRENCY, ..*lending };
        let transport = Arc::new(Transport::apart(&settings, clock, metrics)?);
        Ok(Reporting { transport })
    }

    /// Logs in with these credentials from now on, if the method is the same. Addresses stay.
    pub fn set_credentials(&self, auth: &Auth) {
        self.transport.set_credentials(auth);
    }

    /// Sends a report, once. It is sent only if `may_send` returns true immediately before its
    /// first byte.
    pub async fn send(&self, report: &UsageReport, may_send: MaySend) -> ReportOutcome {
        let subject = self.transport.guard.subject(report.isbn.number());
        let scope = (CallKind::Read, subject);
        let call = Call::once(scope, LendingCall::Report, Method::POST, wire::reports())
            .body(&wire::NewReport::from(report))
            .guarded(self.transport.send_guard(may_send));
        match self.transport.send(&call).await {
            Ok(response) if response.status == StatusCode::NO_CONTENT => ReportOutcome::Recorded,
            Ok(response) => {
                let status = response.status;
                ReportOutcome::Unknown(format!("Bokbasen answered {status} in place of 204"))
            }
            Err(error) => outcome_of(&error),
        }
    }

    /// Logs in, for `loangate check`.
    ///
    /// # Errors
    /// [`CallError`], if the login fails.
    pub async fn try_login(&self) -> Result<(), CallError> {
        self.transport.login().await
    }

    /// Logs out, if the login method supports it.
    pub async fn close(&self) {
        self.transport.log_out().await;
    }
}

/// Interprets a failure. A 4xx that no page documents may be that of a proxy, which says nothing
/// about Bokbasen.
fn outcome_of(error: &CallError) -> ReportOutcome {
    let why = error.to_string();
    match error {
        CallError::NotSent(_) => ReportOutcome::NotRecorded(why, None),
        CallError::Rejected { status: 400, .. } => ReportOutcome::Refused(why),
        CallError::Rejected { status: 404, code, .. } if code == wire::TITLE_NOT_FOUND => {
            ReportOutcome::Refused(why)
        }
        // The token or the rate.
        CallError::Rejected { status: 401 | 429, retry_after, .. } => {
            ReportOutcome::NotRecorded(why, *retry_after)
        }
        // The contract or the address. Without a code of Bokbasen, a proxy may have answered so
        // after Bokbasen recorded the report.
        CallError::Rejected { status: 403..=405, code, retry_after, .. } if !code.is_empty() => {
            ReportOutcome::NotRecorded(why, *retry_after)
        }
        CallError::Rejected { .. } | CallError::Unknown(_) => ReportOutcome::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(status: u16, code: &str) -> CallError {
        let retry_after = Some(Duration::from_secs(7));
        CallError::Rejected { status, code: code.to_owned(), message: String::new(), retry_after }
    }

    #[test]
    fn only_an_answer_that_proves_it_permits_another_attempt() {
        let may_be_sent_again =
            |error: &CallError| matches!(outcome_of(error), ReportOutcome::NotRecorded(..));
        assert!(may_be_sent_again(&CallError::NotSent("no connection".to_owned())));
        for (status, code) in
            [(401, ""), (403, "FORBIDDEN"), (404, "NOT_FOUND"), (405, "METHOD"), (429, "")]
        {
            assert!(may_be_sent_again(&rejected(status, code)), "{status}");
        }
        for (status, code) in [(400, "MALFORMED"), (404, "TITLE_NOT_FOUND")] {
            let outcome = outcome_of(&rejected(status, code));
            assert!(matches!(outcome, ReportOutcome::Refused(_)), "{status}: {outcome:?}");
        }
        for status in [402, 403, 404, 405, 409, 410, 421, 425, 451, 499] {
            let outcome = outcome_of(&rejected(status, ""));
            assert!(matches!(outcome, ReportOutcome::Unknown(_)), "{status}: {outcome:?}");
        }
        let lost = CallError::Unknown("the connection closed".to_owned());
        assert!(matches!(outcome_of(&lost), ReportOutcome::Unknown(_)));
    }
}
