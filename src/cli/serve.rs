//! `loangate serve`: serves files until a signal stops it, or its ledger was moved.

use std::path::PathBuf;

use super::signals::{SignalAction, Signals};
use super::{CliError, say};
use crate::clock::Clock;
use crate::config::{self, Mistake};
use crate::{app, telemetry};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration of the gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print one line of JSON once the gate is ready.
    #[arg(long)]
    json: bool,
}

/// Serves until a signal stops the process. Fails if the ledger was moved.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let path = args.config;
    let loaded = config::load(&path).map_err(CliError::all)?;
    telemetry::init(&loaded.config.log).map_err(CliError::new)?;
    for Mistake { file, line, key, sentence } in &loaded.warnings {
        tracing::warn!(file = %file.display(), line, key, "{sentence}");
    }
    let mut signals = Signals::listen()?;
    let is_json = loaded.config.log.json;
    // The start waits for the database of the ledger, for as long as it takes.
    let started = tokio::select! {
        started = app::start(&path, loaded, Clock::system()) => started,
        () = signals.drain() => {
            tracing::info!("stopped before the gate was ready");
            return Ok(());
        }
    };
    let running = started.map_err(|error| {
        let error = CliError::from(error);
        if is_json { error.log("cannot start") } else { error }
    })?;
    tracing::info!(public = %running.public, admin = running.admin_url, "serving");
    if args.json {
        let ready = serde_json::json!({
            "base_url": format!("https://{}", running.public),
            "admin_url": running.admin_url,
        });
        say(&ready.to_string())?;
    }
    loop {
        let action = tokio::select! {
            action = signals.next() => action,
            error = running.ledger_moved() => {
                tokio::select! {
                    () = running.abort() => {}
                    () = signals.drain() => {}
                }
                let error = CliError::new(error);
                return Err(if is_json { error.log("cannot continue") } else { error });
            }
        };
        match action {
            SignalAction::Reload => running.reload(),
            SignalAction::Drain => break,
        }
    }
    tokio::select! {
        () = running.stop() => tracing::info!("stopped"),
        () = signals.drain() => tracing::warn!("stopped without draining"),
    }
    Ok(())
}
