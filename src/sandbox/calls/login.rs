//! The two logins: OAuth 2 client credentials and the legacy ticket (page "Authentication
//! Service").
//!
//! The router in `calls` sends requests here. No credentials are stored. The response 401 to a
//! wrong password is assumed, because the page documents only 400 for bad parameters.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;

use super::super::api_types::{TicketRequest, TokenRequest};
use super::super::auth::Kind;
use super::super::context::App;
use super::super::error_response::Rejected;
use super::super::faults::{Call, Plan, Subject};
use super::super::state::later;

/// `POST /oauth/token`, as JSON or as a form.
pub(in super::super) async fn token(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    let credentials: TokenRequest = match super::media_type(&headers).as_str() {
        "application/json" => super::json(&headers, &body)?,
        _ => form(&headers, &body)?,
    };
    let act = move |app: &App, _: &Plan| {
        check_client(app, &credentials)?;
        let mut state = app.state();
        let (now, seconds) = (app.now(&state), state.bounds.token_lifetime_seconds);
        let until = later(now, seconds.saturating_mul(1_000));
        let token = state.tokens.issue(Kind::OAuth, now, until);
        let body = serde_json::json!({
            "access_token": token, "expires_in": seconds, "token_type": "Bearer",
        });
        Ok(super::json_response(StatusCode::OK, &body))
    };
    app.answer(Call::Token, &headers, Subject::default(), act).await
}

fn check_client(app: &App, credentials: &TokenRequest) -> Result<(), Rejected> {
    let known = &app.settings;
    if credentials.grant_type != "client_credentials" {
        return Err(Rejected::malformed("The grant_type must be client_credentials."));
    }
    if credentials.client_id != known.client_id
        || credentials.client_secret.expose_secret() != known.client_secret.expose_secret()
    {
        let message = "The client or its secret is wrong.";
        return Err(Rejected::unauthorized("BAD_CREDENTIALS", message));
    }
    if credentials.audience != known.audience {
        return Err(Rejected::new(
            StatusCode::FORBIDDEN,
            "WRONG_AUDIENCE",
            "The client has no access to this audience.",
        ));
    }
    Ok(())
}

/// `POST /v1/tickets`, as a form.
pub(in super::super) async fn ticket(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    let credentials: TicketRequest = form(&headers, &body)?;
    let act = move |app: &App, _: &Plan| {
        let known = &app.settings;
        if credentials.username != known.username
            || credentials.password.expose_secret() != known.password.expose_secret()
        {
            let message = "The username or the password is wrong.";
            return Err(Rejected::unauthorized("BAD_CREDENTIALS", message));
        }
        let mut state = app.state();
        let (now, seconds) = (app.now(&state), state.bounds.ticket_lifetime_seconds);
        let until = later(now, seconds.saturating_mul(1_000));
        let ticket = state.tokens.issue(Kind::Ticket, now, until);
        let mut response = StatusCode::CREATED.into_response();
        if let Ok(value) = HeaderValue::from_str(&ticket) {
            response.headers_mut().insert("boknett-tgt", value);
        }
        Ok(response)
    };
    app.answer(Call::Token, &headers, Subject::default(), act).await
}

/// `DELETE /v1/tickets/{TGT}`: revokes a ticket.
pub(in super::super) async fn log_out(
    State(app): State<App>,
    Path(ticket): Path<String>,
) -> Result<StatusCode, Rejected> {
    if app.state().tokens.revoke(&ticket) {
        Ok(StatusCode::OK)
    } else {
        let message = "There is no such ticket.";
        Err(Rejected::not_found("TICKET_NOT_FOUND", message))
    }
}

fn form<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Rejected> {
    if super::media_type(headers) != "application/x-www-form-urlencoded" {
        let message = "The body must be application/x-www-form-urlencoded.";
        return Err(Rejected::malformed(message));
    }
    let fields: serde_json::Map<_, _> = url::form_urlencoded::parse(body)
        .map(|(name, value)| (name.into_owned(), value.into_owned().into()))
        .collect();
    // serde's sentence names the missing or unknown field and no value, which may be a secret.
    serde_json::from_value(fields.into())
        .map_err(|error| Rejected::malformed(format!("The form is malformed: {error}.")))
}
