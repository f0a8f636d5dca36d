//! The field Retry-After of an origin's response (RFC 9110 §10.2.3), bounded.

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;

use crate::clock::{self, Clock};

/// The longest wait that an origin can impose on a reader.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Returns how long clients must wait before a retry; `None` for a missing, invalid or past value.
pub(crate) fn retry_after(fields: &HeaderMap) -> Option<Duration> {
    let text = fields.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with more digits than a u64 has is still a long wait.
        text.parse().map_or(MAX_WAIT, Duration::from_secs)
    } else {
        // A date too far in the future to be represented is a long wait.
        let at = Timestamp::try_from(httpdate::parse_http_date(text).ok()?);
        at.map_or(MAX_WAIT, |at| clock::until(Clock::system().now(), at))
    };
    (!wait.is_zero()).then_some(wait.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wait(value: &str) -> Option<Duration> {
        let mut fields = HeaderMap::new();
        fields.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        retry_after(&fields)
    }

    #[test]
    fn seconds_and_dates_are_bounded() {
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        for long in [
            "3601",
            "1000000000000000000",
            "99999999999999999999999999",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            assert_eq!(wait(long), Some(MAX_WAIT), "{long}");
        }
        for none in ["0", "", "-1", "+5", "1.5", "soon", "Mon, 05 Jan 2026 08:00:00 GMT"] {
            assert_eq!(wait(none), None, "{none}");
        }
        let soon = clock::after(Clock::system().now(), Duration::from_secs(100));
        let soon = Duration::from_secs(soon.as_second().unsigned_abs());
        let soon = httpdate::fmt_http_date(std::time::SystemTime::UNIX_EPOCH + soon);
        assert!(wait(&soon).is_some_and(|wait| wait <= Duration::from_secs(100)), "{soon}");
    }
}
