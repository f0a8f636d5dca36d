//! The bearer token of the admin listener: compared in constant time, with wrong ones answered
//! late.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};

use super::client_addresses::Peer;
use super::problems::Refused;
use crate::telemetry::LogLimit;

/// Wrong tokens are logged once a minute.
#[derive(Debug)]
pub(super) struct WrongTokenLog(LogLimit);

impl Default for WrongTokenLog {
    fn default() -> WrongTokenLog {
        WrongTokenLog(LogLimit::per_minute())
    }
}

impl WrongTokenLog {
    fn note(&self, address: IpAddr) {
        if let Some(left_out) = self.0.permit("wrong token") {
            tracing::warn!(%address, left_out, "a request to the admin listener had a wrong token");
        }
    }
}

/// Lets a request with these fields pass if they carry the token. One with a wrong token is
/// refused, the later the more its address has sent.
pub(super) async fn authenticate(
    headers: &HeaderMap,
    peer: Option<Arc<Peer>>,
    token: &SecretString,
    log: &WrongTokenLog,
) -> Result<(), Refused> {
    let checked = check(headers, token);
    match (&checked, peer) {
        (Ok(()), Some(peer)) => peer.note_token(),
        (Err(Wrong::Token), Some(peer)) => {
            log.note(peer.address());
            tokio::time::sleep(peer.note_wrong_token(Instant::now())).await;
        }
        _ => {}
    }
    checked.map_err(|wrong| match wrong {
        Wrong::Missing => Refused::UNAUTHENTICATED,
        Wrong::Token => Refused::WRONG_TOKEN,
    })
}

/// What is wrong with a request's credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wrong {
    Missing,
    Token,
}

/// Whether the request carries the token (RFC 6750 §2.1).
fn check(headers: &HeaderMap, token: &SecretString) -> Result<(), Wrong> {
    let field = headers.get(AUTHORIZATION).map_or(&b""[..], |field| field.as_bytes());
    let given = match field.split_at_checked(7) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given.trim_ascii(),
        _ => return Err(Wrong::Missing),
    };
    if given.is_empty() {
        return Err(Wrong::Missing);
    }
    verify_slices_are_equal(given, token.expose_secret().as_bytes()).map_err(|_| Wrong::Token)
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
