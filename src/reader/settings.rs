//! What the configuration says of readers: `[readers]` and `[privacy]`.
//!
//! `config` builds these; only `reader` reads them. `Debug` shows no secret, since secrets are
//! `secrecy` types.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// Signature algorithms (RFC 7518 §3.1, RFC 8037 §3.1) that can be allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
}

/// `[readers.jwt]`
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// The JWKS file.
    pub jwks: PathBuf,
    /// Allowed algorithms.
    pub algorithms: Vec<Algorithm>,
    /// Expected iss.
    pub issuer: String,
    /// Expected aud.
    pub audience: String,
    /// Claim with the library's ISIL.
    pub library_claim: String,
    /// Claim with the borrower's id.
    pub borrower_claim: String,
}

/// One key of `[readers.links]`.
#[derive(Clone, Debug)]
pub struct LinkKey {
    /// Its id, which a link names: 1 to 64 visible ASCII characters.
    pub id: String,
    /// The secret: at least 32 bytes.
    pub secret: SecretString,
}

/// `[readers]` and `[privacy]`
#[derive(Clone, Debug)]
pub struct Settings {
    /// JWTs, where they are configured.
    pub jwt: Option<JwtSettings>,
    /// Keys of links; the first signs.
    pub link_keys: Vec<LinkKey>,
    /// `[readers.links] resume_grace`: how long after its expiry a link continues a download that
    /// has begun.
    pub resume_grace: Duration,
    /// The longest that a token or a link may live, from its issue to its expiry.
    pub max_lifetime: Duration,
    /// `[privacy] pseudonym_key`: at least 32 bytes.
    pub pseudonym_key: SecretString,
}
