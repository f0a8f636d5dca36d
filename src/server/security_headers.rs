//! Header fields for the reader's security, in every response of the public listener.
//!
//! The dispatcher adds them. `delivery` sets the fields that restrict a gated document in a
//! browser.

use std::time::Duration;

use http::header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderValue};

/// A signed link contains a token, which other sites must not receive.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

/// The fields that every response has.
#[derive(Clone, Debug)]
pub(crate) struct SecurityHeaders {
    hsts: Option<HeaderValue>,
}

impl SecurityHeaders {
    /// Builds the fields. Strict-Transport-Security (RFC 6797) has this `max-age`, and is omitted
    /// if it is zero.
    pub(crate) fn new(hsts: Duration) -> SecurityHeaders {
        let seconds = hsts.as_secs();
        let hsts = (seconds > 0).then(|| HeaderValue::try_from(format!("max-age={seconds}")).ok());
        SecurityHeaders { hsts: hsts.flatten() }
    }

    /// Adds the fields to a response.
    pub(super) fn add(&self, fields: &mut HeaderMap) {
        fields.insert(REFERRER_POLICY, NO_REFERRER);
        if let Some(hsts) = &self.hsts {
            fields.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hsts_is_sent_in_seconds_or_omitted() {
        let mut fields = HeaderMap::new();
        SecurityHeaders::new(Duration::ZERO).add(&mut fields);
        assert_eq!(fields["referrer-policy"], "no-referrer");
        assert!(!fields.contains_key("strict-transport-security"));
        SecurityHeaders::new(Duration::from_secs(180 * 86_400)).add(&mut fields);
        assert_eq!(fields["strict-transport-security"], "max-age=15552000");
    }
}
