//! Which of an origin's fields a reader gets to see, and which the gate adds.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE,
    ETAG, EXPIRES, LAST_MODIFIED, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::kinds;
use crate::path::FilePath;

/// What describes the representation (RFC 9110 §8); everything else stays behind.
const PASSED: [HeaderName; 6] =
    [CONTENT_TYPE, CONTENT_LANGUAGE, CONTENT_ENCODING, CONTENT_DISPOSITION, ETAG, LAST_MODIFIED];
/// What may be stored of an open file is for its origin to say.
const PASSED_WHEN_OPEN: [HeaderName; 2] = [CACHE_CONTROL, EXPIRES];

/// Whether a file is under a loan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Gated,
    Open,
}

/// Passes the fields of an origin's answer on; a type that says nothing gives way to what the file's name says.
pub(super) fn pass(from: &HeaderMap, kind: Kind, path: &FilePath, to: &mut HeaderMap) {
    to.reserve(10);
    copy(from, &PASSED, to);
    match kind {
        Kind::Gated => {
            to.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        }
        Kind::Open => copy(from, &PASSED_WHEN_OPEN, to),
    }
    if to.get(CONTENT_TYPE).is_none_or(kinds::says_nothing) {
        let by_name = kinds::by_name(path.as_str());
        let kind = by_name.unwrap_or(HeaderValue::from_static("application/octet-stream"));
        to.insert(CONTENT_TYPE, kind);
    }
    to.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    to.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

fn copy(from: &HeaderMap, names: &[HeaderName], to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}

/// Whether the bytes are packed (RFC 9110 §8.4), although they were asked for as they are.
pub(super) fn is_encoded(answer: &HeaderMap) -> bool {
    answer.get(CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a body without a length still tells its end (RFC 9112 §6.3): chunked does, a closed connection not.
pub(super) fn is_framed(answer: &HeaderMap) -> bool {
    let coding = answer.get(TRANSFER_ENCODING).and_then(|coding| coding.to_str().ok());
    coding.is_some_and(|coding| coding.trim().to_ascii_lowercase().ends_with("chunked"))
}
