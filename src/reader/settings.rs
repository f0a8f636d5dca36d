//! Settings of reader authentication: `[readers]` and `[privacy]` of the configuration.
//!
//! `config` builds them; only `reader` reads them. `Debug` shows no secret, since secrets are
//! `secrecy` types.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::loan::LibraryId;

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

/// Where the public keys of a login service (JWKS) are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// `jwks`: in a file.
    File(PathBuf),
    /// `jwks_url`: at this address.
    Url(Url),
    /// At the address that the issuer publishes (OpenID Connect Discovery §4).
    Discovery,
}

/// How the library of a reader is known.
#[derive(Clone, Debug)]
pub enum LibraryRule {
    /// `library`: every token is of this library.
    Fixed(LibraryId),
    /// `claims.library`: the name or the path of a claim with the ISIL.
    Claim(String),
    /// `claims.library` and `libraries`: a claim, and the library of each of its values.
    Table(String, BTreeMap<String, LibraryId>),
}

/// The keys of `[readers.jwt]`, or of one of `[[readers.issuers]]`: a login service.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// Where its public keys are.
    pub keys: KeySource,
    /// How long keys are used after they should have been fetched again, if they cannot be.
    pub keep_keys: Duration,
    /// The signature algorithms that tokens may use.
    pub algorithms: Vec<Algorithm>,
    /// The expected value of the claim `iss`.
    pub issuer: String,
    /// The expected value of the claim `aud`.
    pub audience: String,
    /// How the library is known.
    pub library: LibraryRule,
    /// The name or the path of the claim with the borrower's id.
    pub borrower_claim: String,
    /// The group of borrower ids. An id is one person at all login services of its group. None is
    /// the default group, in which links are minted.
    pub borrower_group: Option<String>,
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
    /// The login services whose tokens the gate accepts, each with an issuer of its own.
    pub issuers: Vec<JwtSettings>,
    /// The keys of signed links; the first one signs.
    pub link_keys: Vec<LinkKey>,
    /// `[readers.links] resume_grace`: how long after its expiry a link can resume a download.
    pub resume_grace: Duration,
    /// The longest lifetime of a token or a link, from its issue to its expiry.
    pub max_lifetime: Duration,
    /// `[privacy] pseudonym_key`, of at least 32 bytes.
    pub pseudonym_key: SecretString,
}
