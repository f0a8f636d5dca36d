//! The parts of a response that do not depend on the call: body, Retry-After, and the cause of an
//! error.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use crate::http_calls::{self, BodyError, innermost};

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

/// Parses Retry-After, up to [`MAX_RETRY_AFTER`].
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    http_calls::retry_after(headers, now).map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Reads a response body of at most [`MAX_RESPONSE`] bytes.
pub(super) async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let read = http_calls::read_body(&mut response, MAX_RESPONSE).await;
    read.map_err(|error| match error {
        BodyError::Failed(error) => cause(error),
        BodyError::TooLarge => "the response is larger than 4 MiB".to_owned(),
    })
}

/// Returns the message of the innermost error, without the URL.
pub(super) fn cause(error: reqwest::Error) -> String {
    innermost(&error.without_url())
}
