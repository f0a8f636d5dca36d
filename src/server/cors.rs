//! The CORS protocol of the Fetch standard, for web readers on other origins.
//!
//! The dispatcher calls [`Cors::preflight`] first and [`Cors::add_response_fields`] last. A
//! preflight gets its response here, without authentication and without a loan. Credentials are a
//! token in Authorization, never a cookie.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response};

use super::problem_response;
use crate::delivery::Body;

const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, DELETE");
const ALLOWED_FIELDS: HeaderValue = HeaderValue::from_static(
    "Authorization, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, \
     If-Unmodified-Since, Content-Type, Cache-Control, Pragma, X-Requested-With",
);
const EXPOSED_FIELDS: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, \
     Retry-After, X-Request-Id",
);
/// How long a browser may cache a preflight, in seconds. Browsers apply their own maximum as well.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The keys of `[cors]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cors {
    /// The origins whose pages may send requests.
    pub origins: Vec<AllowedOrigin>,
}

/// An allowed origin, or a pattern for the subdomains of one domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowedOrigin {
    /// Exactly this origin, as browsers serialize it (RFC 6454 §6.2).
    Exact(String),
    /// `https://*.DOMAIN`: any one label in place of the asterisk, like `https://kari.DOMAIN`.
    AnyLabel {
        /// The text after the label: a dot, the domain, and the port unless it is 443.
        suffix: String,
    },
}

/// Schemes without an origin of their own (browsers send `null`), or that load no pages.
const EXCLUDED_SCHEMES: [&str; 8] =
    ["about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"];
/// The longest label of a host name (RFC 1035 §2.3.4).
const MAX_LABEL_LENGTH: usize = 63;
const WILDCARD: &str = "https://*.";

impl AllowedOrigin {
    /// Parses an entry of `[cors] origins`.
    ///
    /// # Errors
    /// A sentence that describes the expected form.
    pub fn parse(text: &str) -> Result<AllowedOrigin, String> {
        match text {
            "*" => {
                Err("with * any web page could send requests with a token that it got hold of, \
                        and read the files. Name the pages' origins, like \
                        \"https://reader.example.no\", or one label of your own domain, \
                        \"https://*.example.no\""
                    .to_owned())
            }
            "null" => Err("null is the origin of any sandboxed page and any file on a disk. \
                           Name the pages' origins, like \"https://reader.example.no\""
                .to_owned()),
            text if text.contains('*') => parse_wildcard(text),
            text if is_web(text) => {
                let origin =
                    url::Url::parse(text).ok().map(|url| url.origin().ascii_serialization());
                let origin = origin.filter(|origin| origin == text);
                origin.map(AllowedOrigin::Exact).ok_or_else(|| invalid_origin(text))
            }
            text if is_app(text) => Ok(AllowedOrigin::Exact(text.to_owned())),
            text => Err(invalid_origin(text)),
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

fn invalid_origin(text: &str) -> String {
    format!(
        "{text:?} is no origin of a web page or an app. Write it as browsers send it, like \
         \"https://reader.example.no\" or \"capacitor://localhost\": lower case, no path, \
         no default port"
    )
}

fn is_web(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// Whether this is the origin of a hybrid app: its own scheme, a host, and an optional port.
fn is_app(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "1"));
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.')
        });
    is_scheme
        && !EXCLUDED_SCHEMES.contains(&scheme)
        && host.split('.').all(is_label)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Parses a pattern such as `https://*.example.no`.
fn parse_wildcard(text: &str) -> Result<AllowedOrigin, String> {
    const FORM: &str =
        "Write it as one whole label in front of your own domain: \"https://*.example.no\"";
    let Some(rest) = text.strip_prefix(WILDCARD).filter(|rest| !rest.contains('*')) else {
        return Err(format!(
            "the asterisk of {text:?} is not in the one place that has a meaning. {FORM}"
        ));
    };
    // Parsed with a sample label instead of the asterisk, so that the domain is checked as usual.
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
    !text.is_empty() && text.len() <= MAX_LABEL_LENGTH && text.bytes().all(is_allowed)
}

impl Cors {
    /// Returns the response to a preflight. Returns none for other requests, and if no origin is
    /// allowed.
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
            fields.insert(ACCESS_CONTROL_ALLOW_METHODS, ALLOWED_METHODS);
            fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_FIELDS);
            fields.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
        self.add_response_fields(request, &mut response);
        Some(response)
    }

    /// Adds the CORS fields to a response: which origin may read it, and which of its fields.
    pub(super) fn add_response_fields(&self, request: &HeaderMap, response: &mut Response<Body>) {
        if self.origins.is_empty() {
            return;
        }
        let fields = response.headers_mut();
        fields.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = self.allowed(request) {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_FIELDS);
        }
    }

    /// Returns the request's origin if it is allowed.
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
    fn origins_that_browsers_never_send_are_refused() {
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
