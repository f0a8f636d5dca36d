//! The requests of a sign-in: its start, and the provider's response by the browser.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::header::{HOST, HeaderName, HeaderValue, SET_COOKIE};
use http::uri::Authority;
use maud::html;
use serde::Deserialize;
use tokio::time::timeout;

use super::super::Console;
use super::super::address::Address;
use super::super::cookies::Cookie;
use super::super::failure::Failure;
use super::super::page::{Page, page};
use super::super::session::{Person, Secret};
use super::super::trail::{To, record, what};
use super::super::visit::{Visit, local_path};
use super::id_token::VerifiedPerson;
use super::{AuthorizationResponse, SignInError, Starter};

/// The longest path to go on to.
const MAX_NEXT: usize = 2000;
/// The deadline of a callback, with all requests to the provider.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(20);

/// A page that leads on at once, in every browser and without a script.
const REFRESH: HeaderName = HeaderName::from_static("refresh");

/// Where a sign-in begins.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::console) struct StartQuery {
    next: String,
    /// Present if the browser was sent from another host. It is sent only once: a proxy may
    /// replace the field Host.
    moved: Option<String>,
}

/// Sends the browser to the provider.
pub(in crate::console) async fn start(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(query)): Address<Query<StartQuery>>,
    request: Request,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or(Failure::NotFound)?;
    let next = local_path(&query.next);
    let next = if next.len() > MAX_NEXT { "/" } else { next };
    let host = host_of(&request);
    if let Some(host) = host.filter(|host| query.moved.is_none() && !oidc.is_host(host)) {
        // The provider sends the browser to the configured host, which must have the cookie.
        tracing::debug!(%host, "a sign-in begins at another host");
        return Ok(Redirect::to(oidc.start_url(next).as_str()).into_response());
    }
    let starter = Starter {
        browser: Cookie::Provider.read(request.headers(), visit.tls).and_then(Secret::of_cookie),
        session: visit.session.is_some().then(|| visit.secret.hash()),
        address: console.parts.host.address(request.extensions()),
    };
    let (url, secret) = oidc.begin(next, starter).await.map_err(Failure::SignIn)?;
    let mut response = Redirect::to(url.as_str()).into_response();
    if let Some(cookie) = Cookie::Provider.set(secret.cookie_value(), visit.tls) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Returns the host of a request, without its port.
fn host_of(request: &Request) -> Option<String> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.clone(),
        None => request.headers().get(HOST)?.to_str().ok()?.parse::<Authority>().ok()?,
    };
    let host = authority.host();
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase())
}

/// Signs in whom the provider has signed in.
///
/// The response is a page and no redirection: the provider's site has sent the browser, so a
/// request to which it is redirected would lack the cookie of the session, which is
/// SameSite=Strict.
pub(in crate::console) async fn callback(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    response: Result<Query<AuthorizationResponse>, QueryRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or(Failure::NotFound)?;
    let not_pending = Failure::SignIn(SignInError::NotPending);
    let Query(authorized) = response.map_err(|_| not_pending)?;
    let browser = Cookie::Provider.read(request.headers(), visit.tls).and_then(Secret::of_cookie);
    let browser = browser.ok_or(not_pending)?;
    let address = console.parts.host.address(request.extensions());
    let finished = timeout(CALLBACK_TIMEOUT, oidc.finish(&authorized, &browser, address)).await;
    let finished = finished.unwrap_or_else(|_| Err(oidc.provider.timed_out()));
    let (verified, pending) = finished.map_err(Failure::SignIn)?;
    let person = person(&verified);
    record(&console, &person, what::SIGN_IN, To::NONE, None).await?;
    let secret = console.sessions.begin(person).ok_or(Failure::Ledger)?;
    // The browser does not send the cookie of an earlier session from the provider's site. So the
    // start of the sign-in has stored it.
    for earlier in [Some(visit.secret.hash()), pending.session].into_iter().flatten() {
        console.sessions.end_hashed(&earlier);
    }
    let texts = &visit.texts.sign_in;
    let body = html! { p { a.button href=(pending.next) { (texts.go_on) } } };
    let mut response = page(&visit, &Page { title: texts.title, ..Page::default() }, &body);
    let mut cookies =
        vec![Cookie::Session.set(secret.cookie_value(), visit.tls), Cookie::Form.remove(visit.tls)];
    if !oidc.pending.has_any(&browser) {
        cookies.push(Cookie::Provider.remove(visit.tls));
    }
    for cookie in cookies.into_iter().flatten() {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    if let Ok(refresh) = HeaderValue::from_str(&format!("0;url={}", pending.next)) {
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
