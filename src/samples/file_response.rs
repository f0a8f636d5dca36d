//! The answer about one file: its fields, its conditions, its one range, and its bytes in slices.
//!
//! The storage calls it; it calls nothing of ours but the file. It honours what an origin of the
//! gate needs of RFC 9110: If-Match, If-Range, and a single range of GET; several ranges and what
//! is malformed it ignores.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use headers::{ETag, HeaderMapExt, IfMatch};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use http::response::Builder;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header};

use super::File;

/// When every file was last changed: the moment that the books themselves tell.
const MODIFIED: &str = "Mon, 05 Jan 2026 08:00:00 GMT";
/// How much of a file is handed to a connection at once.
const SLICE: usize = 128 * 1024;

/// A body: shared bytes, handed on slice by slice and never copied.
#[derive(Debug, Default)]
pub(super) struct Slices(pub(super) Bytes);

impl Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        let next = self.0.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.0.split_to(next)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// Answers a GET or HEAD of this file.
pub(super) fn about(
    file: &File,
    method: &Method,
    request: &HeaderMap,
) -> Result<Response<Slices>, http::Error> {
    let complete = file.content.len();
    if !is_meant(file, request) {
        return blank(StatusCode::PRECONDITION_FAILED);
    }
    let answer = Response::builder()
        .header(ETAG, file.etag())
        .header(LAST_MODIFIED, MODIFIED)
        .header(ACCEPT_RANGES, "bytes");
    // A range has no meaning for HEAD (RFC 9110 §14.2).
    let asked =
        (method == Method::GET && range_applies(file, request)).then(|| asked(request)).flatten();
    let Some(asked) = asked else {
        let answer = answer.header(CONTENT_TYPE, file.content_type);
        return with_body(answer, file.content.clone(), method);
    };
    match within(&asked, complete) {
        Some(part) => {
            let field = format!("bytes {}-{}/{complete}", part.start, part.end - 1);
            let answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_TYPE, file.content_type)
                .header(CONTENT_RANGE, field);
            with_body(answer, file.content.slice(part), method)
        }
        None => {
            let answer = answer
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(CONTENT_RANGE, format!("bytes */{complete}"));
            with_body(answer, Bytes::new(), method)
        }
    }
}

/// A status and nothing more.
pub(super) fn blank(status: StatusCode) -> Result<Response<Slices>, http::Error> {
    with_body(Response::builder().status(status), Bytes::new(), &Method::GET)
}

/// Ends an answer with its body, which HEAD leaves out and only tells the length of.
pub(super) fn with_body(
    answer: Builder,
    body: Bytes,
    method: &Method,
) -> Result<Response<Slices>, http::Error> {
    let answer = answer.header(CONTENT_LENGTH, body.len());
    let is_head = method == Method::HEAD;
    answer.body(Slices(if is_head { Bytes::new() } else { body }))
}

/// Whether If-Match lets the request through; one that cannot be read does not.
fn is_meant(file: &File, request: &HeaderMap) -> bool {
    if !request.contains_key(IF_MATCH) {
        return true;
    }
    let wanted: Option<IfMatch> = request.typed_get();
    let etag: Option<ETag> = file.etag().parse().ok();
    wanted.zip(etag).is_some_and(|(wanted, etag)| wanted.precondition_passes(&etag))
}

/// Whether If-Range lets the range count: none, or the file's validator to the letter.
fn range_applies(file: &File, request: &HeaderMap) -> bool {
    match request.get(IF_RANGE) {
        None => true,
        Some(wanted) => wanted.as_bytes() == file.etag().as_bytes() || wanted == MODIFIED,
    }
}

/// The one range that the request asks for, if it is one and well formed.
fn asked(request: &HeaderMap) -> Option<SyntacticallyCorrectRange> {
    let parsed = parse_range_header(request.get(RANGE)?.to_str().ok()?).ok()?;
    let mut ranges = parsed.into_ranges().into_iter();
    let first = ranges.next()?;
    ranges.next().is_none().then_some(first)
}

/// Which bytes that is of a file of this length; none where it lies outside. Never empty.
fn within(asked: &SyntacticallyCorrectRange, complete: usize) -> Option<Range<usize>> {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (start, end) = match *asked {
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
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_is_slices_of_the_shared_bytes() {
        let content = Bytes::from(vec![7; 2 * SLICE + 1]);
        let mut body = Slices(content.clone());
        let mut at = 0;
        while let Some(frame) = body.frame().await {
            let slice = frame.unwrap().into_data().unwrap();
            assert_eq!(slice.as_ptr(), content[at..].as_ptr());
            assert!(slice.len() <= SLICE);
            at += slice.len();
        }
        assert_eq!(at, content.len());
    }

    #[test]
    fn a_range_lies_within_its_file() {
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
            assert_eq!(within(&asked(&request).unwrap(), 10), expected, "{range}");
        }
        let mut request = HeaderMap::new();
        for range in ["bytes=0-1,3-4", "bytes=4-3", "pages=1-2", "bytes=x"] {
            request.insert(RANGE, range.parse().unwrap());
            assert!(asked(&request).is_none(), "{range}");
        }
    }
}
