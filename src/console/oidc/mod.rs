//! Sign-in by OpenID Connect: the authorisation code flow with PKCE (RFC 7636).
//!
//! The browser sends a state, a nonce and the hash of a verifier to the provider, and returns with
//! a code. The three values wait here, for the browser with the right cookie, and end with their
//! first use. The gate exchanges the code itself, and signs in the person whom the verified ID
//! token names, in the role of a claim. Nothing that the browser returns with is trusted.
//!
//! | module | what it does |
//! |---|---|
//! | `settings` | the keys of `[console]` |
//! | `handlers` | the requests of browsers |
//! | `pending` | the sign-ins that wait |
//! | `exchanges` | how many codes are exchanged at once |
//! | `provider` | the client of the provider |
//! | `metadata` | what the provider publishes about itself |
//! | `fetch` | its responses |
//! | `cache` | when it is called |
//! | `id_token` | verification of ID tokens |

mod cache;
mod exchanges;
mod fetch;
mod handlers;
mod id_token;
mod metadata;
mod pending;
mod provider;
mod settings;

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use url::Url;

use super::session::{Hash, Secret};
use crate::clock::Clock;
use exchanges::Exchanges;
pub(super) use handlers::{callback, start};
use id_token::VerifiedPerson;
pub(super) use pending::LIFETIME;
use pending::{PendingSignIn, PendingSignIns};
use provider::Provider;
pub(crate) use settings::OidcSettings;
pub(crate) use settings::Settings;

/// The paths below the console's address: where a sign-in begins, and where the provider sends the
/// browser back to.
pub(super) const START: &str = "/sign-in/oidc";
pub(super) const CALLBACK: &str = "/sign-in/oidc/callback";

/// Why a sign-in fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SignInError {
    /// The provider does not answer, or answers what cannot be used.
    Provider,
    /// Too many people sign in at once.
    Busy,
    /// The provider did not sign the person in.
    Refused,
    /// No sign-in of this browser waits for this response: it is too late, was used, or is another
    /// browser's.
    NotPending,
    /// The response does not belong to this sign-in.
    Untrusted,
    /// The person has no role here.
    NoRole,
}

/// Signs people in by a provider.
pub(super) struct Oidc {
    provider: Provider,
    pending: PendingSignIns,
    exchanges: Exchanges,
    /// The console's address, without a path.
    url: Url,
    redirect_uri: String,
    clock: Clock,
}

/// The provider's response by the browser (RFC 6749 §4.1.2). It has no `Debug`, since the code and
/// the state are secrets.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthorizationResponse {
    state: String,
    code: String,
    error: Option<String>,
    iss: Option<String>,
}

/// Who begins a sign-in.
struct Starter {
    /// The secret of the browser's sign-ins that wait.
    browser: Option<Secret>,
    /// The hash of the secret of the browser's session.
    session: Option<Hash>,
    address: Option<IpAddr>,
}

impl Oidc {
    /// Creates what signs people in; none if it is not configured.
    pub(super) fn of(settings: Settings, clock: Clock) -> Option<Oidc> {
        let (url, oidc) = settings.url.zip(settings.oidc)?;
        let redirect_uri = format!("{}{CALLBACK}", url.as_str().trim_end_matches('/'));
        let provider = Provider::new(oidc).inspect_err(|error| {
            tracing::error!(%error, "OpenID Connect is off: the HTTP client does not start");
        });
        let (pending, exchanges) = (PendingSignIns::default(), Exchanges::default());
        Some(Oidc { provider: provider.ok()?, pending, exchanges, url, redirect_uri, clock })
    }

    /// Returns whether the console's address has this host, in lower case.
    fn is_host(&self, host: &str) -> bool {
        self.url.host_str().is_some_and(|own| own.trim_end_matches('.') == host)
    }

    /// Returns where a sign-in begins, at the console's address.
    fn start_url(&self, next: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(START);
        url.query_pairs_mut().extend_pairs([("next", next), ("moved", "true")]);
        url
    }

    /// Begins a sign-in. Returns the address at the provider, and the secret of the cookie.
    async fn begin(&self, next: &str, starter: Starter) -> Result<(Url, Secret), SignInError> {
        let metadata = self.provider.metadata().await?;
        let Starter { browser, session, address } = starter;
        let sign_in = PendingSignIn::new(next, session).ok_or(SignInError::Busy)?;
        let mut url = metadata.authorization_endpoint.clone();
        let challenge = digest(&SHA256, sign_in.verifier.cookie_value().as_bytes());
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &self.provider.settings.client_id),
            ("redirect_uri", &self.redirect_uri),
            ("scope", &self.provider.settings.scopes),
            ("state", sign_in.state.cookie_value()),
            ("nonce", sign_in.nonce.cookie_value()),
            ("code_challenge", &BASE64URL_NOPAD.encode(challenge.as_ref())),
            ("code_challenge_method", "S256"),
        ]);
        let secret = self.pending.add(sign_in, browser, address).ok_or(SignInError::Busy)?;
        Ok((url, secret))
    }

    /// Returns who was signed in, and the sign-in, which has ended.
    async fn finish(
        &self,
        response: &AuthorizationResponse,
        browser: &Secret,
        address: Option<IpAddr>,
    ) -> Result<(VerifiedPerson, PendingSignIn), SignInError> {
        // A client without a sign-in takes no permit.
        if !self.pending.has(browser, &response.state) {
            return Err(SignInError::NotPending);
        }
        // Both before the sign-in ends: a person can load the page again after a failure.
        let metadata = self.provider.metadata().await?;
        let _permit = self.exchanges.acquire(address).await.ok_or(SignInError::Busy)?;
        let sign_in = self.pending.take(browser, &response.state);
        let sign_in = sign_in.ok_or(SignInError::NotPending)?;
        // RFC 9207: a response of another provider does not belong to this sign-in.
        let issuer = response.iss.as_deref();
        if issuer.is_some_and(|issuer| issuer != self.provider.settings.issuer) {
            return Err(SignInError::Untrusted);
        }
        if issuer.is_none() && metadata.authorization_response_iss_parameter_supported {
            return Err(SignInError::Untrusted);
        }
        if response.error.is_some() || response.code.is_empty() {
            return Err(SignInError::Refused);
        }
        let (provider, uri) = (&self.provider, &self.redirect_uri);
        let code = &response.code;
        let verified = provider.exchange(&metadata, code, &sign_in, uri, &self.clock).await?;
        Ok((verified, sign_in))
    }
}
