//! Web readers of other origins (the Fetch standard's CORS protocol): who may ask, with which fields, and what they may see.
//!
//! The dispatcher calls it before anything else and after everything else. A preflight is answered here, and asks neither
//! who the reader is nor whether there is a loan. Credentials are a token in Authorization, never a cookie.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response};

use super::respond;
use crate::delivery::Body;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, DELETE");
const FIELDS: HeaderValue = HeaderValue::from_static(
    "Authorization, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, Content-Type",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, Retry-After",
);
/// For how many seconds a browser may remember a preflight; browsers have a limit of their own.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");

/// The keys of `[cors]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cors {
    /// The origins whose pages may ask, as browsers write them.
    pub origins: Vec<HeaderValue>,
}

impl Cors {
    /// The answer to a preflight; none where the request is none, or nobody of another origin may ask.
    pub(super) fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<Response<Body>> {
        let is_preflight = *method == Method::OPTIONS
            && request.contains_key(ORIGIN)
            && request.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight || self.origins.is_empty() {
            return None;
        }
        let mut response = respond::no_content();
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
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    fn allowed(&self, request: &HeaderMap) -> Option<&HeaderValue> {
        let origin = request.get(ORIGIN)?;
        self.origins.iter().find(|allowed| *allowed == origin)
    }
}
