//! Login at Bokbasen, by ticket (legacy) or by OAuth 2 client credentials.
//!
//! One credential is cached and reused until shortly before it expires. Callers that need it
//! during a fetch wait for that fetch and share its failure, so that a failing login is not
//! repeated for each caller. Source: Bokbasen's page "Authentication Service", both generations.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use super::CallError;
use super::clock_skew::Skew;
use super::outage_reason::{Health, OutageReason};
use super::response::{cause, read_body};
use crate::clock::{self, Clock};
use crate::lock::lock;

/// The response header that carries the ticket.
const TICKET_HEADER: HeaderName = HeaderName::from_static("boknett-tgt");
/// The age at which a ticket is renewed. It lives two hours; the published SDK renews it as early.
const TICKET_RENEWAL_AGE: Duration = Duration::from_secs(110 * 60);
/// The time before its expiry at which a token is renewed; a tenth of its lifetime if shorter.
const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_secs(60);

/// The login method and its credentials.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A ticket for user name and password; calls then also carry the header Date.
    Ticket {
        /// The URL that issues tickets.
        login_url: Url,
        /// The user name at Bokbasen.
        username: String,
        /// The password of this user.
        password: SecretString,
    },
    /// OAuth 2 client credentials.
    OAuth {
        /// The token endpoint.
        token_url: Url,
        /// The API that the token is for.
        audience: String,
        /// The id of the OAuth client.
        client_id: String,
        /// The secret of the OAuth client.
        client_secret: SecretString,
    },
}

impl Auth {
    /// Returns the configuration key of the login URL.
    fn address_key(&self) -> &'static str {
        match self {
            Auth::Ticket { .. } => "login_url",
            Auth::OAuth { .. } => "token_url",
        }
    }

    fn has_credentials_of(&self, other: &Auth) -> bool {
        let of = |auth: &Auth| match auth {
            Auth::Ticket { username: name, password: secret, .. }
            | Auth::OAuth { client_id: name, client_secret: secret, .. } => {
                (name.clone(), secret.expose_secret().to_owned())
            }
        };
        of(self) == of(other)
    }
}

/// The login method with its cached credential.
pub(super) struct Login {
    auth: ArcSwap<Auth>,
    cached: Mutex<Cached>,
    health: Arc<Health>,
    /// The time and the error of the last failed fetch; none after a successful one.
    last_failure: StdMutex<Option<(Instant, CallError)>>,
}

struct CachedCredential {
    header: HeaderValue,
    renew: Timestamp,
    ticket: Option<SecretString>,
}

/// A credential, and the login that it is from.
type Cached = Option<(Arc<Auth>, CachedCredential)>;

#[derive(Serialize)]
struct TokenRequest<'a> {
    client_id: &'a str,
    client_secret: &'a str,
    audience: &'a str,
    grant_type: &'static str,
}

#[derive(Deserialize)]
struct Token {
    access_token: SecretString,
    expires_in: u64,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("auth", &self.auth.load()).finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new(auth: Auth, health: Arc<Health>) -> Login {
        let auth = ArcSwap::from_pointee(auth);
        Login { auth, cached: Mutex::default(), health, last_failure: StdMutex::default() }
    }

    /// Whether calls carry the header Date.
    pub(super) fn sends_date(&self) -> bool {
        matches!(**self.auth.load(), Auth::Ticket { .. })
    }

    /// Uses the user or the client of another login of the same method from now on. Addresses stay.
    pub(super) fn set_credentials(&self, new: &Auth) {
        let mut auth = Auth::clone(&self.auth.load());
        match (&mut auth, new) {
            (
                Auth::Ticket { username, password, .. },
                Auth::Ticket { username: name, password: secret, .. },
            ) => {
                (*username, *password) = (name.clone(), secret.clone());
            }
            (
                Auth::OAuth { client_id, client_secret, .. },
                Auth::OAuth { client_id: name, client_secret: secret, .. },
            ) => {
                (*client_id, *client_secret) = (name.clone(), secret.clone());
            }
            _ => return,
        }
        if !auth.has_credentials_of(&self.auth.load()) {
            self.auth.store(Arc::new(auth));
        }
    }

    /// Returns the value of the header Authorization; fetches one if none is cached or the cached
    /// one is due for renewal.
    pub(super) async fn authorization(
        &self,
        client: &reqwest::Client,
        clock: &Clock,
        skew: &Skew,
    ) -> Result<HeaderValue, CallError> {
        let began = Instant::now();
        let mut cached = self.cached.lock().await;
        let auth = self.auth.load_full();
        let usable = cached.as_ref().filter(|(from, credential)| {
            Arc::ptr_eq(from, &auth) && credential.renew > clock.now()
        });
        if let Some((_, credential)) = usable {
            return Ok(credential.header.clone());
        }
        if let Some(error) = self.failed_since(began) {
            return Err(error);
        }
        let fetched = self.fetch(&auth, client, clock, skew).await;
        *lock(&self.last_failure) =
            fetched.as_ref().err().map(|error| (Instant::now(), error.clone()));
        let fresh = fetched?;
        let header = fresh.header.clone();
        *cached = Some((auth, fresh));
        Ok(header)
    }

    /// Returns the error of the last fetch if it failed after this time.
    fn failed_since(&self, moment: Instant) -> Option<CallError> {
        let failed = lock(&self.last_failure);
        failed.as_ref().filter(|(at, _)| *at >= moment).map(|(_, error)| error.clone())
    }

    /// Drops a credential that Bokbasen refused; a newer one stays cached.
    pub(super) async fn discard(&self, refused: &HeaderValue) {
        let mut cached = self.cached.lock().await;
        if cached.as_ref().is_some_and(|(_, credential)| credential.header == refused) {
            *cached = None;
        }
    }

    /// Revokes the ticket; a token cannot be revoked.
    pub(super) async fn log_out(&self, client: &reqwest::Client) {
        let Some((auth, credential)) = self.cached.lock().await.take() else { return };
        if let (Auth::Ticket { login_url, .. }, Some(ticket)) = (&*auth, credential.ticket) {
            let mut url = login_url.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().push(ticket.expose_secret());
            }
            if client.delete(url).send().await.is_err() {
                tracing::debug!("could not revoke the ticket; it expires on its own");
            }
        }
    }

    async fn fetch(
        &self,
        auth: &Auth,
        client: &reqwest::Client,
        clock: &Clock,
        skew: &Skew,
    ) -> Result<CachedCredential, CallError> {
        let request = match auth {
            Auth::Ticket { login_url, username, password } => client
                .post(login_url.clone())
                .form(&[("username", username.as_str()), ("password", password.expose_secret())]),
            Auth::OAuth { token_url, audience, client_id, client_secret } => {
                client.post(token_url.clone()).json(&TokenRequest {
                    client_id,
                    client_secret: client_secret.expose_secret(),
                    audience,
                    grant_type: "client_credentials",
                })
            }
        };
        let sent = skew.sending();
        let response = request.send().await.map_err(|error| {
            let trouble = OutageReason::of(&error);
            self.failed(trouble, &cause(error))
        })?;
        skew.note(sent, response.headers());
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let why = format!("the login service answered {}", response.status());
                return Err(self.failed(OutageReason::LoginRefused, &why));
            }
            status if status.is_server_error() => {
                let why = format!("the login service answered {status}");
                return Err(self.failed(OutageReason::ServerError, &why));
            }
            status if !status.is_success() => {
                let key = auth.address_key();
                let why = format!("the login service answered {status}; check {key} in [lending]");
                return Err(self.failed(OutageReason::BadAnswer, &why));
            }
            _ => {}
        }
        let unusable = |why: String| self.failed(OutageReason::BadAnswer, &why);
        let credential = match auth {
            Auth::Ticket { .. } => ticket_credential(&response, clock),
            Auth::OAuth { .. } => {
                token_credential(&read_body(response).await.map_err(unusable)?, clock)
            }
        };
        credential.map_err(|why| self.failed(OutageReason::BadAnswer, why))
    }

    /// Records a failed login and returns its error.
    fn failed(&self, trouble: OutageReason, why: &str) -> CallError {
        self.health.failed("login", trouble, why);
        CallError::NotSent(format!("the login failed: {why}"))
    }
}

fn ticket_credential(
    response: &reqwest::Response,
    clock: &Clock,
) -> Result<CachedCredential, &'static str> {
    let ticket = response.headers().get(TICKET_HEADER).and_then(|ticket| ticket.to_str().ok());
    let ticket = ticket.ok_or("the response has no ticket; check login_url in [lending]")?;
    Ok(CachedCredential {
        header: sensitive(&format!("Boknett {ticket}"))?,
        renew: clock::after(clock.now(), TICKET_RENEWAL_AGE),
        ticket: Some(ticket.into()),
    })
}

fn token_credential(body: &[u8], clock: &Clock) -> Result<CachedCredential, &'static str> {
    let token: Token = serde_json::from_slice(body)
        .map_err(|_| "the response has no token; check token_url in [lending]")?;
    let life = Duration::from_secs(token.expires_in);
    let used = life.saturating_sub(TOKEN_RENEWAL_MARGIN.min(life / 10));
    Ok(CachedCredential {
        header: sensitive(&format!("Bearer {}", token.access_token.expose_secret()))?,
        renew: clock::after(clock.now(), used),
        ticket: None,
    })
}

fn sensitive(text: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| "the issued credential cannot be sent in a header")?;
    value.set_sensitive(true);
    Ok(value)
}
