//! Recognizes requests that continue a download, by their header fields.
//!
//! The dispatcher uses it twice. The gate begins no loan for a request that continues a download. A
//! recently expired link is accepted only from a request that proves that it has a part of the
//! file. In doubt, a request continues a download, and proves nothing.

use headers::{HeaderMapExt, IfMatch};
use http::header::{IF_MATCH, IF_RANGE, RANGE};
use http::{HeaderMap, Method};

/// Whether a request continues a download: it has If-Range, If-Match, or a Range that does not
/// start at byte 0. Such a request never begins a loan (invariant 7).
pub(super) fn continues(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_RANGE)
        || headers.contains_key(IF_MATCH)
        || headers.get(RANGE).is_some_and(|range| !starts_at_zero(range.as_bytes()))
}

/// Whether a Range field starts at byte 0. Returns false for a malformed field, which is ignored
/// later: in doubt, no loan begins.
fn starts_at_zero(range: &[u8]) -> bool {
    let Some((unit, set)) = range.split_first_chunk::<6>() else {
        return false;
    };
    unit.eq_ignore_ascii_case(b"bytes=") && matches!(set.trim_ascii_start(), [b'0', b'-', ..])
}

/// Whether a request names its file by a strong validator, and requests a range after the first
/// byte. Delivery then checks that the validator matches the file.
pub(super) fn proves_partial_download(method: &Method, headers: &HeaderMap) -> bool {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return false;
    };
    let shows = match headers.get(IF_RANGE) {
        Some(validator) => validator.as_bytes().starts_with(b"\""),
        None => headers.typed_get::<IfMatch>().is_some_and(|tags| !tags.is_any()),
    };
    method == Method::GET && shows && !starts_at_zero(range.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_from_the_start_may_begin_a_loan() {
        for (name, value, continues_download) in [
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
            assert_eq!(continues(&headers), continues_download, "{name}: {value}");
        }
    }

    #[test]
    fn strong_validator_and_later_range_prove_a_part() {
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
            assert_eq!(proves_partial_download(&Method::GET, &headers), shows, "{fields:?}");
            assert!(!proves_partial_download(&Method::HEAD, &headers));
        }
    }
}
