//! Verification of ID tokens (OpenID Connect Core §3.1.3.7) with the provider's public keys.
//!
//! A key has one algorithm, and only signatures by public keys are accepted: no `none`, and no
//! HMAC with a public key as its secret.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::Timestamp;
use jsonwebtoken::{Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::super::session::Role;
use super::OidcSettings;
use crate::clock;
use crate::language::is_unprintable;
use crate::reader::{Algorithm, VerifyKey};

/// The largest accepted offset between the clocks of the provider and the gate.
const LEEWAY: Duration = Duration::from_secs(60);
/// The longest age of a token: it was issued for this sign-in.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The longest subject, in characters (OpenID Connect Core §2), and the longest name.
const MAX_SUBJECT: usize = 255;
const MAX_NAME: usize = 64;

type Claims = Map<String, Value>;

/// Why a token is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum IdTokenError {
    /// No known key has signed it. The provider may have new ones.
    Key,
    /// What is wrong, as a phrase for the log.
    Invalid(&'static str),
    /// The person with this subject has no role here.
    NoRole(String),
}

/// The person whom a verified token names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct VerifiedPerson {
    pub(super) subject: String,
    /// A name to show; the provider or the person chose it.
    pub(super) name: Option<String>,
    pub(super) role: Role,
}

/// Verifies a token that was issued for the sign-in with this nonce.
///
/// # Errors
/// [`IdTokenError`]; the caller begins no session then.
pub(super) fn verify(
    token: &str,
    keys: &[VerifyKey],
    settings: &OidcSettings,
    nonce: &str,
    now: Timestamp,
) -> Result<VerifiedPerson, IdTokenError> {
    let header = decode_header(token).map_err(|_| IdTokenError::Invalid("it cannot be read"))?;
    if header.crit.is_some() {
        return Err(IdTokenError::Invalid("its header has critical extensions"));
    }
    // Of other kinds are tokens of access and of a sign-out (RFC 8725 §3.11).
    if header.typ.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("JWT")) {
        return Err(IdTokenError::Invalid("it is a token of another kind"));
    }
    let claims = signed_claims(token, &header, keys)?;
    check_parties(&claims, settings)?;
    check_times(&claims, now)?;
    let given = text(&claims, "nonce").unwrap_or_default();
    verify_slices_are_equal(given.as_bytes(), nonce.as_bytes())
        .map_err(|_| IdTokenError::Invalid("it has another nonce"))?;
    // Without a space, so that a name after it in the access trail cannot be a part of it.
    let subject = text(&claims, "sub")
        .filter(|text| (1..=MAX_SUBJECT).contains(&text.len()))
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or(IdTokenError::Invalid("its subject is none of 1 to 255 visible ASCII characters"))?;
    let role =
        role_of(&claims, settings).ok_or_else(|| IdTokenError::NoRole(subject.to_owned()))?;
    let name = ["name", "preferred_username"].iter().find_map(|claim| display_name(&claims, claim));
    Ok(VerifiedPerson { subject: subject.to_owned(), name, role })
}

/// Returns the claims if one of the keys that fit the header has signed them.
fn signed_claims(token: &str, header: &Header, keys: &[VerifyKey]) -> Result<Claims, IdTokenError> {
    let algorithm = Algorithm::named(header.alg)
        .ok_or(IdTokenError::Invalid("its algorithm is not RS256, ES256 or EdDSA"))?;
    let mut validation = Validation {
        algorithms: vec![header.alg],
        validate_exp: false,
        validate_nbf: false,
        validate_aud: false,
        ..Validation::default()
    };
    validation.required_spec_claims.clear();
    let fits = |key: &&VerifyKey| {
        key.algorithm == algorithm && (header.kid.is_none() || header.kid == key.kid)
    };
    let mut verified = keys
        .iter()
        .filter(fits)
        .filter_map(|key| decode::<Claims>(token, &key.key, &validation).ok());
    verified.next().map(|token| token.claims).ok_or(IdTokenError::Key)
}

/// Checks who issued the token, and for whom.
fn check_parties(claims: &Claims, settings: &OidcSettings) -> Result<(), IdTokenError> {
    if text(claims, "iss") != Some(&settings.issuer) {
        return Err(IdTokenError::Invalid("another issuer has issued it"));
    }
    let client = settings.client_id.as_str();
    let (is_for_client, is_for_others) = match claims.get("aud") {
        Some(Value::String(audience)) => (audience == client, false),
        Some(Value::Array(audiences)) => {
            (audiences.iter().any(|audience| audience == client), audiences.len() > 1)
        }
        _ => (false, false),
    };
    if !is_for_client {
        return Err(IdTokenError::Invalid("it is for another client"));
    }
    match claims.get("azp") {
        None if is_for_others => Err(IdTokenError::Invalid("it is for several clients")),
        Some(party) if party != client => Err(IdTokenError::Invalid("another client got it")),
        _ => Ok(()),
    }
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), IdTokenError> {
    let expires = time(claims, "exp")?.ok_or(IdTokenError::Invalid("it has no expiry"))?;
    if now >= clock::after(expires, LEEWAY) {
        return Err(IdTokenError::Invalid("it has expired"));
    }
    let issued = time(claims, "iat")?.ok_or(IdTokenError::Invalid("it has no issue time"))?;
    let not_before = time(claims, "nbf")?.unwrap_or(issued);
    let latest = clock::after(now, LEEWAY);
    if issued > latest || not_before > latest {
        return Err(IdTokenError::Invalid("it is of the future: compare the clocks"));
    }
    if issued < clock::before(now, MAX_AGE + LEEWAY) {
        return Err(IdTokenError::Invalid("it was issued long before this sign-in"));
    }
    Ok(())
}

/// Returns the first role whose values the claim has.
fn role_of(claims: &Claims, settings: &OidcSettings) -> Option<Role> {
    let (first, rest) = settings.role_claim.split_first()?;
    let claim = rest.iter().try_fold(claims.get(first)?, |value, name| value.get(name))?;
    let has = |wanted: &String| match claim {
        Value::String(value) => value == wanted,
        Value::Array(values) => values.iter().any(|value| value == wanted),
        _ => false,
    };
    let found = settings.roles.iter().find(|(_, values)| values.iter().any(has));
    found.map(|(role, _)| *role)
}

fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// Returns a name without invisible characters, shortened.
fn display_name(claims: &Claims, name: &str) -> Option<String> {
    let letters = text(claims, name)?.trim().chars().filter(|letter| !is_unprintable(*letter));
    Some(letters.take(MAX_NAME).collect()).filter(|name: &String| !name.is_empty())
}

/// Parses a NumericDate (RFC 7519 §2), rounded down.
fn time(claims: &Claims, name: &str) -> Result<Option<Timestamp>, IdTokenError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    // The cast saturates, and JSON has no NaN.
    let second = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64));
    let time = second.and_then(|second| Timestamp::from_second(second).ok());
    time.map(Some).ok_or(IdTokenError::Invalid("one of its times cannot be read"))
}
