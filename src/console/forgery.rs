//! Protection of forms against other sites: where a request comes from, and its token.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts;

use super::session::Secret;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns whether the request may come from a page of the console. Every browser sends one of the
/// two fields with a form. A client that sends none is no browser, and needs the token anyway.
pub(super) fn is_same_origin(request: &Parts) -> bool {
    let text = |name: &HeaderName| request.headers.get(name).map(|field| field.to_str().ok());
    if let Some(site) = text(&SEC_FETCH_SITE) {
        // Such a browser sends `Origin: null`, because pages have `Referrer-Policy: no-referrer`.
        let has_origin = text(&ORIGIN).flatten().is_some_and(|origin| origin != "null");
        return site == Some("same-origin") && (!has_origin || is_own_origin(request));
    }
    !request.headers.contains_key(ORIGIN) || is_own_origin(request)
}

/// Compares the host of Origin with the host of the request. A proxy may have ended TLS, so the
/// scheme may differ.
fn is_own_origin(request: &Parts) -> bool {
    let origin = request.headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let host = match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(HOST).and_then(|host| host.to_str().ok()),
    };
    let named = origin.and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    named.zip(host).is_some_and(|(named, host)| named.eq_ignore_ascii_case(host))
}

/// Returns whether a form's token belongs to this secret.
pub(super) fn is_form_token(secret: &Secret, token: &str) -> bool {
    verify_slices_are_equal(secret.form_token().as_bytes(), token.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn only_requests_of_own_pages_pass() {
        for (fields, passes) in [
            (&[][..], true),
            (&[("origin", "https://gate.no:9443")], true),
            (&[("origin", "https://evil.no")], false),
            (&[("origin", "null")], false),
            (&[("origin", "https://gate.no:9444")], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.no")], false),
            (&[("sec-fetch-site", "same-site"), ("origin", "https://gate.no:9443")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
        ] {
            let mut request = Request::builder().uri("/find").header(HOST, "gate.no:9443");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).unwrap().into_parts().0;
            assert_eq!(is_same_origin(&request), passes, "{fields:?}");
        }
    }

    #[test]
    fn token_belongs_to_one_secret() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert!(is_form_token(&one, &one.form_token()));
        assert!(!is_form_token(&one, &other.form_token()));
        assert!(!is_form_token(&one, ""));
    }
}
