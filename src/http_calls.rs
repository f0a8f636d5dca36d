//! What the clients of other systems have in common: they go nowhere else, read a response within
//! bounds, and say why there is none. Every module may call it.

use std::error::Error;
use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response};

use crate::clock;

/// Begins a client that sends a request once, to its address and to no other.
pub(crate) fn client() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(concat!("loangate/", env!("CARGO_PKG_VERSION")))
}

/// Why a response body cannot be used.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// It did not arrive.
    Failed(reqwest::Error),
    /// It is longer than the caller reads.
    TooLarge,
}

/// Reads the body of a response, if it has this many bytes at most.
///
/// # Errors
/// [`BodyError`]
pub(crate) async fn read_body(
    response: &mut Response,
    most_bytes: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Failed)? {
        if body.len() + chunk.len() > most_bytes {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the message of the innermost error, which is the cause of the others.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Parses Retry-After, in seconds or as a date (RFC 9110 §10.2.3). The caller bounds it.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
    Some(clock::until(now, date))
}
