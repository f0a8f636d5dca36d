//! Checks whether an origin can be reached with its credentials, and explains the result.
//!
//! `loangate check --online` calls [`Origin::probe`]. It sends HTTP servers a HEAD for a file that
//! does not exist. It lists object storages, since only that distinguishes a wrong key from a
//! missing file.

use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::file_request::FileRequest;
use super::{Origin, Settings};
use crate::path::FilePath;

/// Name of the file to request from HTTP servers. A 404 also shows that the server works.
const NO_FILE: &str = "loangate-check";
/// Upper bound for the timeout of one address.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The result of checking one address of an origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Probed {
    /// The address in the form used in logs.
    pub address: String,
    /// The outcome with its explanation.
    pub outcome: Outcome,
}

/// Whether an address can serve files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It can; the sentence describes the response.
    Reached(String),
    /// It responds, but may not serve files.
    Doubtful(String),
    /// It cannot; the sentence gives the reason and the remedy.
    Failed(String),
}

impl Origin {
    /// Checks all addresses concurrently, each with its own timeout.
    pub(crate) async fn probe(&self) -> Vec<Probed> {
        let probes = self.places.iter().map(|place| probe_place(&self.settings, place));
        futures_util::future::join_all(probes).await
    }
}

async fn probe_place(settings: &Settings, place: &Endpoint) -> Probed {
    let wait = (settings.connect_timeout + settings.first_byte).min(MAX_WAIT);
    let outcome = timeout(wait, place.probe()).await.unwrap_or_else(|_| {
        let seconds = wait.as_secs_f32();
        Outcome::Failed(format!(
            "it did not respond within {seconds} s. Check the address, the firewall and, for \
             object storages, the credentials"
        ))
    });
    Probed { address: place.name().to_owned(), outcome }
}

impl Endpoint {
    /// Checks the address with a request that changes nothing.
    async fn probe(&self) -> Outcome {
        if let Some(outcome) = self.probe_listing().await {
            return outcome;
        }
        let Some(path) = FilePath::of_decoded(NO_FILE) else {
            return Outcome::Failed("no path can be made".to_owned());
        };
        match self.send(&path, &FileRequest::head()).await {
            Ok(response) => of_status(response.status()),
            Err(why) => Outcome::Failed(format!("it cannot be reached: {why}")),
        }
    }
}

/// Interprets the status of an HTTP server for a file that does not exist.
fn of_status(status: StatusCode) -> Outcome {
    let code = status.as_u16();
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Reached("it answers".to_owned()),
        _ if status.is_success() => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. Readers would get its page for a \
             missing file; check the URL"
        )),
        _ if status.is_redirection() => Outcome::Doubtful(format!(
            "it answers {code}, and the gate follows no redirect. Write the address that it \
             redirects to"
        )),
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. The gate sends no credentials to \
             an HTTP origin; check that it may read there"
        )),
        _ if status.is_server_error() => {
            Outcome::Failed(format!("it answers {code}. Look into the log of that server"))
        }
        _ => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. Check the URL"
        )),
    }
}
