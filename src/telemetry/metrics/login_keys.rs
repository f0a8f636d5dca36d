//! Metrics of the keys that are fetched from login services.

use std::time::Duration;

use metrics::{SharedString, Unit};

use super::Metrics;
use super::family::{Definition, Family};
use super::label::{Label, LabelValues, label_enum};

const FETCHES: Family<(Issuer, KeyFetch)> = Family::counter(
    "loangate_login_key_fetches_total",
    Unit::Count,
    "Fetches of the keys of login services, by issuer and outcome",
);
const AGE: Family<Issuer> = Family::gauge(
    "loangate_login_key_age_seconds",
    Unit::Seconds,
    "Time since the keys of a login service were last fetched",
);

pub(super) const DEFINITIONS: [Definition; 2] = [FETCHES.definition, AGE.definition];

/// The issuer of a login service.
struct Issuer(String);

impl Label for Issuer {
    const KEY: &'static str = "issuer";

    fn values() -> LabelValues {
        LabelValues::Configured(
            "the `issuer` of `[readers.jwt]` or of one of `[[readers.issuers]]`",
        )
    }

    fn value(&self) -> SharedString {
        SharedString::from_owned(self.0.clone())
    }
}

label_enum! {
    /// The result of a fetch of keys.
    pub enum KeyFetch: "outcome" {
        /// The login service answered with keys.
        Ok = "ok",
        /// It cannot be reached, did not answer in time, or answered with an error.
        Failed = "failed",
        /// Its answer cannot be used.
        Invalid = "invalid",
    }
}

impl Metrics {
    /// Counts a fetch of the keys of a login service.
    pub fn login_key_fetch(&self, issuer: &str, outcome: KeyFetch) {
        self.count(&FETCHES, (Issuer(issuer.to_owned()), outcome));
    }

    /// Records the time since the keys of a login service were fetched.
    pub fn login_key_age(&self, issuer: &str, age: Duration) {
        self.set(&AGE, Issuer(issuer.to_owned()), age.as_secs_f64());
    }
}
