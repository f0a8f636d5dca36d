//! The public keys of a login service (JWKS, RFC 7517), from a file or a response.
//!
//! `login_service` reads the file at start and on reload; `provider` fetches responses. Each key is
//! bound to the one algorithm that its own type, curve and `alg` allow, so that a token's header
//! can never choose the algorithm of a key. Keys for other purposes or algorithms are skipped. A
//! broken key for an allowed algorithm is an error in a file, and is skipped in a response.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::pseudonym::first;
use super::{Algorithm, ReadersError};

/// The largest JWKS file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// The accepted lengths of an RSA modulus, in bytes: 2048 to 8192 bits.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// The most keys of a response.
const MAX_KEYS: usize = 100;

/// Distinguishes keys: a hash of the whole JWK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeyId([u8; 16]);

/// A public key and its only algorithm.
pub(crate) struct VerifyKey {
    pub(super) id: KeyId,
    pub(crate) kid: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

impl VerifyKey {
    /// Returns the key; none if it is of no supported algorithm, not for signatures, or invalid.
    pub(crate) fn of(jwk: &Jwk) -> Option<VerifyKey> {
        let algorithm = algorithm_of(jwk)?;
        let key = valid_key(jwk, algorithm)?;
        let jwk_json = serde_json::to_vec(jwk).ok()?;
        let id = KeyId(first(digest(&SHA256, &jwk_json).as_ref()));
        Some(VerifyKey { id, kid: jwk.common.key_id.clone(), algorithm, key })
    }
}

/// The members of a JWKS. Its keys are read one by one, since they may be of an unknown kind.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// Returns the usable keys of a response, which may be none.
///
/// # Errors
/// If it is not a JWKS, or has more than 100 keys.
pub(super) fn parse_response(body: &[u8]) -> Result<Vec<VerifyKey>, String> {
    let KeySet { keys } = serde_json::from_slice(body)
        .map_err(|_| "the response is not a JWKS, which is JSON with a list `keys`".to_owned())?;
    if keys.len() > MAX_KEYS {
        return Err(format!("the response has {} keys; at most {MAX_KEYS} are read", keys.len()));
    }
    let known = keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(known.filter_map(|jwk| VerifyKey::of(&jwk)).collect())
}

/// Reads the keys for the allowed algorithms from the file; returns at least one.
pub(super) fn read(path: &Path, allowed: &[Algorithm]) -> Result<Vec<VerifyKey>, ReadersError> {
    let file = path.display();
    let text = read_file(path)
        .map_err(|error| ReadersError(format!("The JWKS file {file} cannot be read: {error}.")))?;
    let set: JwkSet = serde_json::from_str(&text).map_err(|error| {
        ReadersError(format!(
            "The file {file} is not a JWKS, which is JSON with a list `keys`: line {}, column {}.",
            error.line(),
            error.column()
        ))
    })?;
    let mut keys = Vec::new();
    for (index, jwk) in set.keys.iter().enumerate() {
        let Some(algorithm) = algorithm_of(jwk).filter(|it| allowed.contains(it)) else {
            continue;
        };
        let key = VerifyKey::of(jwk).ok_or_else(|| {
            let number = index + 1;
            ReadersError(format!(
                "Key number {number} in the JWKS file {file} is not a valid key for \
                 {algorithm:?}: replace it or take it out."
            ))
        })?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(ReadersError(format!(
            "No key in the JWKS file {file} fits the allowed algorithms {allowed:?}: add one, or \
             allow its algorithm."
        )));
    }
    Ok(keys)
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    std::fs::read_to_string(path)
}

/// Returns the algorithm of a signature key, by its type and curve (RFC 7518 §6, RFC 8037 §2), its
/// `alg`, `use` and `key_ops`.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        _ => return None,
    };
    let common = &jwk.common;
    let fits = common.key_algorithm.is_none_or(|alg| alg == named)
        && common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    fits.then_some(algorithm)
}

/// Returns the key if its bytes are valid.
fn valid_key(jwk: &Jwk, algorithm: Algorithm) -> Option<DecodingKey> {
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let is_valid = match (key.kind(), algorithm) {
        (DecodingKeyKind::SecretOrDer(bytes), Algorithm::EdDSA) => parses(&ED25519, bytes),
        (DecodingKeyKind::SecretOrDer(bytes), Algorithm::ES256) => {
            parses(&ECDSA_P256_SHA256_FIXED, bytes)
        }
        (DecodingKeyKind::RsaModulusExponent { n, e }, Algorithm::RS256) => {
            RSA_MODULUS.contains(&n.len()) && !e.is_empty()
        }
        _ => false,
    };
    is_valid.then_some(key)
}

fn parses(algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]) -> bool {
    UnparsedPublicKey::new(algorithm, bytes).parse().is_ok()
}
