//! The client of the OpenID provider: its description, its keys, and the exchange of a code.
//!
//! The description and the keys are fetched when somebody signs in, one request at a time, and
//! cached. After a failure, and for an unknown key, they are fetched again at most once in ten
//! seconds. No redirect is followed, and every response is bounded in size and time.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT;
use jsonwebtoken::jwk::Jwk;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use url::Url;
use url::form_urlencoded::byte_serialize;

use super::cache::FetchCache;
use super::id_token::{self, IdTokenError, VerifiedPerson};
use super::pending::PendingSignIn;
use super::{OidcSettings, SignInError};
use crate::clock::Clock;
use crate::reader::VerifyKey;
use crate::telemetry::LogLimit;

/// The deadline of a request, with its response.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response, in bytes, and the most keys of a set.
const MAX_RESPONSE: usize = 256 * 1024;
const MAX_KEYS: usize = 100;
/// The most codes that are exchanged at once.
const MAX_EXCHANGES: usize = 8;

/// The provider, with what is known of it.
pub(super) struct Provider {
    pub(super) settings: OidcSettings,
    client: Client,
    description: FetchCache<Arc<ProviderMetadata>>,
    keys: FetchCache<Arc<[VerifyKey]>>,
    exchanges: Semaphore,
    failures: LogLimit,
}

/// What the provider says about itself (OpenID Connect Discovery §3).
#[derive(Debug, Deserialize)]
pub(super) struct ProviderMetadata {
    issuer: String,
    pub(super) authorization_endpoint: Url,
    token_endpoint: Url,
    jwks_uri: Url,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// Whether each response names the issuer (RFC 9207).
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

/// The error of a token endpoint (RFC 6749 §5.2).
#[derive(Default, Deserialize)]
struct Refusal {
    error: String,
}

impl Provider {
    /// Creates a client that has fetched nothing.
    ///
    /// # Errors
    /// The error of TLS, if it does not start.
    pub(super) fn new(settings: OidcSettings) -> Result<Provider, reqwest::Error> {
        let client = Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("loangate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Provider {
            settings,
            client,
            description: FetchCache::default(),
            keys: FetchCache::default(),
            exchanges: Semaphore::new(MAX_EXCHANGES),
            failures: LogLimit::per_minute(),
        })
    }

    /// Returns what the provider says about itself.
    pub(super) async fn description(&self) -> Result<Arc<ProviderMetadata>, SignInError> {
        let fetched = self.description.get(false, async || {
            let issuer = self.settings.issuer.trim_end_matches('/');
            let url = format!("{issuer}/.well-known/openid-configuration");
            let description: ProviderMetadata = self.fetch(self.client.get(url)).await?;
            description.check(&self.settings.issuer)?;
            Ok(Arc::new(description))
        });
        fetched.await.map_err(|why| self.failed("description", &why))
    }

    /// Exchanges a code for the person whom the provider has signed in.
    pub(super) async fn subject(
        &self,
        code: &str,
        attempt: &PendingSignIn,
        redirect_uri: &str,
        clock: &Clock,
    ) -> Result<VerifiedPerson, SignInError> {
        let description = self.description().await?;
        let _permit = self.exchanges.try_acquire().map_err(|_| SignInError::Busy)?;
        let request = self.token_request(&description, code, attempt, redirect_uri)?;
        let tokens = self.fetch::<Tokens>(request).await;
        let token = tokens.map_err(|why| self.failed("token", &why))?.id_token;
        let nonce = attempt.nonce.cookie_value();
        let verify =
            |keys: &[VerifyKey]| id_token::verify(&token, keys, &self.settings, nonce, clock.now());
        let mut verified = verify(&self.keys(&description, false).await?);
        if verified == Err(IdTokenError::Key) {
            verified = verify(&self.keys(&description, true).await?);
        }
        verified.map_err(|fault| match fault {
            IdTokenError::NoRole => SignInError::NoRole,
            IdTokenError::Key => self.untrusted("no key of the provider has signed it"),
            IdTokenError::Invalid(why) => self.untrusted(why),
        })
    }

    /// Returns the keys. With `again`, newer ones than those that are cached, if that may be.
    async fn keys(
        &self,
        description: &ProviderMetadata,
        again: bool,
    ) -> Result<Arc<[VerifyKey]>, SignInError> {
        let fetched = self.keys.get(again, async || {
            let set: KeySet = self.fetch(self.client.get(description.jwks_uri.clone())).await?;
            // Keys of other kinds and for other purposes are in such sets, too.
            let keys = set.keys.into_iter().take(MAX_KEYS);
            let known = keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
            Ok(known.filter_map(|key| VerifyKey::of(&key)).collect())
        });
        fetched.await.map_err(|why| self.failed("keys", &why))
    }

    fn token_request(
        &self,
        description: &ProviderMetadata,
        code: &str,
        attempt: &PendingSignIn,
        redirect_uri: &str,
    ) -> Result<RequestBuilder, SignInError> {
        let OidcSettings { client_id, client_secret, .. } = &self.settings;
        let secret = client_secret.expose_secret();
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", attempt.verifier.cookie_value()),
        ];
        let request = self.client.post(description.token_endpoint.clone());
        let request = match description.sends_secret_in_body() {
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
                return Err(self.failed("token", why));
            }
        };
        Ok(request.form(&form))
    }

    /// Sends a request, and reads its JSON response. An error is a phrase for the log.
    async fn fetch<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, String> {
        let response = request.header(ACCEPT, "application/json").send().await.map_err(cause)?;
        let status = response.status();
        let body = read_body(response).await?;
        if status != StatusCode::OK {
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let is_code = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            let error = refusal.error;
            return Err(match error.len() <= 64 && error.bytes().all(is_code) {
                true => format!("the provider answered {status} {error}"),
                false => format!("the provider answered {status}"),
            });
        }
        serde_json::from_slice(&body)
            .map_err(|_| "the response has not the members of OpenID Connect".to_owned())
    }

    fn untrusted(&self, why: &'static str) -> SignInError {
        if let Some(left_out) = self.failures.permit(why) {
            tracing::warn!(why, left_out, "an ID token was refused");
        }
        SignInError::Untrusted
    }

    fn failed(&self, what: &'static str, why: &str) -> SignInError {
        if let Some(left_out) = self.failures.permit(what) {
            tracing::warn!(what, why, left_out, "the OpenID provider cannot be used");
        }
        SignInError::Provider
    }
}

impl ProviderMetadata {
    /// Checks that the description is the issuer's own, and that no secret is sent in the clear.
    fn check(&self, issuer: &str) -> Result<(), String> {
        if self.issuer != issuer {
            return Err("the description is of another issuer than console.oidc.issuer".to_owned());
        }
        let may_be_plain = issuer.starts_with("http://");
        for url in [&self.authorization_endpoint, &self.token_endpoint, &self.jwks_uri] {
            let is_safe = match url.scheme() {
                "https" => true,
                "http" => may_be_plain && is_loopback(url),
                _ => false,
            };
            if !is_safe || !url.username().is_empty() || url.password().is_some() {
                return Err("an endpoint of the provider is not HTTPS".to_owned());
            }
        }
        Ok(())
    }

    /// Returns whether the client's secret is sent in the body; none if no method fits.
    fn sends_secret_in_body(&self) -> Option<bool> {
        let Some(methods) = &self.token_endpoint_auth_methods_supported else {
            return Some(false); // OpenID Connect Discovery §3: the default
        };
        let has = |name: &str| methods.iter().any(|method| method == name);
        match (has("client_secret_basic"), has("client_secret_post")) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cause)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err("the response is larger than 256 KiB".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the message of the innermost error, without the URL, which may have a code.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
