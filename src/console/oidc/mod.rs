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
//! | `pending` | the sign-ins that wait |
//! | `provider` | the client of the provider |
//! | `metadata` | what the provider publishes about itself |
//! | `fetch` | its responses |
//! | `cache` | when it is called |
//! | `id_token` | verification of ID tokens |

mod cache;
mod fetch;
mod id_token;
mod metadata;
mod pending;
mod provider;
mod settings;

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Redirect, Response};
use data_encoding::BASE64URL_NOPAD;
use http::header::{HeaderName, HeaderValue, SET_COOKIE};
use maud::html;
use serde::Deserialize;
use url::Url;

use super::Console;
use super::cookies::Cookie;
use super::failure::Failure;
use super::page::{Page, page};
use super::session::{Person, Secret};
use super::sign_in::Onward;
use super::trail::{To, record, what};
use super::visit::{Visit, local_path};
use crate::clock::Clock;
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
/// The longest path to go on to.
const MAX_NEXT: usize = 2000;

/// A page that leads on at once, in every browser and without a script.
const REFRESH: HeaderName = HeaderName::from_static("refresh");

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

impl Oidc {
    /// Creates what signs people in; none if it is not configured.
    pub(super) fn of(settings: Settings, clock: Clock) -> Option<Oidc> {
        let (url, oidc) = settings.url.zip(settings.oidc)?;
        let redirect_uri = format!("{}{CALLBACK}", url.as_str().trim_end_matches('/'));
        match Provider::new(oidc) {
            Ok(provider) => {
                Some(Oidc { provider, pending: PendingSignIns::default(), redirect_uri, clock })
            }
            Err(error) => {
                tracing::error!(%error, "OpenID Connect is off: the HTTP client does not start");
                None
            }
        }
    }

    /// Begins a sign-in. Returns the address at the provider, and the secret of the cookie.
    async fn begin(
        &self,
        next: &str,
        address: Option<IpAddr>,
    ) -> Result<(Url, Secret), SignInError> {
        let metadata = self.provider.metadata().await?;
        let attempt = PendingSignIn::new(next).ok_or(SignInError::Busy)?;
        let mut url = metadata.authorization_endpoint.clone();
        let challenge = digest(&SHA256, attempt.verifier.cookie_value().as_bytes());
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &self.provider.settings.client_id),
            ("redirect_uri", &self.redirect_uri),
            ("scope", &self.provider.settings.scopes),
            ("state", attempt.state.cookie_value()),
            ("nonce", attempt.nonce.cookie_value()),
            ("code_challenge", &BASE64URL_NOPAD.encode(challenge.as_ref())),
            ("code_challenge_method", "S256"),
        ]);
        let secret = self.pending.add(attempt, address).ok_or(SignInError::Busy)?;
        Ok((url, secret))
    }

    /// Returns who was signed in, and where to go on to.
    async fn finish(
        &self,
        answer: &AuthorizationResponse,
        secret: Option<Secret>,
    ) -> Result<(VerifiedPerson, String), SignInError> {
        let attempt = secret.and_then(|secret| self.pending.take(&secret, &answer.state));
        let attempt = attempt.ok_or(SignInError::NotPending)?;
        // RFC 9207: a response of another provider does not belong to this sign-in.
        let issuer = answer.iss.as_deref();
        if issuer.is_some_and(|issuer| issuer != self.provider.settings.issuer) {
            return Err(SignInError::Untrusted);
        }
        let metadata = self.provider.metadata().await?;
        if issuer.is_none() && metadata.authorization_response_iss_parameter_supported {
            return Err(SignInError::Untrusted);
        }
        if answer.error.is_some() || answer.code.is_empty() {
            return Err(SignInError::Refused);
        }
        let (provider, uri) = (&self.provider, &self.redirect_uri);
        let subject = provider.exchange(&answer.code, &attempt, uri, &self.clock).await?;
        Ok((subject, attempt.next))
    }
}

/// Sends the browser to the provider.
pub(super) async fn start(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Query(onward): Query<Onward>,
    request: Request,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or(Failure::NotFound)?;
    let next = local_path(&onward.next);
    let next = if next.len() > MAX_NEXT { "/" } else { next };
    let address = console.parts.host.address(request.extensions());
    let (url, secret) = oidc.begin(next, address).await.map_err(Failure::SignIn)?;
    let mut response = Redirect::to(url.as_str()).into_response();
    if let Some(cookie) = Cookie::Provider.set(secret.cookie_value(), visit.tls) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Signs in whom the provider has signed in.
///
/// The response is a page and no redirection: the provider's site has sent the browser, so a
/// request to which it is redirected would lack the cookie of the session, which is
/// SameSite=Strict.
pub(super) async fn callback(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    answer: Result<Query<AuthorizationResponse>, QueryRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or(Failure::NotFound)?;
    let Query(answer) = answer.map_err(|_| Failure::SignIn(SignInError::NotPending))?;
    let secret = Cookie::Provider.read(request.headers(), visit.tls).and_then(Secret::of_cookie);
    let (subject, next) = oidc.finish(&answer, secret).await.map_err(Failure::SignIn)?;
    let person = person(&subject);
    record(&console, &person, what::SIGN_IN, To::NONE, None).await?;
    let secret = console.sessions.begin(person).ok_or(Failure::Ledger)?;
    console.sessions.end(&visit.secret); // of whoever was signed in before
    let texts = &visit.texts.sign_in;
    let body = html! { p { a.button href=(next) { (texts.go_on) } } };
    let mut response = page(&visit, &Page { title: texts.title, ..Page::default() }, &body);
    let cookies =
        [Cookie::Session.set(secret.cookie_value(), visit.tls), Cookie::Provider.remove(visit.tls)];
    for cookie in cookies.into_iter().flatten() {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    if let Ok(refresh) = HeaderValue::from_str(&format!("0;url={next}")) {
        response.headers_mut().insert(REFRESH, refresh);
    }
    Ok(response)
}

/// Returns the person, as in the trail: the subject is what identifies her, and the prefix tells
/// her from the holder of the admin token.
fn person(VerifiedPerson { subject, name, role }: &VerifiedPerson) -> Person {
    let (trail, shown) = match name {
        Some(name) => (format!("oidc:{subject} ({name})"), name.clone()),
        None => (format!("oidc:{subject}"), subject.clone()),
    };
    Person { name: trail.into(), shown: shown.into(), role: *role }
}
