//! Reader tokens: JWTs (RFC 7519) of the login service.
//!
//! `reader/mod.rs` calls it for a token that the cache does not know. The keys are those of the
//! JWKS file and no others: `jku`, `x5u`, `x5c` and `jwk` in a header are ignored. Signature,
//! issuer and audience are checked by `jsonwebtoken`; times here, by the project's clock. The
//! borrower's own id leaves here as a pseudonym only.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::clock_blame::Witnesses;
use super::jwks::{self, VerifyKey};
use super::pseudonym::Pseudonyms;
use super::refusal::Refusal;
use super::{Algorithm, JwtSettings, Reader, ReadersError, Scope};
use crate::clock;
use crate::loan::LibraryId;

/// How far the clocks of the login service and of the gate may be apart.
pub(super) const LEEWAY: Duration = Duration::from_secs(60);

/// The longest id of a borrower, in bytes.
const MAX_BORROWER: usize = 256;

type Claims = Map<String, Value>;

/// What verifies tokens.
pub(super) struct Tokens {
    keys: Vec<VerifyKey>,
    settings: JwtSettings,
    /// Issuer, audience and the claims that must be there; no times, no algorithm yet.
    validation: Validation,
}

impl Tokens {
    /// Reads the JWKS file.
    pub(super) fn new(settings: &JwtSettings) -> Result<Tokens, ReadersError> {
        let mut validation = Validation {
            algorithms: Vec::new(),
            validate_exp: false,
            validate_nbf: false,
            ..Validation::default()
        };
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Ok(Tokens { keys: jwks::read(settings)?, settings: settings.clone(), validation })
    }

    /// The reader of a token that is good at `now`.
    pub(super) fn verify(
        &self,
        token: &str,
        pseudonyms: &Pseudonyms,
        witnesses: &Witnesses,
        now: Timestamp,
    ) -> Result<Reader, Refusal> {
        let header = decode_header(token).map_err(|_| Refusal::TokenMalformed)?;
        if header.crit.is_some() {
            return Err(Refusal::TokenMalformed); // nothing critical is understood here: RFC 7515 §4.1.11
        }
        let claims = self.claims(token, &header)?;
        let times = Times::of(&claims)?;
        times.check(now, witnesses)?;
        witnesses.was_good(times.issued, now);
        let (library, borrower) = self.subject(&claims)?;
        Ok(Reader {
            library,
            borrower: pseudonyms.of(library, borrower),
            issued: times.issued,
            expires: times.expires,
            scope: Scope::All,
        })
    }

    /// The claims, if a key that the header may name has signed them for us.
    fn claims(&self, token: &str, header: &Header) -> Result<Claims, Refusal> {
        let algorithm = self.allowed(header.alg).ok_or(Refusal::TokenAlgorithm)?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut outcome = Err(Refusal::TokenKey);
        for key in self.keys.iter().filter(|key| key.algorithm == algorithm) {
            if header.kid.is_some() && header.kid != key.kid {
                continue;
            }
            outcome = decode::<Claims>(token, &key.key, &validation)
                .map(|token| token.claims)
                .map_err(|error| refusal_of(&error));
            if outcome != Err(Refusal::TokenSignature) {
                break;
            }
        }
        outcome
    }

    fn allowed(&self, named: jsonwebtoken::Algorithm) -> Option<Algorithm> {
        let algorithm = match named {
            jsonwebtoken::Algorithm::EdDSA => Algorithm::EdDSA,
            jsonwebtoken::Algorithm::ES256 => Algorithm::ES256,
            jsonwebtoken::Algorithm::RS256 => Algorithm::RS256,
            _ => return None,
        };
        self.settings.algorithms.contains(&algorithm).then_some(algorithm)
    }

    /// The library, and the borrower's own id: it lives no longer than the claims.
    fn subject<'a>(&self, claims: &'a Claims) -> Result<(LibraryId, &'a str), Refusal> {
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
        let library = text(&self.settings.library_claim)
            .and_then(|isil| isil.parse().ok())
            .ok_or(Refusal::TokenLibrary)?;
        let borrower = text(&self.settings.borrower_claim)
            .filter(|id| !id.is_empty() && id.len() <= MAX_BORROWER)
            .ok_or(Refusal::TokenBorrower)?;
        Ok((library, borrower))
    }
}

/// The times of RFC 7519 §4.1.4 to §4.1.6.
struct Times {
    expires: Timestamp,
    not_before: Option<Timestamp>,
    issued: Option<Timestamp>,
}

impl Times {
    fn of(claims: &Claims) -> Result<Times, Refusal> {
        Ok(Times {
            expires: time(claims, "exp")?.ok_or(Refusal::TokenWithoutExpiry)?,
            not_before: time(claims, "nbf")?,
            issued: time(claims, "iat")?,
        })
    }

    fn check(&self, now: Timestamp, witnesses: &Witnesses) -> Result<(), Refusal> {
        let ahead = |time: Option<Timestamp>| time.filter(|time| *time > clock::after(now, LEEWAY));
        if now >= clock::after(self.expires, LEEWAY) {
            return Err(Refusal::TokenExpired);
        }
        // An issue time in the future says more about the clocks: a token may be meant for later.
        if let Some(issued) = ahead(self.issued) {
            return Err(Refusal::TokenIssuedAhead(witnesses.judge(issued, now)));
        }
        if let Some(not_before) = ahead(self.not_before) {
            return Err(Refusal::TokenNotYetValid(witnesses.judge(not_before, now)));
        }
        Ok(())
    }
}

/// A NumericDate (RFC 7519 §2), whole seconds of it; an issue time is never taken for later than it
/// is.
fn time(claims: &Claims, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let second = value
        .as_i64()
        .or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64)) // saturates, and NaN is no JSON
        .ok_or(Refusal::TokenMalformed)?;
    Timestamp::from_second(second).map(Some).map_err(|_| Refusal::TokenMalformed)
}

fn refusal_of(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::TokenSignature,
        ErrorKind::InvalidIssuer => Refusal::TokenIssuer,
        ErrorKind::InvalidAudience => Refusal::TokenAudience,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "exp" => Refusal::TokenWithoutExpiry,
            "iss" => Refusal::TokenIssuer,
            "aud" => Refusal::TokenAudience,
            _ => Refusal::TokenMalformed,
        },
        _ => Refusal::TokenMalformed,
    }
}
