//! The parts of a response that do not depend on the call: body, Retry-After, and the cause of an
//! error.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use crate::clock;

/// The longest Retry-After that is honoured; a single bad response must not block callers for good.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The largest response body that is read, in bytes.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// A 2xx response.
#[derive(Debug)]
pub(super) struct ApiResponse {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<Duration>,
    /// The cursor of the next page.
    pub(super) next: Option<String>,
}

/// Parses Retry-After, in seconds or as a date (RFC 9110 §10.2.3), up to [`MAX_RETRY_AFTER`].
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let named = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(text).ok()?;
            clock::until(now, Timestamp::try_from(at).ok()?)
        }
    };
    Some(named.min(MAX_RETRY_AFTER))
}

/// Reads a response body of at most [`MAX_RESPONSE`] bytes.
pub(super) async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cause)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err("the response is larger than 4 MiB".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the message of the innermost error, without the URL.
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    let mut message = error.to_string();
    while let Some(source) = innermost.source() {
        message = source.to_string();
        innermost = source;
    }
    message
}
