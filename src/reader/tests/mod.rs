//! Readers with real keys: a login service that signs with all three algorithms, and a clock that
//! the tests set.

mod cache;
mod fetching;
mod keys;
mod links;
mod login_services;
mod tokens;

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm as Named, EncodingKey, crypto};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::reload::Reload;

/// The time at which all tests begin, in seconds since the epoch.
const NOW: i64 = 1_800_000_000;
const BORROWER: &str = "kari.nordmann@example.no";
const PSEUDONYM_KEY: &str = "a pseudonym key of more than thirty-two bytes";
const LINK_KEY: &str = "a link key of more than thirty-two bytes, first";

/// A login service's private key, with the public key as a JWK.
struct Signer {
    alg: Named,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn ed(kid: &str) -> Signer {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = BASE64URL_NOPAD.encode(pair.public_key_raw());
        Signer {
            alg: Named::EdDSA,
            key: EncodingKey::from_ed_der(&pair.serialize_der()),
            jwk: json!({
                "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x, "use": "sig", "alg": "EdDSA",
            }),
        }
    }

    fn ec(kid: &str) -> Signer {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (x, y) = pair.public_key_raw()[1..].split_at(32);
        let (x, y) = (BASE64URL_NOPAD.encode(x), BASE64URL_NOPAD.encode(y));
        Signer {
            alg: Named::ES256,
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y}),
        }
    }

    fn rsa(kid: &str) -> Signer {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        let public =
            serde_json::to_value(Jwk::from_encoding_key(&key, Named::RS256).unwrap()).unwrap();
        Signer {
            alg: Named::RS256,
            jwk: json!({"kty": "RSA", "kid": kid, "n": public["n"], "e": public["e"]}),
            key,
        }
    }

    /// Signs a token with the usual header.
    fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"alg": self.alg, "typ": "JWT", "kid": self.jwk["kid"]}), claims)
    }

    /// Signs a token whose header may name another algorithm or key.
    fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = crypto::sign(message.as_bytes(), &self.key, self.alg).unwrap();
        format!("{message}.{signature}")
    }
}

fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(claims))
}

/// The login service's keys. They are generated once, since RSA keys are slow to generate.
struct Login {
    ed: Signer,
    ec: Signer,
    rsa: Signer,
    stranger: Signer,
}

static LOGIN: LazyLock<Login> = LazyLock::new(|| Login {
    ed: Signer::ed("ed"),
    ec: Signer::ec("ec"),
    rsa: Signer::rsa("rsa"),
    stranger: Signer::ed("ed"),
});

/// Readers with their JWKS file, settings and clock.
struct Gate {
    dir: TempDir,
    settings: Settings,
    clock: Clock,
    readers: Readers,
}

impl Gate {
    fn start() -> Gate {
        let dir = tempfile::tempdir().unwrap();
        let jwks = json!({"keys": [LOGIN.ed.jwk, LOGIN.ec.jwk, LOGIN.rsa.jwk]});
        let settings = settings(&dir, &jwks);
        let clock = Clock::movable(Timestamp::from_second(NOW).unwrap());
        let readers = Readers::new(&settings, clock.clone()).unwrap();
        Gate { dir, settings, clock, readers }
    }

    /// Recreates the readers with changed settings and the same clock.
    fn restart(&mut self) {
        self.readers = Readers::new(&self.settings, self.clock.clone()).unwrap();
    }

    /// Reloads the keys with the settings.
    fn reload(&self) -> Result<(), Vec<ReadersError>> {
        self.readers.apply(self.readers.validate(&self.settings)?);
        Ok(())
    }

    fn bearer(&self, token: &str) -> Result<Arc<Reader>, Problem> {
        self.readers.authenticate(&authorization(token), None, None)
    }

    fn query(&self, query: &str) -> Result<Arc<Reader>, Problem> {
        self.readers.authenticate(&HeaderMap::new(), Some(query), None)
    }

    fn path(&self, token: &str) -> Result<Arc<Reader>, Problem> {
        self.readers.authenticate(&HeaderMap::new(), None, Some(token))
    }

    fn link(&self, scope: &Scope) -> String {
        let borrower = self.readers.pseudonym(library(), BORROWER);
        let (token, _) =
            self.readers.mint_link(library(), borrower, scope, Duration::from_secs(3600)).unwrap();
        token
    }
}

fn settings(dir: &TempDir, jwks: &Value) -> Settings {
    let file = dir.path().join("jwks.json");
    std::fs::write(&file, jwks.to_string()).unwrap();
    Settings {
        issuers: vec![JwtSettings {
            keys: KeySource::File(file),
            keep_keys: Duration::from_secs(3600),
            algorithms: vec![Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256],
            issuer: "https://login.example.no".to_owned(),
            audience: "loangate".to_owned(),
            library: LibraryRule::Claim("library".to_owned()),
            borrower_claim: "sub".to_owned(),
            borrower_group: None,
        }],
        link_keys: vec![link_key("k1", LINK_KEY)],
        resume_grace: Duration::from_secs(600),
        max_lifetime: Duration::from_secs(365 * 86_400),
        pseudonym_key: SecretString::from(PSEUDONYM_KEY),
    }
}

fn link_key(id: &str, secret: &str) -> LinkKey {
    LinkKey { id: id.to_owned(), secret: SecretString::from(secret) }
}

fn authorization(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let field = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    headers.insert(AUTHORIZATION, field);
    headers
}

fn library() -> LibraryId {
    "NO-0301000".parse().unwrap()
}

/// Returns valid claims with some changes; null removes a claim.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://login.example.no",
        "aud": "loangate",
        "sub": BORROWER,
        "library": "NO-0301000",
        "iat": NOW,
        "exp": NOW + 3600,
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Returns the sentence of a 401.
fn unauthenticated<T: fmt::Debug>(answer: Result<T, Problem>) -> &'static str {
    match answer {
        Err(Problem::ReaderUnauthenticated(sentence)) => {
            assert!(sentence.english.ends_with('.') && sentence.norwegian.ends_with('.'));
            sentence.english
        }
        other => panic!("no 401: {other:?}"),
    }
}
