//! What surrounds the demo's gate: Bokbasen's stand-in and the storage.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::library;
use super::people::{OVER_THE_LIMIT, PEOPLE, WITHOUT_BUDGET};
use crate::app;
use crate::cli::CliError;
use crate::clock::Clock;
use crate::samples::{self, Collection, Storage};
use crate::sandbox::{self, Library, Licence, Sandbox, World};

/// Default addresses of the stand-in and the storage, used if they are free.
const SANDBOX_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);
const STORAGE_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);
/// Starts the storage at the requested address, else at the default one, else at a free port.
pub(super) async fn start_storage(
    requested: Option<SocketAddr>,
    collection: &Collection,
    clock: &Clock,
) -> Result<samples::Running, CliError> {
    match Storage::start(requested.unwrap_or(STORAGE_ADDRESS), collection, clock.clone()).await {
        Ok(running) => Ok(running),
        Err(_) if requested.is_none() => {
            Storage::start(free_port(), collection, clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(format!("the storage cannot listen: {error}"))),
    }
}

pub(super) async fn start_sandbox(
    requested: Option<SocketAddr>,
    dir: &Path,
    collection: &Collection,
    clock: &Clock,
) -> Result<sandbox::Running, CliError> {
    let settings = |listen| sandbox::Settings {
        listen,
        dir: Some(dir.join("sandbox")),
        world: world(collection),
        ..sandbox::Settings::default()
    };
    match Sandbox::start(settings(requested.unwrap_or(SANDBOX_ADDRESS)), clock.clone()).await {
        Ok(running) => Ok(running),
        Err(sandbox::SandboxError::Listen { .. }) if requested.is_none() => {
            Sandbox::start(settings(free_port()), clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(error)),
    }
}

fn free_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Returns the libraries and titles for the stand-in.
fn world(collection: &Collection) -> World {
    let mut isils: Vec<&str> = PEOPLE.iter().map(|person| person.library).collect();
    isils.dedup();
    let libraries = isils.iter().filter_map(|isil| {
        let refuse = (*isil == WITHOUT_BUDGET).then(|| "BUDGET_EXCEEDED".to_owned());
        Some(Library { isil: isil.parse().ok()?, refuse })
    });
    let titles = collection.titles().iter().map(|title| {
        let kind = if title.licences == 1 { "EXCLUSIVE" } else { "PACKAGE" };
        let licence = Licence {
            exclusive: title.licences == 1,
            ..Licence::new(format!("L-{}", title.isbn), kind, Some(title.licences))
        };
        sandbox::Title { isbn: title.isbn, licences: vec![licence], loan_days: 21, refuse: None }
    });
    World { libraries: libraries.collect(), titles: titles.collect(), ..World::default() }
}

/// Makes the stand-in refuse the reader who is over the limit.
pub(super) async fn refuse_borrower(
    sandbox: &sandbox::Running,
    gate: &app::Running,
    client: &reqwest::Client,
) -> Result<(), CliError> {
    for person in PEOPLE.iter().filter(|person| person.name == OVER_THE_LIMIT) {
        let pseudonym = gate.readers.pseudonym(library(person)?, person.name);
        let url = format!("{}/sandbox/borrowers/{pseudonym}", sandbox.url());
        let rule = serde_json::json!({ "refuse": "BORROWER_LIMIT" });
        let sent = client.put(url).json(&rule).send().await;
        sent.and_then(reqwest::Response::error_for_status)
            .map_err(|error| CliError::new(error.without_url()))?;
    }
    Ok(())
}
