//! Sign-in with the admin token or by the link to a provider, sign-out, and the purpose of looks at
//! loans.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::StatusCode;
use http::header::SET_COOKIE;
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded::byte_serialize;

use super::Console;
use super::actions::checked_reason;
use super::address::Address;
use super::cookies::Cookie;
use super::failure::Failure;
use super::oidc;
use super::page::{Field, Page, field, notice, page, token};
use super::session::{Person, Role};
use super::text::provider_sign_in;
use super::trail::{To, record, what};
use super::visit::{Form, Visit, local_path};
use crate::language::is_unprintable;

/// The longest token, in characters, and the longest name.
const MAX_TOKEN: usize = 4096;
const MAX_NAME: usize = 64;
/// The longest reason, in characters.
pub(super) const MAX_REASON: usize = 200;

/// Where to go on to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Onward {
    pub(super) next: String,
    done: String,
}

/// Shows the form.
pub(super) async fn form(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(onward)): Address<Query<Onward>>,
) -> Response {
    if visit.session.is_some() {
        return Redirect::to(local_path(&onward.next)).into_response();
    }
    let notice = (onward.done == "signed-out").then_some(("good", visit.texts.sign_in.signed_out));
    sign_in_page(&console, &visit, &onward.next, notice, StatusCode::OK)
}

fn sign_in_page(
    console: &Console,
    visit: &Visit,
    next: &str,
    told: Option<(&str, &str)>,
    status: StatusCode,
) -> Response {
    let texts = &visit.texts.sign_in;
    let name = Field {
        name: "name",
        label: texts.name,
        hint: texts.name_hint,
        complete: "username",
        length: MAX_NAME,
        ..Field::default()
    };
    let secret = Field {
        name: "token",
        label: texts.token,
        hint: texts.token_hint,
        kind: "password",
        complete: "current-password",
        required: true,
        length: MAX_TOKEN,
        ..Field::default()
    };
    let body = html! {
        p.lead { (texts.lead) }
        @if let Some((kind, text)) = told { (notice(kind, text)) }
        @if console.oidc.is_some() { (provider_link(visit, local_path(next))) }
        form.card.narrow method="post" action="/sign-in" {
            (token(visit))
            input type="hidden" name="next" value=(local_path(next));
            (field(visit, &name))
            (field(visit, &secret))
            button { (texts.submit) }
        }
    };
    page(visit, &Page { title: texts.title, status, ..Page::default() }, &body)
}

/// Returns the link to the provider. A form would be blocked by the policy of the pages: it ends at
/// another site.
fn provider_link(visit: &Visit, next: &str) -> Markup {
    let next: String = byte_serialize(next.as_bytes()).collect();
    html! {
        p.again {
            a.button href={ (oidc::START) "?next=" (next) } {
                (provider_sign_in(visit.language))
            }
        }
    }
}

/// Begins a session if the token is right.
pub(super) async fn sign_in(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<Form>,
    request: Request,
) -> Response {
    let (next, given) = (form.field("next"), form.field("token"));
    let is_right =
        !given.is_empty() && console.parts.host.is_token(request.extensions(), given).await;
    if !is_right {
        let wrong = Some(("bad", visit.texts.sign_in.wrong));
        return sign_in_page(&console, &visit, next, wrong, StatusCode::UNAUTHORIZED);
    }
    let name = name_of(form.field("name"));
    let person = Person { shown: name.clone(), name, role: Role::Operator };
    let begun = async {
        record(&console, &person, what::SIGN_IN, To::NONE, None).await?;
        let secret = console.sessions.begin(person.clone()).ok_or(Failure::Ledger)?;
        console.sessions.end(&visit.secret); // of whoever was signed in before
        let cookie = Cookie::Session.set(secret.cookie_value(), visit.tls);
        cookie.ok_or(Failure::Ledger)
    };
    match begun.await {
        Ok(cookie) => {
            let mut response = Redirect::to(local_path(next)).into_response();
            response.headers_mut().append(SET_COOKIE, cookie);
            if let Some(cookie) = Cookie::Form.remove(visit.tls) {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            response
        }
        Err(failure) => failure.into_response(),
    }
}

/// Returns the name in the trail of somebody who has the admin token.
fn name_of(given: &str) -> Arc<str> {
    let is_shown = |letter: &char| !is_unprintable(*letter);
    let name: String = given.chars().filter(is_shown).take(MAX_NAME).collect();
    if name.is_empty() { "admin token".into() } else { format!("admin token: {name}").into() }
}

/// Ends the session.
pub(super) async fn sign_out(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    console.sessions.end(&visit.secret);
    let mut response = Redirect::to("/sign-in?done=signed-out").into_response();
    if let Some(cookie) = Cookie::Session.remove(visit.tls) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// Shows the question why a person looks at loans.
pub(super) async fn purpose_form(
    Extension(visit): Extension<Visit>,
    Address(Query(onward)): Address<Query<Onward>>,
) -> Result<Response, Failure> {
    let texts = &visit.texts.sign_in;
    let body = html! {
        p.lead { (texts.purpose_lead) }
        form.card.narrow method="post" action="/purpose" {
            (token(&visit))
            input type="hidden" name="next" value=(local_path(&onward.next));
            (field(&visit, &purpose_field(&visit)))
            button { (texts.go_on) }
        }
    };
    Ok(page(&visit, &Page { title: texts.purpose_title, ..Page::default() }, &body))
}

/// Returns the field for the purpose.
pub(super) fn purpose_field(visit: &Visit) -> Field<'_> {
    let texts = &visit.texts.sign_in;
    let purpose = visit.session.as_ref().and_then(|session| session.purpose.as_deref());
    Field {
        name: "purpose",
        label: texts.purpose,
        hint: texts.purpose_hint,
        value: purpose.unwrap_or_default(),
        required: true,
        length: MAX_REASON,
        ..Field::default()
    }
}

/// Stores the purpose for the session, and goes on.
pub(super) async fn set_purpose(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    store_purpose(&console, visit, &form)?;
    Ok(Redirect::to(local_path(form.field("next"))).into_response())
}

/// Stores the purpose that a form has, and returns the visit with it.
pub(super) fn store_purpose(
    console: &Console,
    mut visit: Visit,
    form: &Form,
) -> Result<Visit, Failure> {
    let purpose = checked_reason(form.field("purpose")).ok_or(Failure::NoPurpose)?;
    console.sessions.set_purpose(&visit.secret, &purpose);
    if let Some(session) = &mut visit.session {
        session.purpose = Some(purpose.into());
    }
    Ok(visit)
}
