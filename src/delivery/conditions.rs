//! Conditional requests: RFC 9110 §13, in the order of §13.2.2.

use headers::{
    ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfUnmodifiedSince, LastModified,
};
use http::header::{
    ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// What the conditions of a request say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Answer the request.
    Proceed,
    /// The reader has the file as it is: 304.
    NotModified,
    /// It is not the file that the reader means: 412.
    Failed,
}

const CONDITIONS: [HeaderName; 5] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];

/// Whether a request has any.
pub(super) fn any(request: &HeaderMap) -> bool {
    // All of them are made of standard names: that is cheaper to see than to look for each by its
    // hash.
    request.keys().any(|name| CONDITIONS.contains(name))
}

/// Judges the conditions of a GET or HEAD against a file's fields. What cannot be read fails
/// If-Match, and is otherwise ignored.
pub(super) fn judge(request: &HeaderMap, file: &HeaderMap) -> Verdict {
    // Nearly every request; the file's fields need not be read for it.
    if !any(request) {
        return Verdict::Proceed;
    }
    let etag: Option<ETag> = file.typed_get();
    let modified: Option<LastModified> = file.typed_get();
    if request.contains_key(IF_MATCH) {
        let wanted: Option<IfMatch> = request.typed_get();
        let met = match (&wanted, &etag) {
            (Some(wanted), Some(etag)) => wanted.precondition_passes(etag),
            (Some(wanted), None) => wanted.is_any(),
            (None, _) => false,
        };
        if !met {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) =
        (request.typed_get::<IfUnmodifiedSince>(), modified)
        && !since.precondition_passes(modified.into())
    {
        return Verdict::Failed;
    }
    if request.contains_key(IF_NONE_MATCH) {
        let known: Option<IfNoneMatch> = request.typed_get();
        let differs = match (&known, &etag) {
            (Some(known), Some(etag)) => known.precondition_passes(etag),
            // Only "*" matches a file without an entity tag, and it passes for none that there is.
            (Some(known), None) => known != &IfNoneMatch::any(),
            (None, _) => true,
        };
        if !differs {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (request.typed_get::<IfModifiedSince>(), modified)
        && !since.is_modified(modified.into())
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether the field Range still means this file (§13.1.5): no If-Range, or one that is the file's
/// strong entity tag or its date, to the letter.
pub(super) fn range_applies(request: &HeaderMap, file: &HeaderMap) -> bool {
    let Some(wanted) = request.get(IF_RANGE) else {
        return true;
    };
    if is_strong(wanted) {
        return file.get(ETAG) == Some(wanted);
    }
    !wanted.as_bytes().starts_with(b"W/") && file.get(LAST_MODIFIED) == Some(wanted)
}

/// Whether a validator is a strong entity tag (RFC 9110 §8.8.3), by which alone two answers are of
/// one file.
pub(super) fn is_strong(validator: &HeaderValue) -> bool {
    validator.as_bytes().starts_with(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn map(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    const DAY: &str = "Thu, 15 Jan 2026 12:00:00 GMT";
    const BEFORE: &str = "Wed, 14 Jan 2026 12:00:00 GMT";

    #[test]
    fn conditions_are_judged_in_the_order_of_the_rfc() {
        let file = map(&[(ETAG, "\"a\""), (LAST_MODIFIED, DAY)]);
        let cases: [(&[(HeaderName, &'static str)], Verdict); 12] = [
            (&[], Verdict::Proceed),
            (&[(IF_MATCH, "\"a\"")], Verdict::Proceed),
            (&[(IF_MATCH, "\"x\", \"a\"")], Verdict::Proceed),
            (&[(IF_MATCH, "*")], Verdict::Proceed),
            (&[(IF_MATCH, "\"b\"")], Verdict::Failed),
            (&[(IF_MATCH, "W/\"a\"")], Verdict::Failed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Failed),
            (&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Proceed),
            (&[(IF_NONE_MATCH, "W/\"a\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, DAY)], Verdict::Proceed),
            (&[(IF_MODIFIED_SINCE, DAY)], Verdict::NotModified),
            (&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], Verdict::Failed),
        ];
        for (request, verdict) in cases {
            assert_eq!(judge(&map(request), &file), verdict, "{request:?}");
        }
    }

    #[test]
    fn a_range_applies_to_a_strong_validator_only() {
        let file = map(&[(ETAG, "\"a\""), (LAST_MODIFIED, DAY)]);
        for (value, applies) in
            [("\"a\"", true), ("\"b\"", false), ("W/\"a\"", false), (DAY, true), (BEFORE, false)]
        {
            assert_eq!(range_applies(&map(&[(IF_RANGE, value)]), &file), applies, "{value}");
        }
        let weak = map(&[(ETAG, "W/\"a\"")]);
        assert!(!range_applies(&map(&[(IF_RANGE, "W/\"a\"")]), &weak));
    }
}
