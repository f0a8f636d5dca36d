//! JSON responses of the provider.

use http::StatusCode;
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::reader::{ResponseError, send};

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
    let (status, _, body) = send(request).await.map_err(ResponseError::why)?;
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
