//! The bearer token of the admin listener, compared in constant time.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};

use super::refused::Refused;

/// Whether the request carries the token (RFC 6750 §2.1).
pub(super) fn check(headers: &HeaderMap, token: &SecretString) -> Result<(), Refused> {
    let field = headers.get(AUTHORIZATION).map_or(&b""[..], |field| field.as_bytes());
    let given = match field.split_at_checked(7) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given.trim_ascii(),
        _ => return Err(Refused::UNAUTHENTICATED),
    };
    verify_slices_are_equal(given, token.expose_secret().as_bytes()).map_err(|_| Refused::UNAUTHENTICATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = SecretString::from("0123456789abcdef");
        for (field, opens) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer  0123456789abcdef", true),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Bearer", false),
            ("Bearer ", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, field.parse().unwrap());
            assert_eq!(check(&headers, &token).is_ok(), opens, "{field}");
        }
        assert!(check(&HeaderMap::new(), &token).is_err());
    }
}
