//! `loangate healthcheck`: checks the gate of this machine, for a container or a script.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::admin_client::body_of;
use super::admin_route::AdminRoute;
use super::client_tls::ClientCertificate;
use super::{CliError, printable, show};
use crate::config;

/// Timeout of the whole check.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration of the running gate. Only the place of its admin listener is read.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Check only that the gate responds (/healthz), not that it serves readers (/readyz).
    #[arg(long)]
    live: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Call listen.admin, also if the configuration has listen.admin_socket. The options of
    /// certificates do so, too.
    #[arg(long)]
    tcp: bool,
    #[command(flatten)]
    certificate: ClientCertificate,
}

/// Prints how the gate is. Fails if it does not serve readers, or with `--live` if it does not
/// respond.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let gate = config::admin_address(&args.config).map_err(CliError::all)?;
    let tcp = args.tcp || args.certificate.is_given();
    let route = match AdminRoute::of(gate.clone(), tcp) {
        // The running gate may have been started without a socket. The request has no secret.
        route if route.is_closed().await => AdminRoute::of(gate, true),
        route => route,
    };
    let checked = tokio::time::timeout(TIMEOUT, check(&route, &args)).await;
    let said = checked.unwrap_or_else(|_| {
        let seconds = TIMEOUT.as_secs();
        Err(CliError::new(format!("the gate at {route} did not respond within {seconds} seconds")))
    })?;
    show(args.json, &json!({ "healthy": true, "said": said }), |_| said.clone())
}

/// Returns the sentence of a healthy gate.
async fn check(route: &AdminRoute, args: &Args) -> Result<String, CliError> {
    let live = args.live;
    let path = if live { "healthz" } else { "readyz" };
    // The certificate has the name that readers use, not this address. The request has no secret,
    // and the response is only trusted to say how the gate is.
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .tls_danger_accept_invalid_certs(true);
    let client = route.apply(args.certificate.apply(client)?).build().map_err(CliError::new)?;
    let response = client.get(format!("{}/{path}", route.url())).send().await;
    let response = response.map_err(|error| CliError::new(route.unanswered(&error)))?;
    let status = response.status();
    let body = body_of(response, MAX_RESPONSE).await?;
    if live {
        return match status == StatusCode::OK && body == b"ok\n" {
            true => Ok(format!("the gate at {route} responds")),
            false => Err(CliError::new(route.no_gate(status))),
        };
    }
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    let faults = document.get("missing").and_then(Value::as_array).into_iter().flatten();
    let faults: Vec<String> = faults.filter_map(Value::as_str).map(printable).collect();
    let faults = faults.join(" ");
    match (status, document.get("ready").and_then(Value::as_bool)) {
        (StatusCode::OK, Some(true)) if faults.is_empty() => {
            Ok(format!("the gate at {route} is ready"))
        }
        (StatusCode::OK, Some(true)) => Ok(format!("the gate at {route} is ready: {faults}")),
        (StatusCode::SERVICE_UNAVAILABLE, Some(false)) => {
            Err(CliError::new(format!("the gate at {route} is not ready: {faults}")))
        }
        _ => Err(CliError::new(route.no_gate(status))),
    }
}
