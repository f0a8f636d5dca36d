//! Extraction of the credential from a request: the Authorization header, the query's `token`, or a
//! token in the path.
//!
//! `reader/mod.rs` calls it first, on every request. It checks the form only, and usually
//! allocates nothing. A JWT is only ever taken from Authorization, and a link never is. The cache
//! of verified credentials relies on that.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;

use super::refusal::{JwtFault, LinkFault, Refusal};

/// The longest accepted JWT, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// The longest accepted link token, in characters: the most that a path can hold.
pub(super) const MAX_LINK: usize = 1024;

/// The credential of a request, unverified.
#[derive(Eq, PartialEq)]
pub(super) enum Credential<'a> {
    Token(&'a str),
    Link(Cow<'a, str>),
}

impl Credential<'_> {
    /// Returns the text to hash.
    pub(super) fn text(&self) -> &str {
        match self {
            Credential::Token(token) => token,
            Credential::Link(token) => token,
        }
    }
}

/// Finds the one credential: Authorization before the query, the query before the path.
pub(super) fn find<'a>(
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    path_token: Option<&'a str>,
) -> Result<Credential<'a>, Refusal> {
    if let Some(token) = bearer(headers)? {
        return Ok(Credential::Token(token));
    }
    let link = match query.map(token_of_query).transpose()?.flatten() {
        Some(link) => link,
        None => Cow::Borrowed(path_token.ok_or(Refusal::NoCredential)?),
    };
    check_link(&link)?;
    Ok(Credential::Link(link))
}

/// Returns the bearer token (RFC 6750 §2.1); the scheme name is case-insensitive (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let Some(field) = fields.next() else {
        return Ok(None);
    };
    if fields.next().is_some() {
        return Err(Refusal::SeveralCredentials);
    }
    // Faster than `HeaderValue::to_str`, which also checks for control characters, one byte at a
    // time; no header value has any.
    let text = Some(field.as_bytes()).filter(|bytes| bytes.is_ascii());
    let text = text.and_then(|bytes| str::from_utf8(bytes).ok()).ok_or(Refusal::OtherScheme)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refusal::OtherScheme)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer")
        || token.is_empty()
        || memchr::memchr3(b' ', b'\t', b',', token.as_bytes()).is_some()
    {
        return Err(Refusal::OtherScheme);
    }
    if token.len() > MAX_TOKEN {
        return Err(Refusal::Token(JwtFault::TooLong));
    }
    if !token.contains('.') {
        // A link token here would be found in the cache although it is not a JWT.
        return Err(Refusal::Token(JwtFault::Malformed));
    }
    Ok(Some(token))
}

/// Returns the value of the single parameter `token`.
fn token_of_query(query: &str) -> Result<Option<Cow<'_, str>>, Refusal> {
    let mut tokens = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name == "token");
    let Some((_, token)) = tokens.next() else {
        return Ok(None);
    };
    if tokens.next().is_some() {
        return Err(Refusal::Link(LinkFault::Twice));
    }
    percent_decode_str(token)
        .decode_utf8()
        .map(Some)
        .map_err(|_| Refusal::Link(LinkFault::Malformed))
}

/// Checks the form of a link token. It is base64url, so a dot means that it is a JWT.
fn check_link(link: &str) -> Result<(), Refusal> {
    if link.contains('.') {
        return Err(Refusal::TokenInLink);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if link.is_empty() || link.len() > MAX_LINK || !link.bytes().all(allowed) {
        return Err(Refusal::Link(LinkFault::Malformed));
    }
    Ok(())
}
