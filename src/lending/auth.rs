//! Logging in at Bokbasen: by ticket (the legacy way) or by OAuth 2 client credentials.
//!
//! One credential is held and reused until shortly before it expires. Callers that need one while
//! it is fetched wait for that one fetch, and share its failure, so that a failing login is not
//! tried once for each of them. Source: Bokbasen's page "Authentication Service", both generations.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use super::CallError;
use super::clock_skew::Skew;
use super::outage_reason::{Health, Trouble};
use super::transport::{cause, read_body};
use crate::clock::{self, Clock};

/// The answer's field that carries a ticket.
const TICKET: HeaderName = HeaderName::from_static("boknett-tgt");
/// A ticket lives two hours; it is renewed as early as the published SDK does it.
const TICKET_USED: Duration = Duration::from_secs(110 * 60);
/// How long before its expiry a token is renewed: this, or a tenth of its life if that is shorter.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);

/// How to log in.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A ticket for user name and password; calls then also carry the field Date.
    Ticket {
        /// Where tickets are given out.
        login_url: Url,
        /// The user.
        username: String,
        /// Its password.
        password: SecretString,
    },
    /// OAuth 2 client credentials.
    OAuth {
        /// Where tokens are given out.
        token_url: Url,
        /// The API that the token is for.
        audience: String,
        /// The client.
        client_id: String,
        /// Its secret.
        client_secret: SecretString,
    },
}

/// The login, and what it holds.
pub(super) struct Login {
    auth: Auth,
    held: Mutex<Option<Held>>,
    health: Arc<Health>,
    /// When the last fetch failed, and why.
    last_failure: StdMutex<Option<(Instant, CallError)>>,
}

struct Held {
    header: HeaderValue,
    renew: Timestamp,
    ticket: Option<SecretString>,
}

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
        f.debug_struct("Login").field("auth", &self.auth).finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new(auth: Auth, health: Arc<Health>) -> Login {
        Login { auth, held: Mutex::default(), health, last_failure: StdMutex::default() }
    }

    /// Whether calls carry the field Date.
    pub(super) fn wants_date(&self) -> bool {
        matches!(self.auth, Auth::Ticket { .. })
    }

    /// The value of the field Authorization; fetched where none is held, or what is held runs out.
    pub(super) async fn authorization(
        &self,
        client: &reqwest::Client,
        clock: &Clock,
        skew: &Skew,
    ) -> Result<HeaderValue, CallError> {
        let began = Instant::now();
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.renew > clock.now()) {
            return Ok(held.header.clone());
        }
        if let Some(error) = self.failed_since(began) {
            return Err(error);
        }
        let fetched = self.fetch(client, clock, skew).await;
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) =
            fetched.as_ref().err().map(|error| (Instant::now(), error.clone()));
        let fresh = fetched?;
        let header = fresh.header.clone();
        *held = Some(fresh);
        Ok(header)
    }

    /// Why a fetch failed that ended after this moment.
    fn failed_since(&self, moment: Instant) -> Option<CallError> {
        let failed = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().filter(|(at, _)| *at >= moment).map(|(_, error)| error.clone())
    }

    /// Forgets this credential, which Bokbasen did not take; one that was fetched meanwhile stays.
    pub(super) async fn discard(&self, refused: &HeaderValue) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.header == refused) {
            *held = None;
        }
    }

    /// Gives a ticket back; a token cannot be given back.
    pub(super) async fn log_out(&self, client: &reqwest::Client) {
        let ticket = self.held.lock().await.take().and_then(|held| held.ticket);
        if let (Auth::Ticket { login_url, .. }, Some(ticket)) = (&self.auth, ticket) {
            let mut url = login_url.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().push(ticket.expose_secret());
            }
            if client.delete(url).send().await.is_err() {
                tracing::debug!("the ticket could not be given back; it runs out by itself");
            }
        }
    }

    async fn fetch(
        &self,
        client: &reqwest::Client,
        clock: &Clock,
        skew: &Skew,
    ) -> Result<Held, CallError> {
        let request = match &self.auth {
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
            let trouble = Trouble::of(&error);
            self.failed(trouble, &cause(error))
        })?;
        skew.note(sent, response.headers());
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let why = format!("it was answered {}", response.status());
                return Err(self.failed(Trouble::LoginRefused, &why));
            }
            status if status.is_server_error() => {
                return Err(self.failed(Trouble::ServerError, &format!("it was answered {status}")));
            }
            status if !status.is_success() => {
                let why =
                    format!("it was answered {status}; check {} in [lending]", self.address_key());
                return Err(self.failed(Trouble::BadAnswer, &why));
            }
            _ => {}
        }
        let unusable = |why: String| self.failed(Trouble::BadAnswer, &why);
        let held = match &self.auth {
            Auth::Ticket { .. } => held_ticket(&response, clock),
            Auth::OAuth { .. } => held_token(&read_body(response).await.map_err(unusable)?, clock),
        };
        held.map_err(|why| self.failed(Trouble::BadAnswer, why))
    }

    /// The key of the configuration that has the login's address.
    fn address_key(&self) -> &'static str {
        match self.auth {
            Auth::Ticket { .. } => "login_url",
            Auth::OAuth { .. } => "token_url",
        }
    }

    /// Records a failed login and returns its error.
    fn failed(&self, trouble: Trouble, why: &str) -> CallError {
        self.health.failed("login", trouble, why);
        CallError::NotSent(format!("the login failed: {why}"))
    }
}

fn held_ticket(response: &reqwest::Response, clock: &Clock) -> Result<Held, &'static str> {
    let ticket = response.headers().get(TICKET).and_then(|ticket| ticket.to_str().ok());
    let ticket = ticket.ok_or("the answer has no ticket; check login_url in [lending]")?;
    Ok(Held {
        header: sensitive(&format!("Boknett {ticket}"))?,
        renew: clock::after(clock.now(), TICKET_USED),
        ticket: Some(ticket.into()),
    })
}

fn held_token(body: &[u8], clock: &Clock) -> Result<Held, &'static str> {
    let token: Token = serde_json::from_slice(body)
        .map_err(|_| "the answer has no token; check token_url in [lending]")?;
    let life = Duration::from_secs(token.expires_in);
    let used = life.saturating_sub(TOKEN_MARGIN.min(life / 10));
    Ok(Held {
        header: sensitive(&format!("Bearer {}", token.access_token.expose_secret()))?,
        renew: clock::after(clock.now(), used),
        ticket: None,
    })
}

fn sensitive(text: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| "the credential that it gave cannot be sent in a header")?;
    value.set_sensitive(true);
    Ok(value)
}
