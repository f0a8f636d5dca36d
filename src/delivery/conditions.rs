//! Conditional requests (RFC 9110 §13), judged in the order of §13.2.2.

use headers::{
    ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfUnmodifiedSince, LastModified,
};
use http::header::{
    ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The result of a request's conditions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The request is answered normally.
    Proceed,
    /// The reader has the current file: 304.
    NotModified,
    /// The file is not the one that the reader expects: 412.
    Failed,
}

const CONDITIONS: [HeaderName; 5] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];

/// Returns whether a request has conditions.
pub(super) fn any(request: &HeaderMap) -> bool {
    // Standard names compare as integers, which is cheaper than five hash lookups.
    request.keys().any(|name| CONDITIONS.contains(name))
}

/// Judges the conditions of a GET or HEAD against a file's fields. A malformed If-Match fails;
/// other malformed conditions are ignored.
pub(super) fn judge(request: &HeaderMap, file: &HeaderMap) -> Verdict {
    // The common case: no need to parse the file's fields.
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
            // A file without an entity tag matches only "*".
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

/// Returns whether Range applies to this file (RFC 9110 §13.1.5). It does without If-Range, or if
/// If-Range equals the file's strong entity tag or its date exactly.
pub(super) fn range_applies(request: &HeaderMap, file: &HeaderMap) -> bool {
    let Some(wanted) = request.get(IF_RANGE) else {
        return true;
    };
    if is_strong(wanted) {
        return file.get(ETAG) == Some(wanted);
    }
    !wanted.as_bytes().starts_with(b"W/") && file.get(LAST_MODIFIED) == Some(wanted)
}

/// Returns whether a validator is a strong entity tag (RFC 9110 §8.8.3). Only a strong tag proves
/// that two responses are of one file.
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
    fn conditions_are_judged_in_rfc_order() {
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
    fn range_applies_to_strong_validators_only() {
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
