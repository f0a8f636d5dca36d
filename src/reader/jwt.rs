//! Verification of reader tokens: JWTs (RFC 7519) of the login services.
//!
//! `reader/mod.rs` calls it for a token that is not cached. The token's issuer chooses the login
//! service, whose keys, algorithms and claims then apply. This module checks times, by
//! [`crate::clock`]. It returns the borrower as a pseudonym only.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use jsonwebtoken::{Header, decode_header};
use serde::Deserialize;
use serde_json::Value;

use super::claims::{Claims, subject};
use super::clock_blame::ClockEvidence;
use super::credential_times::is_issued_ahead;
use super::fetched_keys::FetchedKeys;
use super::jwks::KeyId;
use super::login_service::LoginService;
use super::pseudonym::Pseudonyms;
use super::refusal::{JwtFault, Refusal};
use super::{JwtSettings, Reader, ReadersError, Scope};
use crate::clock::{self, Clock};

/// The largest accepted offset between the clocks of the login service and the gate.
pub(super) const LEEWAY: Duration = Duration::from_secs(60);

/// Verifier of reader tokens.
pub(super) struct Tokens {
    services: Vec<LoginService>,
}

impl Tokens {
    /// Reads the JWKS files. Keys that `old` has fetched are taken over, by issuer.
    pub(super) fn new(
        settings: &[JwtSettings],
        old: Option<&Tokens>,
    ) -> Result<Tokens, ReadersError> {
        let service = |settings: &JwtSettings| {
            let old = old.and_then(|old| old.service(&settings.issuer));
            LoginService::new(settings, old)
        };
        Ok(Tokens { services: settings.iter().map(service).collect::<Result<_, _>>()? })
    }

    pub(super) fn services(&self) -> &[LoginService] {
        &self.services
    }

    fn service(&self, issuer: &str) -> Option<&LoginService> {
        self.services.iter().find(|service| service.settings.issuer == issuer)
    }

    /// Returns the header of a token, and the login service that it names. Nothing is verified yet.
    fn select(&self, token: &str) -> Result<(Header, &LoginService), Refusal> {
        let header = decode_header(token).map_err(|_| Refusal::Token(JwtFault::Malformed))?;
        if header.crit.is_some() {
            // No critical extension is supported, so each must be rejected (RFC 7515 §4.1.11).
            return Err(Refusal::Token(JwtFault::Malformed));
        }
        let issuer = named_issuer(token).ok_or(Refusal::Token(JwtFault::Malformed))?;
        let service = issuer.as_str().and_then(|issuer| self.service(issuer));
        Ok((header, service.ok_or(Refusal::Token(JwtFault::Issuer))?))
    }

    /// Verifies a token at `now`. Returns its reader, and the key that has signed it.
    pub(super) fn verify(
        &self,
        token: &str,
        pseudonyms: &Pseudonyms,
        clock_evidence: &ClockEvidence,
        (clock, now): (&Clock, Timestamp),
    ) -> Result<(Reader, KeyId), Refusal> {
        if self.services.is_empty() {
            return Err(Refusal::TokensDisabled);
        }
        let (header, service) = self.select(token)?;
        let (claims, key) = service.claims(token, &header, clock)?;
        let times = Times::of(&claims)?;
        times.check(now, clock_evidence)?;
        clock_evidence.record_valid(times.issued, now);
        let settings = &service.settings;
        let (library, borrower) = subject(&claims, settings)?;
        let borrower = pseudonyms.of(settings.borrower_group.as_deref(), library, borrower);
        let reader = Reader {
            library,
            borrower,
            issued: times.issued,
            issued_ahead: false,
            expires: times.expires,
            scope: Scope::All,
        };
        Ok((reader, key))
    }

    /// Returns the keys that a token needs, if they are fetched, and the id of its key.
    pub(super) fn fetched_keys_for(
        &self,
        token: &str,
    ) -> Option<(Arc<FetchedKeys>, Option<String>)> {
        let (header, service) = self.select(token).ok()?;
        Some((service.fetched_keys()?.clone(), header.kid))
    }
}

/// Returns the claim `iss` of a token, null if it has none. Not verified: it only selects.
fn named_issuer(token: &str) -> Option<Value> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        iss: Value,
    }
    let payload = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    serde_json::from_slice(&payload).ok().map(|Named { iss }| iss)
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
        let ahead = |time: Option<Timestamp>| time.filter(|time| is_issued_ahead(*time, now));
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
