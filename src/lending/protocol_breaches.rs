//! Answers of Bokbasen that break its own API: counted, and logged as an alarm, never passed over
//! in silence.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{RemoteLoan, Standing};
use crate::loan::Reference;
use crate::telemetry::Metrics;

/// How often a breach of one kind is logged; each is counted.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// How an answer breaks the API.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Breach {
    UnknownStatus,
    NoReference,
    OtherReference,
}

impl Breach {
    fn name(self) -> &'static str {
        match self {
            Breach::UnknownStatus => "unknown_status",
            Breach::NoReference => "no_reference",
            Breach::OtherReference => "other_reference",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Breach::UnknownStatus => {
                "Bokbasen shows a loan in a status that is not known; it counts as not accepted"
            }
            Breach::NoReference => {
                "Bokbasen lists a loan without its reference; report it to Bokbasen"
            }
            Breach::OtherReference => {
                "Bokbasen lists a loan of another reference than was asked for; report it to Bokbasen"
            }
        }
    }
}

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

    /// Notes what is wrong with one loan as answered.
    pub(super) fn check(&self, loan: &RemoteLoan) {
        if let Standing::Unrecognised(status) = &loan.standing {
            self.note(Breach::UnknownStatus, loan, Some(status));
        }
    }

    /// Notes what is wrong with listed loans.
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
        self.metrics.lending_breach(breach.name());
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.iter().any(|(other, at)| *other == breach && at.elapsed() < LOG_AGAIN) {
            return;
        }
        logged.retain(|(other, _)| *other != breach);
        logged.push((breach, Instant::now()));
        tracing::error!(
            breach = breach.name(),
            lending_id = loan.lending_id,
            status,
            "{}",
            breach.sentence()
        );
    }
}

/// Whether a listing of one reference can be believed: what it does not show may otherwise exist
/// all the same.
pub(super) fn is_believable(loans: &[RemoteLoan], reference: &Reference) -> bool {
    let is_ours = |loan: &RemoteLoan| loan.reference.as_ref() == Some(reference);
    loans.iter().all(|loan| loan.reference.is_some())
        && (loans.is_empty() || loans.iter().any(is_ours))
}
