//! The HTTP client of an OpenID provider, and its responses: bounded in size and time.
//!
//! `provider` fetches the keys of reader tokens with it, and the console signs staff in with it. It
//! follows no redirect and uses no proxy, so that only the configured provider answers.

use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT;
use reqwest::{Client, RequestBuilder, Response};

use crate::http_calls::{self, BodyError, innermost, read_body};

/// The deadline of a request, with its response.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response, in bytes.
const MAX_RESPONSE: usize = 256 * 1024;

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum ResponseError {
    /// The provider cannot be reached, or does not answer in time.
    Failed(String),
    /// The response is larger than 256 KiB.
    TooLarge,
}

impl ResponseError {
    /// Returns the reason as a phrase.
    pub(crate) fn why(self) -> String {
        match self {
            ResponseError::Failed(why) => why,
            ResponseError::TooLarge => "the response is larger than 256 KiB".to_owned(),
        }
    }
}

/// Creates a client.
///
/// # Errors
/// The error of TLS, if it does not start.
pub(crate) fn provider_client() -> Result<Client, reqwest::Error> {
    http_calls::client()
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(0)
        .build()
}

/// Sends a request for JSON. Returns the status, the head and the body of the response.
pub(crate) async fn send(
    request: RequestBuilder,
) -> Result<(StatusCode, http::HeaderMap, Vec<u8>), ResponseError> {
    let sent = request.header(ACCEPT, "application/json").send().await;
    let mut response: Response = sent.map_err(failure)?;
    let body = read_body(&mut response, MAX_RESPONSE).await.map_err(|error| match error {
        BodyError::Failed(error) => failure(error),
        BodyError::TooLarge => ResponseError::TooLarge,
    })?;
    Ok((response.status(), std::mem::take(response.headers_mut()), body))
}

/// Returns the message of the innermost error, without the URL, which may have a code.
fn failure(error: reqwest::Error) -> ResponseError {
    ResponseError::Failed(innermost(&error.without_url()))
}
