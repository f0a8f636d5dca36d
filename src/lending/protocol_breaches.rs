//! Detection of responses that break Bokbasen's own API. Every breach is counted and logged as an
//! error.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::{RemoteLoan, Standing};
use crate::loan::Reference;
use crate::lock::lock;
use crate::telemetry::{Breach, Metrics};

/// The interval at which breaches of one kind are logged; each is counted.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Counts and logs breaches.
#[derive(Debug)]
pub(super) struct Breaches {
    metrics: Metrics,
    logged: Mutex<Vec<(Breach, Instant)>>,
}

impl Breaches {
    pub(super) fn new(metrics: Metrics) -> Breaches {
        Breaches { metrics, logged: Mutex::default() }
    }

    /// Checks one loan of a response.
    pub(super) fn check(&self, loan: &RemoteLoan) {
        if let Standing::Unrecognised(status) = &loan.standing {
            self.note(Breach::UnknownStatus, loan, Some(status));
        }
    }

    /// Checks the loans of a listing.
    pub(super) fn check_listed(&self, loans: &[RemoteLoan]) {
        for loan in loans {
            self.check(loan);
            if loan.reference.is_none() {
                self.note(Breach::NoReference, loan, None);
            }
        }
    }

    /// As [`Breaches::check_listed`], for a listing of one reference.
    pub(super) fn check_found(&self, loans: &[RemoteLoan], reference: &Reference) {
        self.check_listed(loans);
        let others = loans
            .iter()
            .filter(|loan| loan.reference.as_ref().is_some_and(|other| other != reference));
        others.for_each(|loan| self.note(Breach::OtherReference, loan, None));
    }

    fn note(&self, breach: Breach, loan: &RemoteLoan, status: Option<&str>) {
        self.metrics.lending_breach(breach);
        let mut logged = lock(&self.logged);
        if logged.iter().any(|(other, at)| *other == breach && at.elapsed() < LOG_INTERVAL) {
            return;
        }
        logged.retain(|(other, _)| *other != breach);
        logged.push((breach, Instant::now()));
        tracing::error!(
            breach = breach.name(),
            lending_id = loan.lending_id,
            status,
            "{}",
            sentence(breach)
        );
    }
}

/// Whether a listing of one reference is trustworthy. In any other listing, a missing loan may
/// exist all the same.
pub(super) fn is_believable(loans: &[RemoteLoan], reference: &Reference) -> bool {
    let is_ours = |loan: &RemoteLoan| loan.reference.as_ref() == Some(reference);
    loans.iter().all(|loan| loan.reference.is_some())
        && (loans.is_empty() || loans.iter().any(is_ours))
}

/// Returns what the log says of a breach.
fn sentence(breach: Breach) -> &'static str {
    match breach {
        Breach::UnknownStatus => {
            "Bokbasen reports an unknown loan status; it counts as not accepted"
        }
        Breach::NoReference => "Bokbasen lists a loan without its reference; report it to Bokbasen",
        Breach::OtherReference => {
            "Bokbasen lists a loan of another reference than requested; report it to Bokbasen"
        }
    }
}
