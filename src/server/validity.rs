//! The validity period of a certificate, and its problems.
//!
//! `certificate_file` reads it. `check` and the running gate report its problems.

use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::clock;

/// How long before its expiry a certificate is reported.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// The validity period of a certificate, both ends included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Validity {
    from: Timestamp,
    until: Timestamp,
}

/// A problem with the validity period of a certificate. Its text ends with what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum DateProblem {
    /// The certificate has expired, and clients refuse it.
    #[error(
        "the certificate expired at {0}, so that clients refuse the connection. Renew it; \
         a running gate loads it by itself"
    )]
    Expired(Timestamp),
    /// The certificate is not valid yet, and clients refuse it.
    #[error(
        "the certificate is not valid before {0}, so that clients refuse the connection. \
         Check this machine's clock, or use the previous certificate until then"
    )]
    NotYetValid(Timestamp),
    /// The certificate expires within 14 days.
    #[error("the certificate expires at {0}. Renew it before; a running gate loads it by itself")]
    ExpiresSoon(Timestamp),
}

impl DateProblem {
    /// Whether clients refuse the certificate now.
    pub(crate) fn is_fatal(self) -> bool {
        !matches!(self, DateProblem::ExpiresSoon(_))
    }

    /// The name of the problem in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DateProblem::Expired(_) => "expired",
            DateProblem::NotYetValid(_) => "not_yet_valid",
            DateProblem::ExpiresSoon(_) => "expires_soon",
        }
    }
}

impl Validity {
    /// Reads the validity period of the server's own certificate. An expired intermediate is not
    /// checked: clients may build another chain, as with cross-signed roots.
    pub(super) fn of(own: &CertificateDer<'_>) -> Result<Validity, String> {
        let (_, parsed) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
        let moment = |at: ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|error| error.to_string())
        };
        Ok(Validity {
            from: moment(parsed.validity.not_before)?,
            until: moment(parsed.validity.not_after)?,
        })
    }

    /// Returns the first and the last moment at which the certificate is valid.
    pub(crate) fn bounds(self) -> (Timestamp, Timestamp) {
        (self.from, self.until)
    }

    /// Returns the last moment at which the certificate is valid.
    pub(super) fn until(self) -> Timestamp {
        self.until
    }

    /// Returns the problem at `now`, or the expiry within 14 days after it.
    pub(crate) fn problem(self, now: Timestamp) -> Option<DateProblem> {
        if now > self.until {
            Some(DateProblem::Expired(self.until))
        } else if now < self.from {
            Some(DateProblem::NotYetValid(self.from))
        } else if clock::after(now, EXPIRES_SOON) > self.until {
            Some(DateProblem::ExpiresSoon(self.until))
        } else {
            None
        }
    }
}
