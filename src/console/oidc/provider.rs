//! The client of the OpenID provider: its metadata, its keys, and the exchange of a code.
//!
//! The metadata and the keys are fetched when somebody signs in, one request at a time, and
//! cached. After a failure, and for an unknown key, they are fetched again at most once in ten
//! seconds. No redirect is followed, and every response is bounded in size and time.

use std::sync::Arc;

use jsonwebtoken::jwk::Jwk;
use reqwest::{Client, RequestBuilder};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::byte_serialize;

use super::cache::FetchCache;
use super::fetch::{FetchError, fetch};
use super::id_token::{self, IdTokenError, VerifiedPerson};
use super::metadata::ProviderMetadata;
use super::pending::PendingSignIn;
use super::{OidcSettings, SignInError};
use crate::clock::Clock;
use crate::reader::{VerifyKey, provider_client};
use crate::telemetry::LogLimit;

/// The most keys of a set.
const MAX_KEYS: usize = 100;

/// The provider, with what is known of it.
pub(super) struct Provider {
    pub(super) settings: OidcSettings,
    client: Client,
    metadata: FetchCache<Arc<ProviderMetadata>>,
    keys: FetchCache<Arc<[VerifyKey]>>,
    failures: LogLimit,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
    token_type: String,
}

impl Provider {
    /// Creates a client that has fetched nothing.
    ///
    /// # Errors
    /// The error of TLS, if it does not start.
    pub(super) fn new(settings: OidcSettings) -> Result<Provider, reqwest::Error> {
        Ok(Provider {
            settings,
            client: provider_client()?,
            metadata: FetchCache::default(),
            keys: FetchCache::default(),
            failures: LogLimit::per_minute(),
        })
    }

    /// Returns the metadata of the provider.
    pub(super) async fn metadata(&self) -> Result<Arc<ProviderMetadata>, SignInError> {
        let issuer = self.settings.issuer.clone();
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let request = self.client.get(url);
        let fetched = self.metadata.get(false, async move {
            let metadata: ProviderMetadata = fetch(request).await.map_err(|error| error.why)?;
            metadata.check(&issuer)?;
            Ok(Arc::new(metadata))
        });
        fetched.await.map_err(|why| self.failed("description", &why.into()))
    }

    /// Exchanges a code for the person whom the provider has signed in.
    pub(super) async fn exchange(
        &self,
        metadata: &ProviderMetadata,
        code: &str,
        pending: &PendingSignIn,
        redirect_uri: &str,
        clock: &Clock,
    ) -> Result<VerifiedPerson, SignInError> {
        let request = self.token_request(metadata, code, pending, redirect_uri)?;
        let tokens = fetch::<Tokens>(request).await;
        let Tokens { id_token: token, token_type } =
            tokens.map_err(|error| self.failed("token", &error))?;
        // OpenID Connect Core §3.1.3.3.
        if !token_type.eq_ignore_ascii_case("Bearer") {
            let why = "the token endpoint gave no tokens of the type Bearer";
            return Err(self.failed("token", &why.to_owned().into()));
        }
        let nonce = pending.nonce.cookie_value();
        let verify =
            |keys: &[VerifyKey]| id_token::verify(&token, keys, &self.settings, nonce, clock.now());
        let mut verified = verify(&self.keys(metadata, false).await?);
        if verified == Err(IdTokenError::Key) {
            verified = verify(&self.keys(metadata, true).await?);
        }
        verified.map_err(|error| self.refused(error))
    }

    /// Returns the keys. With `again`, newer ones than those that are cached, if that may be.
    async fn keys(
        &self,
        metadata: &ProviderMetadata,
        again: bool,
    ) -> Result<Arc<[VerifyKey]>, SignInError> {
        let request = self.client.get(metadata.jwks_uri.clone());
        let fetched = self.keys.get(again, async move {
            let set: KeySet = fetch(request).await.map_err(|error| error.why)?;
            // Keys of other kinds and for other purposes are in such sets, too.
            let keys = set.keys.into_iter().take(MAX_KEYS);
            let known = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
            Ok(known.filter_map(|key| VerifyKey::of(&key)).collect())
        });
        fetched.await.map_err(|why| self.failed("keys", &why.into()))
    }

    fn token_request(
        &self,
        metadata: &ProviderMetadata,
        code: &str,
        pending: &PendingSignIn,
        redirect_uri: &str,
    ) -> Result<RequestBuilder, SignInError> {
        let OidcSettings { client_id, client_secret, .. } = &self.settings;
        let secret = client_secret.expose_secret();
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", pending.verifier.cookie_value()),
        ];
        let request = self.client.post(metadata.token_endpoint.clone());
        let request = match metadata.sends_secret_in_body() {
            // RFC 6749 §2.3.1: both are encoded as in a form first.
            Some(false) => {
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                request.basic_auth(encoded(client_id), Some(encoded(secret)))
            }
            Some(true) => {
                form.extend([("client_id", client_id.as_str()), ("client_secret", secret)]);
                request
            }
            None => {
                let why = "the token endpoint takes neither client_secret_basic nor _post";
                return Err(self.failed("token", &why.to_owned().into()));
            }
        };
        Ok(request.form(&form))
    }

    /// Logs a sign-in that took too long.
    pub(super) fn timed_out(&self) -> SignInError {
        self.failed("sign-in", &"its requests took too long".to_owned().into())
    }

    fn refused(&self, error: IdTokenError) -> SignInError {
        let why = match error {
            IdTokenError::NoRole(sub) => {
                if let Some(left_out) = self.failures.permit("no role") {
                    tracing::warn!(sub, left_out, "a person without a role was not signed in");
                }
                return SignInError::NoRole;
            }
            IdTokenError::Key => "no key of the provider has signed it",
            IdTokenError::Invalid(why) => why,
        };
        if let Some(left_out) = self.failures.permit(why) {
            tracing::warn!(why, left_out, "an ID token was refused");
        }
        SignInError::Untrusted
    }

    /// Logs what failed. Each error of the token endpoint has its own limit: anybody can cause
    /// `invalid_grant` by an invented code, which must not hide `invalid_client`.
    fn failed(&self, what: &'static str, error: &FetchError) -> SignInError {
        if error.code.is_none() {
            // An endpoint may have moved.
            self.metadata.record_failed_use();
        }
        if let Some(left_out) = self.failures.permit(error.code.unwrap_or(what)) {
            let why = &error.why;
            tracing::warn!(what, why, left_out, "the OpenID provider cannot be used");
        }
        SignInError::Provider
    }
}
