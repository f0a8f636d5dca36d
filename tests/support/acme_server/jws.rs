//! The signed requests of ACME clients (RFC 8555 §6.2).

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::{Books, EXTERNAL_ID, EXTERNAL_KEY};

/// A request whose signature, nonce and URL are right.
pub(super) struct Signed {
    /// The public key.
    pub(super) key: Value,
    /// The number of the account; none if the request has the key itself.
    pub(super) account: Option<usize>,
    /// Null for a request that only reads.
    pub(super) payload: Value,
}

/// Verifies a request. Returns the type of the problem if it is wrong.
pub(super) fn verify(body: &[u8], url: &str, books: &mut Books) -> Result<Signed, &'static str> {
    let parts: Value = serde_json::from_slice(body).map_err(|_| "malformed")?;
    let header: Value =
        serde_json::from_slice(&decoded(&parts["protected"])?).map_err(|_| "malformed")?;
    let nonce = header["nonce"].as_str().ok_or("badNonce")?;
    if !books.nonces.remove(nonce) {
        books.replayed += 1;
        return Err("badNonce");
    }
    if header["url"] != url {
        return Err("unauthorized");
    }
    if header["alg"] != "ES256" {
        return Err("badSignatureAlgorithm");
    }
    let (key, account) = match (header["kid"].as_str(), &header["jwk"]) {
        (Some(id), Value::Null) => {
            let number: usize =
                id.rsplit('/').next().and_then(|n| n.parse().ok()).ok_or("malformed")?;
            let key = books.accounts.get(number).ok_or("accountDoesNotExist")?;
            (key.clone(), Some(number))
        }
        (None, key @ Value::Object(_)) => (key.clone(), None),
        _ => return Err("malformed"),
    };
    let point = [vec![4], decoded(&key["x"])?, decoded(&key["y"])?].concat();
    let signed = signed_bytes(&parts)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &decoded(&parts["signature"])?)
        .map_err(|_| "unauthorized")?;
    let payload = decoded(&parts["payload"])?;
    let payload = match payload.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&payload).map_err(|_| "malformed")?,
    };
    Ok(Signed { key, account, payload })
}

/// Verifies the binding of an account to the external one (RFC 8555 §7.3.4).
pub(super) fn is_bound(binding: &Value, key: &Value, url: &str) -> bool {
    let verified = || -> Result<bool, &'static str> {
        let header: Value =
            serde_json::from_slice(&decoded(&binding["protected"])?).map_err(|_| "malformed")?;
        let bound: Value =
            serde_json::from_slice(&decoded(&binding["payload"])?).map_err(|_| "malformed")?;
        let secret = BASE64URL_NOPAD.decode(EXTERNAL_KEY.as_bytes()).unwrap();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed = signed_bytes(binding)?;
        let signature = decoded(&binding["signature"])?;
        let is_signed = hmac::verify(&secret, signed.as_bytes(), &signature).is_ok();
        let is_of_key = thumbprint(&bound) == thumbprint(key);
        let expected = json!({ "alg": "HS256", "kid": EXTERNAL_ID, "url": url });
        Ok(is_signed && is_of_key && header == expected)
    };
    verified().unwrap_or(false)
}

/// Returns the thumbprint of a key (RFC 7638).
pub(super) fn thumbprint(key: &Value) -> String {
    let text = format!(
        r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#,
        key["crv"], key["kty"], key["x"], key["y"]
    );
    BASE64URL_NOPAD.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

fn signed_bytes(parts: &Value) -> Result<String, &'static str> {
    let text = |name: &str| parts[name].as_str().ok_or("malformed");
    Ok(format!("{}.{}", text("protected")?, text("payload")?))
}

fn decoded(value: &Value) -> Result<Vec<u8>, &'static str> {
    let text = value.as_str().ok_or("malformed")?;
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| "malformed")
}
