//! Serializes a [`Problem`] as a response.
//!
//! The dispatcher calls it, and no other module writes problems. The body is the problem document
//! (RFC 9457), the header fields follow the status (RFC 9110), and caches must not store it.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, Response, StatusCode, Version};

use crate::delivery::Body;
use crate::problem::{Document, Problem};
use crate::telemetry::RequestId;

/// Returns the response for a problem that the request of this id met.
pub(super) fn problem(
    problem: &Problem,
    id: RequestId,
    method: &Method,
    version: Version,
) -> Response<Body> {
    let document = Document { instance: Some(id.urn()), ..problem.document() };
    let document = serde_json::to_vec(&document).unwrap_or_default();
    let length = document.len();
    let mut response = Response::new(if method == Method::HEAD { empty() } else { full(document) });
    *response.status_mut() = problem.status();
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if method == Method::HEAD {
        fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(seconds) = problem.retry_after() {
        fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    match problem {
        Problem::ReaderUnauthenticated(_) => {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Problem::MethodNotAllowed(methods) => {
            fields.insert(ALLOW, HeaderValue::from_static(methods));
        }
        Problem::RangeNotSatisfiable { complete_length } => {
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{complete_length}")) {
                fields.insert(CONTENT_RANGE, value);
            }
        }
        // The request's body may be unread, so an HTTP/1.1 connection cannot be reused.
        Problem::RequestMalformed(_) if version < Version::HTTP_2 => {
            fields.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// Returns a response with status 204.
pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Returns a body with these bytes.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Body::full(bytes.into())
}

/// Returns an empty body.
pub(super) fn empty() -> Body {
    Body::empty()
}
