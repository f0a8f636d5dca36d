//! Client of Bokbasen's lending API. It depends only on the shared types in `loan`.
//!
//! Circulation calls it. Each call returns a response or a [`CallError`], which says whether
//! Bokbasen may have acted on the call. The invariant "one loan, once" rests on that distinction. A
//! begin is sent once; only repeatable calls are retried.
//!
//! - `wire` holds every path and body, so that one module changes when an assumption is corrected.
//! - `auth` holds the two login methods.
//! - `guard` holds the limits and breakers. They protect Bokbasen from loangate, and each kind of
//!   call from the others.
//! - `client` has a method for each call, and `transport` sends every call.
//! - `reporting` is the client of the Reporting API, beside that of the loans.
//! - `condition` reports whether calls are sent at the moment.

mod auth;
mod availability;
mod breaker;
mod bulkhead;
mod call;
mod client;
mod clock_skew;
mod condition;
mod error;
mod guard;
mod http_client;
mod kind;
mod listing;
mod outage_reason;
mod protocol_breaches;
mod received_text;
mod remote_loan;
mod reporting;
mod response;
mod send_guard;
mod transport;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::clock::Clock;
use crate::telemetry::Metrics;

pub use auth::Auth;
pub use availability::{Availability, FreeLicence};
pub use breaker::Passage;
pub use error::{CallError, SetUpError};
pub use kind::CallKind;
pub use listing::{Listing, Page, Unreadable};
pub use outage_reason::OutageReason;
pub use remote_loan::{Begin, EndAck, RemoteLoan, Standing};
pub use reporting::{ReportOutcome, Reporting, ReportingSettings, UsageReport};
pub use send_guard::MaySend;
use transport::Transport;

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

    /// Logs in with these credentials from now on, if the method is the same. Addresses stay.
    pub fn set_credentials(&self, auth: &Auth) {
        self.transport.set_credentials(auth);
    }

    /// Logs out, if the login method supports it.
    pub async fn close(&self) {
        self.transport.log_out().await;
    }
}
