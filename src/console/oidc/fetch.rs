//! JSON responses of the provider, bounded in size. The client bounds their time.

use http::StatusCode;
use http::header::ACCEPT;
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The largest response, in bytes.
const MAX_RESPONSE: usize = 256 * 1024;
/// The errors of a token endpoint (RFC 6749 §5.2).
const ERROR_CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// Why there is no usable response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FetchError {
    /// The error of the token endpoint, if it names one.
    pub(super) code: Option<&'static str>,
    /// What failed, as a phrase for the log.
    pub(super) why: String,
}

impl From<String> for FetchError {
    fn from(why: String) -> FetchError {
        FetchError { code: None, why }
    }
}

/// The error of a token endpoint.
#[derive(Default, Deserialize)]
struct Refusal {
    error: String,
}

/// Sends a request, and reads its JSON response.
pub(super) async fn fetch<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, FetchError> {
    let response = request.header(ACCEPT, "application/json").send().await.map_err(cause)?;
    let status = response.status();
    let body = read_body(response).await?;
    if status != StatusCode::OK {
        return Err(refusal(status, &body));
    }
    serde_json::from_slice(&body)
        .map_err(|_| "the response has not the members of OpenID Connect".to_owned().into())
}

/// Returns the error of a response that reports a failure.
fn refusal(status: StatusCode, body: &[u8]) -> FetchError {
    let Refusal { error } = serde_json::from_slice(body).unwrap_or_default();
    let code = ERROR_CODES.into_iter().find(|code| *code == error);
    let is_code = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let why = match error.len() <= 64 && error.bytes().all(is_code) {
        true => format!("the provider answered {status} {error}"),
        false => format!("the provider answered {status}"),
    };
    FetchError { code, why }
}

async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cause)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err("the response is larger than 256 KiB".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the message of the innermost error, without the URL, which may have a code.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_of_the_token_endpoint_are_told_apart() {
        let of = |body: &str| refusal(StatusCode::BAD_REQUEST, body.as_bytes());
        for code in ERROR_CODES {
            let error = of(&format!("{{\"error\":\"{code}\"}}"));
            assert_eq!(error.code, Some(code));
            assert!(error.why.ends_with(code), "{error:?}");
        }
        for body in ["", "<html>", "{\"error\":7}", "{\"error\":\"server_error\"}"] {
            assert_eq!(of(body).code, None, "{body}");
        }
        let error = of("{\"error\":\"a\\nb\"}");
        assert_eq!(error.why, "the provider answered 400 Bad Request");
    }
}
