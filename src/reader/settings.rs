//! Settings of reader authentication: `[readers]` and `[privacy]` of the configuration.
//!
//! `config` builds them; only `reader` reads them. `Debug` shows no secret, since secrets are
//! `secrecy` types.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// Signature algorithms (RFC 7518 §3.1, RFC 8037 §3.1) that can be allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Algorithm {
    /// EdDSA with the curve Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
}

impl Algorithm {
    /// Returns the algorithm that the header of a token names; none if it is not supported.
    pub(crate) fn named(name: jsonwebtoken::Algorithm) -> Option<Algorithm> {
        match name {
            jsonwebtoken::Algorithm::EdDSA => Some(Algorithm::EdDSA),
            jsonwebtoken::Algorithm::ES256 => Some(Algorithm::ES256),
            jsonwebtoken::Algorithm::RS256 => Some(Algorithm::RS256),
            _ => None,
        }
    }
}

/// The keys of `[readers.jwt]`.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// The file with the login service's public keys (JWKS).
    pub jwks: PathBuf,
    /// The signature algorithms that tokens may use.
    pub algorithms: Vec<Algorithm>,
    /// The expected value of the claim `iss`.
    pub issuer: String,
    /// The expected value of the claim `aud`.
    pub audience: String,
    /// The name of the claim with the library's ISIL.
    pub library_claim: String,
    /// The name of the claim with the borrower's id.
    pub borrower_claim: String,
}

/// One key of `[readers.links]`.
#[derive(Clone, Debug)]
pub struct LinkKey {
    /// The key's id, which links contain: 1 to 64 visible ASCII characters.
    pub id: String,
    /// The secret of at least 32 bytes.
    pub secret: SecretString,
}

/// The keys of `[readers]` and `[privacy]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The settings of reader tokens, if the gate accepts them.
    pub jwt: Option<JwtSettings>,
    /// The keys of signed links; the first one signs.
    pub link_keys: Vec<LinkKey>,
    /// `[readers.links] resume_grace`: how long after its expiry a link can resume a download.
    pub resume_grace: Duration,
    /// The longest lifetime of a token or a link, from its issue to its expiry.
    pub max_lifetime: Duration,
    /// `[privacy] pseudonym_key`, of at least 32 bytes.
    pub pseudonym_key: SecretString,
}
