//! Requests that go on with a download, by their fields alone.
//!
//! The dispatcher asks it before it asks the gate, which begins no loan for such a request, and
//! before it takes a link in the grace after its expiry. What is in doubt goes on with a download,
//! and earns no grace.

use headers::{HeaderMapExt, IfMatch};
use http::header::{IF_MATCH, IF_RANGE, RANGE};
use http::{HeaderMap, Method};

/// Whether a request goes on with a download: If-Range, If-Match, or a Range that does not start at
/// 0. Such a request never begins a loan (invariant 7).
pub(super) fn continues(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_RANGE)
        || headers.contains_key(IF_MATCH)
        || headers.get(RANGE).is_some_and(|range| !starts_at_the_start(range.as_bytes()))
}

/// Whether a Range field asks for the first byte first. One that is malformed is ignored later on,
/// and taken here for one that does not: what is in doubt begins nothing.
fn starts_at_the_start(range: &[u8]) -> bool {
    let Some((unit, set)) = range.split_first_chunk::<6>() else {
        return false;
    };
    unit.eq_ignore_ascii_case(b"bytes=") && matches!(set.trim_ascii_start(), [b'0', b'-', ..])
}

/// Whether a request shows by a strong validator which file it has a part of, and asks for what
/// comes after its first byte. Whether that is the file as it is, delivery sees.
pub(super) fn shows_a_part(method: &Method, headers: &HeaderMap) -> bool {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return false;
    };
    let shows = match headers.get(IF_RANGE) {
        Some(validator) => validator.as_bytes().starts_with(b"\""),
        None => headers.typed_get::<IfMatch>().is_some_and(|tags| !tags.is_any()),
    };
    method == Method::GET && shows && !starts_at_the_start(range.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_from_the_start_may_begin_a_loan() {
        for (name, value, goes_on) in [
            ("accept", "*/*", false),
            ("range", "bytes=0-", false),
            ("range", "bytes=0-1", false),
            ("range", "Bytes=0-99", false),
            ("range", "bytes= 0-99", false),
            ("range", "bytes=1-", true),
            ("range", "bytes=00-", true),
            ("range", "bytes=-500", true),
            ("range", "bytes=", true),
            ("range", "chapters=0-1", true),
            ("if-range", "\"v\"", true),
            ("if-match", "*", true),
            ("if-none-match", "\"v\"", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(continues(&headers), goes_on, "{name}: {value}");
        }
    }

    #[test]
    fn a_part_is_shown_by_a_strong_validator_and_a_range_that_starts_later() {
        const DAY: &str = "Mon, 05 Jan 2026 08:00:00 GMT";
        for (fields, shows) in [
            (&[("range", "bytes=5-"), ("if-range", "\"v\"")][..], true),
            (&[("range", "bytes=5-9"), ("if-match", "\"v\"")], true),
            (&[("range", "bytes=-5"), ("if-match", "\"v\", \"w\"")], true),
            (&[("range", "bytes=0-"), ("if-range", "\"v\"")], false),
            (&[("range", "bytes=5-"), ("if-range", DAY)], false),
            (&[("range", "bytes=5-"), ("if-range", DAY), ("if-match", "\"v\"")], false),
            (&[("range", "bytes=5-"), ("if-range", "W/\"v\"")], false),
            (&[("range", "bytes=5-"), ("if-match", "*")], false),
            (&[("range", "bytes=5-"), ("if-none-match", "\"v\"")], false),
            (&[("range", "bytes=5-"), ("range", "bytes=6-"), ("if-range", "\"v\"")], false),
            (&[("range", "bytes=5-")], false),
            (&[("if-range", "\"v\"")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(shows_a_part(&Method::GET, &headers), shows, "{fields:?}");
            assert!(!shows_a_part(&Method::HEAD, &headers));
        }
    }
}
