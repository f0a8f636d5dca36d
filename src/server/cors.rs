//! Web readers of other origins (the Fetch standard's CORS protocol): who may ask, with which
//! fields, and what they may see.
//!
//! The dispatcher calls it before anything else and after everything else. A preflight is answered
//! here, and asks neither who the reader is nor whether there is a loan. Credentials are a token in
//! Authorization, never a cookie.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response};

use super::problem_response;
use crate::delivery::Body;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, DELETE");
const FIELDS: HeaderValue = HeaderValue::from_static(
    "Authorization, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, Content-Type, \
     Cache-Control, Pragma, X-Requested-With",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, Retry-After",
);
/// For how many seconds a browser may remember a preflight; browsers have a limit of their own.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");

/// The keys of `[cors]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cors {
    /// The origins whose pages may send requests.
    pub origins: Vec<AllowedOrigin>,
}

/// An origin whose pages may send requests, or all of one domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowedOrigin {
    /// Exactly this one, as browsers write it (RFC 6454 §6.2).
    Exact(String),
    /// `https://*.DOMAIN`: one label in the place of the asterisk, like `https://kari.DOMAIN`.
    AnyLabel {
        /// What follows that label: a dot, the domain, and a port that is not 443.
        suffix: String,
    },
}

/// Schemes whose pages have no origin of their own (browsers send `null`), or that load no pages.
const NO_ORIGIN: [&str; 8] = ["about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"];
/// The longest label of a host name (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
const WILDCARD: &str = "https://*.";

impl AllowedOrigin {
    /// Reads an origin of `[cors] origins`.
    ///
    /// # Errors
    /// A sentence that says what to write.
    pub fn parse(text: &str) -> Result<AllowedOrigin, String> {
        match text {
            "*" => Err("with * any web page could send requests with a token that it got hold of, and read the \
                        files. Name the pages' origins, like \"https://reader.example.no\", or one label of your \
                        own domain, \"https://*.example.no\""
                .to_owned()),
            "null" => Err("null is the origin of any sandboxed page and any file on a disk. Name the pages' origins, \
                           like \"https://reader.example.no\""
                .to_owned()),
            text if text.contains('*') => wildcard(text),
            text if is_special(text) => {
                let origin = url::Url::parse(text).ok().map(|url| url.origin().ascii_serialization());
                let origin = origin.filter(|origin| origin == text);
                origin.map(AllowedOrigin::Exact).ok_or_else(|| no_origin(text))
            }
            text if is_app(text) => Ok(AllowedOrigin::Exact(text.to_owned())),
            text => Err(no_origin(text)),
        }
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            AllowedOrigin::Exact(exact) => exact == origin,
            AllowedOrigin::AnyLabel { suffix } => origin
                .strip_prefix("https://")
                .and_then(|rest| rest.strip_suffix(suffix))
                .is_some_and(is_label),
        }
    }
}

fn no_origin(text: &str) -> String {
    format!(
        "{text:?} is no origin of a web page or an app. Write it as browsers send it, like \
         \"https://reader.example.no\" or \"capacitor://localhost\": lower case, no path, no default port"
    )
}

fn is_special(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// Whether this is an origin of a hybrid app: a scheme of its own, a host, and perhaps a port.
fn is_app(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "1"));
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.')
        });
    is_scheme
        && !NO_ORIGIN.contains(&scheme)
        && host.split('.').all(is_label)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Reads `https://*.example.no`.
fn wildcard(text: &str) -> Result<AllowedOrigin, String> {
    const FORM: &str =
        "Write it as one whole label in front of your own domain: \"https://*.example.no\"";
    let Some(rest) = text.strip_prefix(WILDCARD).filter(|rest| !rest.contains('*')) else {
        return Err(format!(
            "the asterisk of {text:?} is not in the one place that has a meaning. {FORM}"
        ));
    };
    // Read with a label in its place, so that the domain is checked as that of any origin.
    let sample = format!("https://x.{rest}");
    let url =
        url::Url::parse(&sample).ok().filter(|url| url.origin().ascii_serialization() == sample);
    let Some(url::Host::Domain(host)) = url.as_ref().and_then(url::Url::host) else {
        return Err(format!("what follows the asterisk of {text:?} is no domain. {FORM}"));
    };
    if host.split('.').count() < 3 {
        return Err(format!("{text:?} would allow everyone who has a name there. {FORM}"));
    }
    Ok(AllowedOrigin::AnyLabel { suffix: format!(".{rest}") })
}

fn is_label(text: &str) -> bool {
    let is_allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    !text.is_empty() && text.len() <= MAX_LABEL && text.bytes().all(is_allowed)
}

impl Cors {
    /// The answer to a preflight; none where the request is none, or nobody of another origin may
    /// ask.
    pub(super) fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<Response<Body>> {
        let is_preflight = *method == Method::OPTIONS
            && request.contains_key(ORIGIN)
            && request.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight || self.origins.is_empty() {
            return None;
        }
        let mut response = problem_response::no_content();
        if self.allowed(request).is_some() {
            let fields = response.headers_mut();
            fields.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, FIELDS);
            fields.insert(ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        }
        self.tell(request, &mut response);
        Some(response)
    }

    /// Tells the browser who may see this answer, and what of it.
    pub(super) fn tell(&self, request: &HeaderMap, response: &mut Response<Body>) {
        if self.origins.is_empty() {
            return;
        }
        let fields = response.headers_mut();
        fields.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = self.allowed(request) {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    /// The request's origin, if it is allowed.
    fn allowed(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let mut fields = request.get_all(ORIGIN).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return None };
        let origin = field.to_str().ok()?;
        self.origins.iter().any(|allowed| allowed.allows(origin)).then(|| field.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_matches_exactly_one_label() {
        let allowed = AllowedOrigin::parse("https://*.example.no").unwrap();
        for origin in ["https://kari.example.no", "https://a-1.example.no"] {
            assert!(allowed.allows(origin), "{origin}");
        }
        for origin in [
            "https://example.no",
            "https://.example.no",
            "https://a.b.example.no",
            "http://kari.example.no",
            "https://kari.example.no:8443",
            "https://kari.example.no.evil.com",
            "https://evilexample.no",
            "https://evil.com/.example.no",
            "https://evil.com?.example.no",
            "https://evil.com#.example.no",
            "https://evil.com@.example.no",
            "https://evil.com:.example.no",
            "https://*.example.no",
            "https://KARI.example.no",
            "null",
        ] {
            assert!(!allowed.allows(origin), "{origin}");
        }
        let with_port = AllowedOrigin::parse("https://*.example.no:8443").unwrap();
        assert!(with_port.allows("https://kari.example.no:8443"));
        assert!(!with_port.allows("https://kari.example.no"));
    }

    #[test]
    fn origins_of_hybrid_apps_are_accepted() {
        for origin in [
            "capacitor://localhost",
            "ionic://localhost",
            "http://localhost",
            "https://localhost",
            "http://localhost:3000",
            "app://reader.example.no:12",
        ] {
            let allowed = AllowedOrigin::parse(origin).unwrap();
            assert!(allowed.allows(origin) && !allowed.allows("capacitor://evil"), "{origin}");
        }
    }

    #[test]
    fn what_browsers_never_send_is_refused() {
        for (text, word) in [
            ("*", "any web page"),
            ("null", "sandboxed page"),
            ("https://*", "one place"),
            ("https://*.no", "everyone who has a name there"),
            ("http://*.example.no", "one place"),
            ("https://*.*.example.no", "one place"),
            ("https://reader.*.no", "one place"),
            ("https://*reader.example.no", "one place"),
            ("https://*.1.2.3.4", "no domain"),
            ("https://*.example.no/", "no domain"),
            ("https://*.Example.no", "no domain"),
            ("https://reader.example.no/", "as browsers send it"),
            ("https://reader.example.no:443", "as browsers send it"),
            ("reader.example.no", "as browsers send it"),
            ("capacitor://", "as browsers send it"),
            ("capacitor://localhost/", "as browsers send it"),
            ("Capacitor://localhost", "as browsers send it"),
            ("file://localhost", "as browsers send it"),
            ("data://localhost", "as browsers send it"),
        ] {
            let error = AllowedOrigin::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
