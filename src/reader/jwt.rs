//! Verification of reader tokens: JWTs (RFC 7519) of the login service.
//!
//! `reader/mod.rs` calls it for a token that is not cached. Only keys of the JWKS file count:
//! `jku`, `x5u`, `x5c` and `jwk` in a header are ignored. `jsonwebtoken` checks signature, issuer
//! and audience. This module checks times, by [`crate::clock`]. It returns the borrower as a
//! pseudonym only.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::clock_blame::ClockEvidence;
use super::jwks::{self, VerifyKey};
use super::pseudonym::Pseudonyms;
use super::refusal::{JwtFault, Refusal};
use super::{Algorithm, JwtSettings, Reader, ReadersError, Scope};
use crate::clock;
use crate::loan::LibraryId;

/// The largest accepted offset between the clocks of the login service and the gate.
pub(super) const LEEWAY: Duration = Duration::from_secs(60);

/// The longest borrower id, in bytes.
const MAX_BORROWER: usize = 256;

type Claims = Map<String, Value>;

/// Verifier of reader tokens, with the keys and the expected claims.
pub(super) struct Tokens {
    keys: Vec<VerifyKey>,
    settings: JwtSettings,
    /// Checks of issuer, audience and required claims; times and algorithm are checked per token.
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

    /// Verifies a token at `now` and returns its reader.
    pub(super) fn verify(
        &self,
        token: &str,
        pseudonyms: &Pseudonyms,
        clock_evidence: &ClockEvidence,
        now: Timestamp,
    ) -> Result<Reader, Refusal> {
        let header = decode_header(token).map_err(|_| Refusal::Token(JwtFault::Malformed))?;
        if header.crit.is_some() {
            // No critical extension is supported, so each must be rejected (RFC 7515 §4.1.11).
            return Err(Refusal::Token(JwtFault::Malformed));
        }
        let claims = self.claims(token, &header)?;
        let times = Times::of(&claims)?;
        times.check(now, clock_evidence)?;
        clock_evidence.record_valid(times.issued, now);
        let (library, borrower) = self.subject(&claims)?;
        Ok(Reader {
            library,
            borrower: pseudonyms.of(library, borrower),
            issued: times.issued,
            issued_ahead: false,
            expires: times.expires,
            scope: Scope::All,
        })
    }

    /// Returns the claims if one of the keys that fit the header has signed them.
    fn claims(&self, token: &str, header: &Header) -> Result<Claims, Refusal> {
        let algorithm = self.allowed(header.alg).ok_or(Refusal::Token(JwtFault::Algorithm))?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut outcome = Err(Refusal::Token(JwtFault::Key));
        for key in self.keys.iter().filter(|key| key.algorithm == algorithm) {
            if header.kid.is_some() && header.kid != key.kid {
                continue;
            }
            outcome = decode::<Claims>(token, &key.key, &validation)
                .map(|token| token.claims)
                .map_err(|error| refusal_of(&error));
            if outcome != Err(Refusal::Token(JwtFault::Signature)) {
                break;
            }
        }
        outcome
    }

    fn allowed(&self, named: jsonwebtoken::Algorithm) -> Option<Algorithm> {
        let algorithm = Algorithm::named(named)?;
        self.settings.algorithms.contains(&algorithm).then_some(algorithm)
    }

    /// Returns the library and the borrower's own id, borrowed from the claims.
    fn subject<'a>(&self, claims: &'a Claims) -> Result<(LibraryId, &'a str), Refusal> {
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
        let library = text(&self.settings.library_claim)
            .and_then(|isil| isil.parse().ok())
            .ok_or(Refusal::Token(JwtFault::Library))?;
        let borrower = text(&self.settings.borrower_claim)
            .filter(|id| !id.is_empty() && id.len() <= MAX_BORROWER)
            .ok_or(Refusal::Token(JwtFault::Borrower))?;
        Ok((library, borrower))
    }
}

/// The time claims of RFC 7519 §4.1.4 to §4.1.6.
struct Times {
    expires: Timestamp,
    not_before: Option<Timestamp>,
    issued: Option<Timestamp>,
}

impl Times {
    fn of(claims: &Claims) -> Result<Times, Refusal> {
        Ok(Times {
            expires: time(claims, "exp")?.ok_or(Refusal::Token(JwtFault::WithoutExpiry))?,
            not_before: time(claims, "nbf")?,
            issued: time(claims, "iat")?,
        })
    }

    fn check(&self, now: Timestamp, clock_evidence: &ClockEvidence) -> Result<(), Refusal> {
        let ahead = |time: Option<Timestamp>| time.filter(|time| *time > clock::after(now, LEEWAY));
        if now >= clock::after(self.expires, LEEWAY) {
            return Err(Refusal::Token(JwtFault::Expired));
        }
        // Checked before `nbf`: an issue time in the future proves a wrong clock, while `nbf` may
        // be in the future on purpose.
        if let Some(issued) = ahead(self.issued) {
            return Err(Refusal::Token(JwtFault::IssuedAhead(
                clock_evidence.diagnose(issued, now),
            )));
        }
        if let Some(not_before) = ahead(self.not_before) {
            return Err(Refusal::Token(JwtFault::NotYetValid(
                clock_evidence.diagnose(not_before, now),
            )));
        }
        Ok(())
    }
}

/// Parses a NumericDate (RFC 7519 §2), rounded down, so that no time is later than stated.
fn time(claims: &Claims, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let second = value
        .as_i64()
        // The cast saturates, and JSON has no NaN.
        .or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64))
        .ok_or(Refusal::Token(JwtFault::Malformed))?;
    Timestamp::from_second(second).map(Some).map_err(|_| Refusal::Token(JwtFault::Malformed))
}

fn refusal_of(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::Token(JwtFault::Signature),
        ErrorKind::InvalidIssuer => Refusal::Token(JwtFault::Issuer),
        ErrorKind::InvalidAudience => Refusal::Token(JwtFault::Audience),
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "exp" => Refusal::Token(JwtFault::WithoutExpiry),
            "iss" => Refusal::Token(JwtFault::Issuer),
            "aud" => Refusal::Token(JwtFault::Audience),
            _ => Refusal::Token(JwtFault::Malformed),
        },
        _ => Refusal::Token(JwtFault::Malformed),
    }
}
