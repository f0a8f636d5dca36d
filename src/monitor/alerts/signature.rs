//! The signature of Standard Webhooks: HMAC-SHA256 over id, time and body.

use aws_lc_rs::hmac;
use data_encoding::BASE64;

/// What each secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";
/// The least and the most bytes of a key, as Standard Webhooks demands.
const MIN_BYTES: usize = 24;
const MAX_BYTES: usize = 64;

/// The key of a webhook. `Debug` does not show it.
#[derive(Clone, Debug)]
pub(crate) struct SigningKey(hmac::Key);

impl SigningKey {
    /// Parses a secret: `whsec_` and the key in base 64. Returns none for any other text.
    pub(crate) fn parse(secret: &str) -> Option<SigningKey> {
        let key = BASE64.decode(secret.strip_prefix(PREFIX)?.as_bytes()).ok()?;
        let has_length = (MIN_BYTES..=MAX_BYTES).contains(&key.len());
        has_length.then(|| SigningKey(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Returns the field `webhook-signature` of a message. `timestamp` is in seconds.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body.as_bytes());
        format!("v1,{}", BASE64.encode(context.sign().as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signature_equals_that_of_the_reference() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn only_whole_secrets_are_keys() {
        for secret in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAA", "whsec_é"] {
            assert!(SigningKey::parse(secret).is_none(), "{secret}");
        }
        let too_long = format!("whsec_{}", BASE64.encode(&[0; 65]));
        assert!(SigningKey::parse(&too_long).is_none());
    }
}
