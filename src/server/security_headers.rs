//! Header fields for the reader's security that every answer of the public listener has.
//!
//! The dispatcher adds them. What a gated document may do in a browser is `delivery`'s to say.

use std::time::Duration;

use http::header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderValue};

/// Links carry tokens in their address, which no other site may learn.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

/// The fields, built once.
#[derive(Clone, Debug)]
pub struct SecurityHeaders {
    hsts: Option<HeaderValue>,
}

impl SecurityHeaders {
    /// With Strict-Transport-Security (RFC 6797) for this long, or without it where that is zero.
    pub fn new(hsts: Duration) -> SecurityHeaders {
        let seconds = hsts.as_secs();
        let hsts = (seconds > 0).then(|| HeaderValue::try_from(format!("max-age={seconds}")).ok());
        SecurityHeaders { hsts: hsts.flatten() }
    }

    /// Adds the fields to an answer.
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
    fn hsts_is_sent_in_seconds_or_not_at_all() {
        let mut fields = HeaderMap::new();
        SecurityHeaders::new(Duration::ZERO).add(&mut fields);
        assert_eq!(fields["referrer-policy"], "no-referrer");
        assert!(!fields.contains_key("strict-transport-security"));
        SecurityHeaders::new(Duration::from_secs(180 * 86_400)).add(&mut fields);
        assert_eq!(fields["strict-transport-security"], "max-age=15552000");
    }
}
