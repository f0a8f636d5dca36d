//! `loangate sandbox`: runs only the Bokbasen stand-in, for an integrator's own tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use url::Url;

use super::signals::Signals;
use super::{CliError, say};
use crate::clock::Clock;
use crate::sandbox::{Bounds, Fault, Running, Sandbox, Settings, World};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Directory for its books; by default they are lost when it stops.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Libraries, titles and borrowers that it knows, as a JSON file. By default every library has
    /// every title.
    #[arg(long)]
    world: Option<PathBuf>,
    /// Times and limits, as JSON, such as '{"list_lag_ms": 0, "pending_polls": 3}'; omitted keys
    /// have their defaults.
    #[arg(long, value_parser = json::<Bounds>)]
    bounds: Option<Bounds>,
    /// A fault, as JSON, such as '{"call": "begin", "times": 2, "effect": "cut_after"}'. Can be
    /// repeated.
    #[arg(long = "fault", value_parser = json::<Fault>)]
    faults: Vec<Fault>,
    /// Address of a storage to relay below /storage/, so that a drill can slow it down.
    #[arg(long)]
    storage: Option<Url>,
    /// Print one line of JSON once it is ready.
    #[arg(long)]
    json: bool,
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let settings = Settings {
        listen: args.listen,
        dir: args.dir,
        world: world(args.world.as_deref())?,
        bounds: args.bounds.unwrap_or_default(),
        faults: args.faults,
        storage: args.storage,
        ..Settings::default()
    };
    let running = Sandbox::start(settings, Clock::system()).await.map_err(CliError::new)?;
    if args.json {
        say(&to_json(&running).to_string())?;
    } else {
        say(&format!(
            "Bokbasen's stand-in answers at {}. Its books are at {}/sandbox/books.",
            running.url(),
            running.url()
        ))?;
    }
    signals.drain().await;
    running.stop().await;
    Ok(())
}

fn world(file: Option<&Path>) -> Result<World, CliError> {
    let Some(file) = file else {
        return Ok(World { any_library_any_title: true, ..World::default() });
    };
    let to_error =
        |error: &dyn std::fmt::Display| CliError::new(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| to_error(&error))?;
    serde_json::from_str(&text).map_err(|error| to_error(&error))
}

/// Returns what a client needs, as JSON. The credentials work only with this stand-in.
fn to_json(running: &Running) -> serde_json::Value {
    let settings = running.settings();
    serde_json::json!({
        "url": running.url(),
        "token_url": running.token_url(),
        "login_url": running.login_url(),
        "client_id": settings.client_id,
        "client_secret": settings.client_secret.expose_secret(),
        "username": settings.username,
        "password": settings.password.expose_secret(),
    })
}
