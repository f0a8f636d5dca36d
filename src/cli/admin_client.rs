//! A client of the admin API of a running gate. The configuration has the address and the token.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::admin_route::AdminRoute;
use super::client_tls::ClientTls;
use super::{CliError, printable};
use crate::config::AdminAddress;
use crate::http_calls::{BodyError, innermost, read_body};

/// The timeout for a connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a call with its response, if the command has no other.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
/// The timeout of a call for what the gate knows at once.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// What to do if another program may have responded.
pub(super) const CHECK_PEER: &str = "Check that the address is that of the gate's admin listener, \
                                     and that gate and command have the same version";
/// What to do if the response to a call that changes something does not arrive.
const MAY_BE_DONE: &str = " The gate may have done what you asked, so look before you try again";
/// More bytes than a document of a gate has.
const MAX_DOCUMENT: usize = 64 << 20;

/// Marks the response to a call that may change something.
#[derive(Clone, Copy)]
struct MayChange;

#[derive(Debug, clap::Args)]
pub(super) struct GateArgs {
    /// Configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print the API's response as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// Why you ask, for the access trail.
    #[arg(long, value_parser = access_reason)]
    why: Option<HeaderValue>,
    #[command(flatten)]
    tls: ClientTls,
}

fn access_reason(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| "a reason has no control characters")
}

impl GateArgs {
    /// Creates the arguments of a command that has no `--json`.
    pub(super) fn of(config: PathBuf, tls: ClientTls) -> GateArgs {
        GateArgs { config, json: false, why: None, tls }
    }
}

/// The admin API of a running gate.
pub(super) struct AdminClient {
    client: reqwest::Client,
    route: AdminRoute,
    token: SecretString,
    why: Option<HeaderValue>,
    config: PathBuf,
}

/// Calls the API once, as [`AdminClient::call`] does.
pub(super) async fn call(
    gate: &GateArgs,
    method: Method,
    segments: &[&str],
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Response, CliError> {
    AdminClient::new(gate)?.call(method, segments, with).await
}

impl AdminClient {
    /// Reads the configuration, and connects to nothing yet.
    pub(super) fn new(gate: &GateArgs) -> Result<AdminClient, CliError> {
        let config = super::load(&gate.config)?;
        let route = AdminRoute::of(AdminAddress::of(&config.admin), gate.tls.wants_tcp());
        let needs_certificate = config.server.admin.client_ca.is_some() && !route.is_socket();
        if needs_certificate && !gate.tls.has_certificate() {
            return Err(CliError::new(
                "the gate accepts only operators with a certificate (admin.client_ca). Add \
                 --client-cert and --client-key",
            ));
        }
        route.require_trusted()?;
        let client = reqwest::Client::builder().no_proxy().redirect(Policy::none());
        let client = client.connect_timeout(CONNECT_TIMEOUT);
        let client = gate.tls.apply(client)?;
        let client = route.apply(client).build().map_err(CliError::new)?;
        let (token, why) = (config.admin.token, gate.why.clone());
        Ok(AdminClient { client, route, token, why, config: gate.config.clone() })
    }

    /// Calls the path `/api/v1/` plus `segments`. Errors carry the detail of the problem document.
    pub(super) async fn call(
        &self,
        method: Method,
        segments: &[&str],
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, CliError> {
        let url = format!("{}/api/v1", self.route.url());
        let mut url = url::Url::parse(&url).map_err(CliError::new)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(segments);
        }
        let may_change = method != Method::GET;
        let request = with(self.client.request(method, url).timeout(RESPONSE_TIMEOUT));
        let mut request = request.bearer_auth(self.token.expose_secret());
        if let Some(why) = &self.why {
            request = request.header("access-reason", why);
        }
        let mut response = request.send().await.map_err(|error| {
            let advice = if may_change && !error.is_connect() { MAY_BE_DONE } else { "" };
            CliError::new(format!("{}; is it running?{advice}", self.route.unanswered(&error)))
        })?;
        if may_change {
            response.extensions_mut().insert(MayChange);
        }
        match response.status().is_success() {
            true => Ok(response),
            false => Err(self.refusal(response).await),
        }
    }

    /// Reads the gate's status, with what the ledger has to count for it or without.
    pub(super) async fn status(&self, counts: bool) -> Result<Response, CliError> {
        let query = [("ledger", counts)];
        let with = |request: RequestBuilder| request.query(&query).timeout(LOOK_TIMEOUT);
        self.call(Method::GET, &["status"], with).await
    }

    /// Returns the sentences of a refusal.
    async fn refusal(&self, response: Response) -> CliError {
        let status = response.status();
        let document = read(response, &[]).await.unwrap_or_default();
        let detail = document.get("detail").and_then(Value::as_str).map(printable);
        if status == StatusCode::UNAUTHORIZED {
            // The client sent a token, so it must have the wrong value, whatever program responded.
            let (route, file) = (&self.route, self.config.display());
            let detail = detail.unwrap_or_else(|| format!("{status}."));
            return CliError::new(format!(
                "the gate at {route} refuses the admin token of {file}: {detail} Check that the \
                 gate runs with this configuration"
            ));
        }
        let detail = detail.unwrap_or_else(|| self.route.no_gate(status));
        let mistakes = document.get("mistakes").and_then(Value::as_array).into_iter().flatten();
        CliError::all(std::iter::once(detail).chain(mistakes.map(mistake)))
    }
}

/// Formats a mistake in a configuration as `loangate check` does.
fn mistake(mistake: &Value) -> String {
    let text = |name| printable(mistake.get(name).and_then(Value::as_str).unwrap_or_default());
    let line = mistake.get("line").and_then(Value::as_u64).unwrap_or_default();
    let (file, key, sentence) = (text("file"), text("key"), text("sentence"));
    let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
    match line {
        0 => format!("{file}: {key}{sentence}"),
        line => format!("{file}:{line}: {key}{sentence}"),
    }
}

/// Reads a document that has these members. Without them, another program may have responded.
pub(super) async fn read(response: Response, members: &[&str]) -> Result<Value, CliError> {
    let body = body_of(response, MAX_DOCUMENT).await?;
    let document: Value = serde_json::from_slice(&body)
        .map_err(|error| CliError::new(format!("the response is not one of a gate: {error}")))?;
    match members.iter().find(|member| document.get(member).is_none()) {
        None => Ok(document),
        Some(missing) => {
            Err(CliError::new(format!("the response has no {missing:?}. {CHECK_PEER}")))
        }
    }
}

/// Reads a document that has this list, each element of which has these members.
pub(super) async fn read_list(
    response: Response,
    list: &str,
    members: &[&str],
) -> Result<Value, CliError> {
    let document = read(response, &[list]).await?;
    let has_all = |one: &Value| members.iter().all(|member| one.get(member).is_some());
    match document.get(list).and_then(Value::as_array) {
        Some(elements) if elements.iter().all(has_all) => Ok(document),
        _ => {
            Err(CliError::new(format!("the {list} of the response are no such list. {CHECK_PEER}")))
        }
    }
}

/// Reads the body of a response, if it has this many bytes at most.
pub(super) async fn body_of(mut response: Response, most: usize) -> Result<Vec<u8>, CliError> {
    let advice = response.extensions().get::<MayChange>().map_or("", |_| MAY_BE_DONE);
    read_body(&mut response, most).await.map_err(|error| match error {
        BodyError::Failed(error) => {
            let why = innermost(&error.without_url());
            CliError::new(format!("the response was interrupted: {why}.{advice}"))
        }
        BodyError::TooLarge => CliError::new("the response is too long for one of a gate"),
    })
}
