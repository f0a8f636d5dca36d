//! One login service: its keys, and what its tokens must say.
//!
//! `jwt` chooses the service by a token's issuer. Only the keys of the service itself count: `jku`,
//! `x5u`, `x5c` and `jwk` in a header are ignored. `jsonwebtoken` checks signature, issuer and
//! audience.

use std::sync::Arc;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Header, Validation, decode};

use super::claims::Claims;
use super::fetched_keys::{FetchedKeys, KeyTrouble};
use super::jwks::{self, KeyId, VerifyKey};
use super::provider;
use super::provider_http::provider_client;
use super::refusal::{JwtFault, Refusal};
use super::{Algorithm, JwtSettings, KeySource, ReadersError};
use crate::clock::Clock;

/// A login service whose tokens the gate accepts.
pub(super) struct LoginService {
    pub(super) settings: JwtSettings,
    keys: ServiceKeys,
    /// Checks of issuer, audience and required claims; times and algorithm are checked per token.
    validation: Validation,
}

enum ServiceKeys {
    File(Vec<VerifyKey>),
    Fetched(Arc<FetchedKeys>),
}

impl LoginService {
    /// Reads the JWKS file, or takes the keys of `old` over if they were fetched from the same
    /// address for the same issuer.
    pub(super) fn new(
        settings: &JwtSettings,
        old: Option<&LoginService>,
    ) -> Result<LoginService, ReadersError> {
        let mut validation = Validation {
            algorithms: Vec::new(),
            validate_exp: false,
            validate_nbf: false,
            ..Validation::default()
        };
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let keys = match &settings.keys {
            KeySource::File(file) => ServiceKeys::File(jwks::read(file, &settings.algorithms)?),
            KeySource::Url(_) | KeySource::Discovery => {
                let old = old.filter(|old| old.settings.keys == settings.keys);
                let fetched = old.and_then(LoginService::fetched_keys);
                let new = || Arc::new(FetchedKeys::new(&settings.issuer, url_of(&settings.keys)));
                ServiceKeys::Fetched(fetched.map_or_else(new, Arc::clone))
            }
        };
        Ok(LoginService { settings: settings.clone(), keys, validation })
    }

    /// Returns the keys that are fetched; none if they are in a file.
    pub(super) fn fetched_keys(&self) -> Option<&Arc<FetchedKeys>> {
        match &self.keys {
            ServiceKeys::Fetched(keys) => Some(keys),
            ServiceKeys::File(_) => None,
        }
    }

    /// Returns what is wrong with the keys.
    pub(super) fn trouble(&self, clock: &Clock) -> Option<KeyTrouble> {
        self.fetched_keys()?.trouble(clock.age_millis(), self.settings.keep_keys)
    }

    /// Returns the claims of a token and the key that has signed them.
    pub(super) fn claims(
        &self,
        token: &str,
        header: &Header,
        clock: &Clock,
    ) -> Result<(Claims, KeyId), Refusal> {
        let algorithm = self.allowed(header.alg).ok_or(Refusal::Token(JwtFault::Algorithm))?;
        let keys = match &self.keys {
            ServiceKeys::File(keys) => return self.verify(token, header, algorithm, keys),
            ServiceKeys::Fetched(keys) => keys,
        };
        let now = clock.age_millis();
        let set = keys.usable(now, self.settings.keep_keys);
        let set = set.ok_or_else(|| keys.unavailable(now))?;
        let verified = self.verify(token, header, algorithm, &set.keys);
        verified.map_err(|refusal| match refusal {
            Refusal::Token(JwtFault::Key) => keys.unknown_key(&set, header.kid.as_deref(), now),
            other => other,
        })
    }

    /// Verifies a token by those of the keys that fit its header.
    fn verify(
        &self,
        token: &str,
        header: &Header,
        algorithm: Algorithm,
        keys: &[VerifyKey],
    ) -> Result<(Claims, KeyId), Refusal> {
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut outcome = Err(Refusal::Token(JwtFault::Key));
        for key in keys.iter().filter(|key| key.algorithm == algorithm) {
            if header.kid.is_some() && header.kid != key.kid {
                continue;
            }
            outcome = decode::<Claims>(token, &key.key, &validation)
                .map(|token| (token.claims, key.id))
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
}

/// Returns the configured address of the keys; none if discovery finds it.
fn url_of(keys: &KeySource) -> Option<&url::Url> {
    match keys {
        KeySource::Url(url) => Some(url),
        KeySource::File(_) | KeySource::Discovery => None,
    }
}

/// Fetches the keys of a login service once, and returns how many of them its tokens may use. None
/// if they are in a file.
///
/// # Errors
/// Why they cannot be fetched, as a phrase.
pub(crate) async fn try_fetch(settings: &JwtSettings) -> Option<Result<usize, String>> {
    if matches!(settings.keys, KeySource::File(_)) {
        return None;
    }
    let client = match provider_client() {
        Ok(client) => client,
        Err(error) => return Some(Err(error.to_string())),
    };
    let fetched = provider::fetch(&client, &settings.issuer, url_of(&settings.keys)).await;
    let is_allowed = |key: &&VerifyKey| settings.algorithms.contains(&key.algorithm);
    let count = fetched.map(|fetched| fetched.keys.iter().filter(is_allowed).count());
    Some(count.map_err(|error| error.why().to_owned()))
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
