//! Authentication at the admin listener: the bearer token is compared in constant time, and wrong
//! tokens are answered with a delay.

use std::net::IpAddr;
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};

use super::client_addresses::Client;
use super::problems::AdminProblem;
use crate::telemetry::LogLimit;

/// Log of wrong tokens, limited to one line a minute.
#[derive(Debug)]
pub(super) struct WrongTokenLog(LogLimit);

impl Default for WrongTokenLog {
    fn default() -> WrongTokenLog {
        WrongTokenLog(LogLimit::per_minute())
    }
}

impl WrongTokenLog {
    fn record(&self, address: IpAddr) {
        if let Some(left_out) = self.0.permit("wrong token") {
            tracing::warn!(%address, left_out, "a request to the admin listener had a wrong token");
        }
    }
}

/// Accepts a request if its headers carry the token. A wrong token is rejected with a delay, which
/// grows with each wrong token from the same address.
pub(super) async fn authenticate(
    headers: &HeaderMap,
    client: Option<Client>,
    token: &SecretString,
    log: &WrongTokenLog,
) -> Result<(), AdminProblem> {
    let checked = check(headers, token);
    record(checked, client, log).await;
    checked.map_err(|fault| match fault {
        TokenFault::Missing => AdminProblem::UNAUTHENTICATED,
        TokenFault::Token => AdminProblem::WRONG_TOKEN,
    })
}

/// Checks a token that is not in a header, as [`authenticate`] does.
pub(super) async fn is_token(
    given: &str,
    client: Option<Client>,
    token: &SecretString,
    log: &WrongTokenLog,
) -> bool {
    let checked = compare(given.as_bytes(), token);
    record(checked, client, log).await;
    checked.is_ok()
}

/// Records the result for the client's address, and delays the response to a wrong token.
async fn record(checked: Result<(), TokenFault>, client: Option<Client>, log: &WrongTokenLog) {
    match (checked, client) {
        (Ok(()), Some(client)) => client.record_token(),
        (Err(TokenFault::Token), Some(client)) => {
            log.record(client.address());
            tokio::time::sleep(client.record_wrong_token(Instant::now())).await;
        }
        _ => {}
    }
}

/// A fault in a request's credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TokenFault {
    Missing,
    Token,
}

/// Whether the request carries the token (RFC 6750 §2.1).
fn check(headers: &HeaderMap, token: &SecretString) -> Result<(), TokenFault> {
    let field = headers.get(AUTHORIZATION).map_or(&b""[..], |field| field.as_bytes());
    let given = match field.split_at_checked(7) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given.trim_ascii(),
        _ => return Err(TokenFault::Missing),
    };
    if given.is_empty() {
        return Err(TokenFault::Missing);
    }
    compare(given, token)
}

fn compare(given: &[u8], token: &SecretString) -> Result<(), TokenFault> {
    verify_slices_are_equal(given, token.expose_secret().as_bytes()).map_err(|_| TokenFault::Token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_token_is_accepted() {
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
