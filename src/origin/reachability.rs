//! Whether an origin can be reached with the credentials that its requests use, in a sentence.
//!
//! `loangate check --online` calls [`Origin::probe`]. HTTP servers get a HEAD for a name that no
//! file has, object storages a listing, since that is what tells a wrong key from a missing file.

use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::file_request::FileRequest;
use super::{Origin, Settings};
use crate::path::FilePath;

/// The name that HTTP servers are queried for. It does not exist, which is as good an answer as
/// any.
const NO_FILE: &str = "loangate-check";
/// The longest that one address may take, whatever the origin's own limits are.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// What came of trying one address of an origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probed {
    /// The address, as logs name it.
    pub address: String,
    /// The result, with a sentence.
    pub outcome: Outcome,
}

/// Whether an address can serve files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It can; the sentence says what it answered.
    Reached(String),
    /// It answered, and whether it serves files is not certain.
    Doubtful(String),
    /// It cannot; the sentence says why and what to do.
    Failed(String),
}

impl Origin {
    /// Tries every address at the same time, each within its own deadline.
    pub async fn probe(&self) -> Vec<Probed> {
        let probes = self.places.iter().map(|place| probe_place(&self.settings, place));
        futures_util::future::join_all(probes).await
    }
}

async fn probe_place(settings: &Settings, place: &Endpoint) -> Probed {
    let wait = (settings.connect_timeout + settings.first_byte).min(MAX_WAIT);
    let outcome = timeout(wait, place.probe()).await.unwrap_or_else(|_| {
        let seconds = wait.as_secs_f32();
        Outcome::Failed(format!(
            "it did not answer within {seconds} s. Check the address, the firewall and, for object storages, \
             the credentials"
        ))
    });
    Probed { address: place.name().to_owned(), outcome }
}

impl Endpoint {
    /// Reads what the address answers to a request that changes nothing.
    async fn probe(&self) -> Outcome {
        if let Some(outcome) = self.probe_listing().await {
            return outcome;
        }
        let Some(path) = FilePath::of_decoded(NO_FILE) else {
            return Outcome::Failed("no path can be made".to_owned());
        };
        match self.send(&path, &FileRequest::head()).await {
            Ok(answer) => of_status(answer.status()),
            Err(why) => Outcome::Failed(format!("it cannot be reached: {why}")),
        }
    }
}

/// What a status says of an HTTP server, for a file that does not exist.
fn of_status(status: StatusCode) -> Outcome {
    let code = status.as_u16();
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Reached("it answers".to_owned()),
        _ if status.is_success() => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. Readers would get its page for a missing file; check the URL"
        )),
        _ if status.is_redirection() => Outcome::Doubtful(format!(
            "it answers {code}, and the gate follows no redirect. Write the address that it redirects to"
        )),
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. The gate sends no credentials to an HTTP origin; \
                 check that it may read there"
        )),
        _ if status.is_server_error() => {
            Outcome::Failed(format!("it answers {code}. Look into the log of that server"))
        }
        _ => Outcome::Doubtful(format!(
            "it answers {code} for a file that does not exist. Check the URL"
        )),
    }
}
