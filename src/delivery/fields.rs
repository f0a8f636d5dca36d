//! The allow-list of response fields that the gate forwards, and the fields that it adds.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::content_type;
use crate::path::FilePath;

/// No scripts, forms or pop-ups. Fonts and images of the same publication still load, since the
/// document keeps its origin.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox allow-same-origin");

/// Whether a file requires a loan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Gated,
    Open,
}

/// Moves the allowed fields of an origin's response and adds the gate's own. Replaces a generic
/// media type by the one of the file's extension.
pub(super) fn pass(from: HeaderMap, kind: Kind, path: &FilePath, to: &mut HeaderMap) {
    to.reserve(12); // for the fields below and those that the server adds
    for (name, value) in from {
        // Only the first value of a field has a name. All of these fields have one value.
        if let Some(name) = name.filter(|name| is_passed(name, kind)) {
            to.insert(name, value);
        }
    }
    if kind == Kind::Gated {
        to.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    }
    if to.get(CONTENT_TYPE).is_none_or(content_type::is_generic) {
        let by_name = content_type::by_name(path.as_str());
        let kind = by_name.unwrap_or(HeaderValue::from_static("application/octet-stream"));
        to.insert(CONTENT_TYPE, kind);
    }
    to.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    to.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// Adds a Content-Security-Policy to documents. A publisher's script must not run in the gate's web
/// origin, since it could read the token in a link's URL. `policy` is the route's own; without one,
/// gated documents get [`SANDBOX`].
pub(super) fn restrict(kind: Kind, policy: Option<&HeaderValue>, fields: &mut HeaderMap) {
    if !fields.get(CONTENT_TYPE).is_some_and(is_document) {
        return;
    }
    match (policy, kind) {
        (Some(policy), _) => drop(fields.insert(CONTENT_SECURITY_POLICY, policy.clone())),
        (None, Kind::Gated) => drop(fields.insert(CONTENT_SECURITY_POLICY, SANDBOX)),
        (None, Kind::Open) => {}
    }
}

/// Returns whether a browser may treat a type as a document that can run scripts: HTML, XML, SVG,
/// XSL, and containers (multipart, message/rfc822). It searches the whole field, since browsers use
/// the last of several types.
fn is_document(kind: &HeaderValue) -> bool {
    kind.as_bytes().windows(3).any(|part| match part {
        [a, b, c] => {
            matches!(
                &[a | 0x20, b | 0x20, c | 0x20],
                b"tml" | b"xml" | b"svg" | b"xsl" | b"mul" | b"822"
            )
        }
        _ => false,
    })
}

/// Returns whether the gate forwards a field of the origin.
fn is_passed(name: &HeaderName, kind: Kind) -> bool {
    match *name {
        // They describe the representation (RFC 9110 §8).
        CONTENT_TYPE | CONTENT_LANGUAGE | CONTENT_ENCODING | CONTENT_DISPOSITION | ETAG
        | LAST_MODIFIED => true,
        // The origin of open files decides on caching.
        CACHE_CONTROL | EXPIRES => kind == Kind::Open,
        _ => false,
    }
}

/// Returns whether a response has a content coding (RFC 9110 §8.4), although the gate requested
/// none.
pub(super) fn is_encoded(response: &HeaderMap) -> bool {
    response
        .get(CONTENT_ENCODING)
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Returns whether a body without a length has a detectable end (RFC 9112 §6.3): a chunked body
/// does, a body that ends with the connection does not.
pub(super) fn is_framed(response: &HeaderMap) -> bool {
    let coding = response.get(TRANSFER_ENCODING).and_then(|coding| coding.to_str().ok());
    coding.is_some_and(|coding| coding.trim().to_ascii_lowercase().ends_with("chunked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_distinguished_from_media() {
        for (kind, document) in [
            ("text/html", true),
            ("TEXT/HTML; charset=utf-8", true),
            ("application/xhtml+xml", true),
            ("image/svg+xml", true),
            ("text/xml", true),
            ("application/mathml+xml", true),
            ("text/xsl", true),
            ("audio/mpeg, text/html", true),
            ("multipart/x-mixed-replace; boundary=a", true),
            ("message/rfc822", true),
            ("application/epub+zip", false),
            ("application/pdf", false),
            ("audio/mpeg", false),
            ("image/png", false),
            ("font/woff2", false),
            ("text/css", false),
            ("application/vnd.apple.mpegurl", false),
            ("", false),
        ] {
            assert_eq!(is_document(&HeaderValue::from_static(kind)), document, "{kind}");
        }
    }

    #[test]
    fn route_policy_overrides_default() {
        let policy = HeaderValue::from_static("script-src 'self'");
        let restricted = |kind, policy: Option<&HeaderValue>, content_type: &'static str| {
            let mut fields = HeaderMap::new();
            fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            restrict(kind, policy, &mut fields);
            fields.get(CONTENT_SECURITY_POLICY).cloned()
        };
        assert_eq!(restricted(Kind::Gated, None, "text/html"), Some(SANDBOX));
        assert_eq!(restricted(Kind::Open, None, "text/html"), None);
        assert_eq!(restricted(Kind::Gated, Some(&policy), "text/html"), Some(policy.clone()));
        assert_eq!(restricted(Kind::Open, Some(&policy), "text/html"), Some(policy.clone()));
        assert_eq!(restricted(Kind::Gated, Some(&policy), "audio/mpeg"), None);
    }
}
