//! The response for one file: headers, conditions, a single range, and the body in slices.
//!
//! It implements what the gate needs of RFC 9110: If-Match, If-Range, and a single range of a GET.
//! It ignores multiple ranges and malformed ones.

use std::ops::Range;

use bytes::Bytes;
use headers::{ETag, HeaderMapExt, IfMatch};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use http::response::Builder;
use http::{HeaderMap, Method, Response, StatusCode};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header};

use super::File;
use super::content::Slices;

/// The `Last-Modified` date of every file, the same as in the books.
const MODIFIED: &str = "Mon, 05 Jan 2026 08:00:00 GMT";

/// Builds the response to a GET or HEAD of this file.
pub(super) fn build(
    file: &File,
    method: &Method,
    request: &HeaderMap,
) -> Result<Response<Slices>, http::Error> {
    let complete = file.content.len();
    if !if_match_passes(file, request) {
        return empty_response(StatusCode::PRECONDITION_FAILED);
    }
    let response = Response::builder()
        .header(ETAG, file.etag())
        .header(LAST_MODIFIED, MODIFIED)
        .header(ACCEPT_RANGES, "bytes");
    // A range has no meaning for HEAD (RFC 9110 §14.2).
    let range = (method == Method::GET && range_applies(file, request))
        .then(|| requested_range(request))
        .flatten();
    let Some(range) = range else {
        let response = response.header(CONTENT_TYPE, file.content_type);
        return with_body(response, file.content.slices(0..complete), method);
    };
    match within(&range, complete) {
        Some(part) => {
            let field = format!("bytes {}-{}/{complete}", part.start, part.end - 1);
            let response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_TYPE, file.content_type)
                .header(CONTENT_RANGE, field);
            with_body(response, file.content.slices(part), method)
        }
        None => {
            let response = response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(CONTENT_RANGE, format!("bytes */{complete}"));
            with_body(response, Slices::of(Bytes::new()), method)
        }
    }
}

/// Builds a response with only a status.
pub(super) fn empty_response(status: StatusCode) -> Result<Response<Slices>, http::Error> {
    with_body(Response::builder().status(status), Slices::of(Bytes::new()), &Method::GET)
}

/// Adds the body to a response. A HEAD response only gets the length.
pub(super) fn with_body(
    response: Builder,
    body: Slices,
    method: &Method,
) -> Result<Response<Slices>, http::Error> {
    let response = response.header(CONTENT_LENGTH, body.len());
    let is_head = method == Method::HEAD;
    response.body(if is_head { Slices::of(Bytes::new()) } else { body })
}

/// Whether If-Match allows the request. A malformed value does not.
fn if_match_passes(file: &File, request: &HeaderMap) -> bool {
    if !request.contains_key(IF_MATCH) {
        return true;
    }
    let expected_tag: Option<IfMatch> = request.typed_get();
    let etag: Option<ETag> = file.etag().parse().ok();
    expected_tag
        .zip(etag)
        .is_some_and(|(expected_tag, etag)| expected_tag.precondition_passes(&etag))
}

/// Whether If-Range allows the range: it is absent, or exactly the file's validator.
fn range_applies(file: &File, request: &HeaderMap) -> bool {
    match request.get(IF_RANGE) {
        None => true,
        Some(expected_tag) => {
            expected_tag.as_bytes() == file.etag().as_bytes() || expected_tag == MODIFIED
        }
    }
}

/// Returns the request's range, if it is a single, valid one.
fn requested_range(request: &HeaderMap) -> Option<SyntacticallyCorrectRange> {
    let parsed = parse_range_header(request.get(RANGE)?.to_str().ok()?).ok()?;
    let mut ranges = parsed.into_ranges().into_iter();
    let first = ranges.next()?;
    ranges.next().is_none().then_some(first)
}

/// Returns the byte positions of a range in a file of this length; none if outside. Never empty.
fn within(range: &SyntacticallyCorrectRange, complete: usize) -> Option<Range<usize>> {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (start, end) = match *range {
        SyntacticallyCorrectRange::FromStart(first) => (number(first), complete),
        SyntacticallyCorrectRange::Indexed(first, last) => {
            (number(first), number(last).saturating_add(1).min(complete))
        }
        SyntacticallyCorrectRange::FromLast(count) => {
            (complete.saturating_sub(number(count)), complete)
        }
    };
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_file() {
        for (range, expected) in [
            ("bytes=0-", Some(0..10)),
            ("bytes=9-", Some(9..10)),
            ("bytes=10-", None),
            ("bytes=2-3", Some(2..4)),
            ("bytes=2-99", Some(2..10)),
            ("bytes=10-99", None),
            ("bytes=2-18446744073709551615", Some(2..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-99", Some(0..10)),
            ("bytes=-0", None),
        ] {
            let mut request = HeaderMap::new();
            request.insert(RANGE, range.parse().unwrap());
            assert_eq!(within(&requested_range(&request).unwrap(), 10), expected, "{range}");
        }
        let mut request = HeaderMap::new();
        for range in ["bytes=0-1,3-4", "bytes=4-3", "pages=1-2", "bytes=x"] {
            request.insert(RANGE, range.parse().unwrap());
            assert!(requested_range(&request).is_none(), "{range}");
        }
    }
}
