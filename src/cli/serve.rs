//! `loangate serve`: serves files until a signal stops it, another process takes over, or its
//! ledger was moved.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;

use super::signals::{SignalAction, Signals};
use super::{CliError, say};
use crate::app::{Running, StartError};
use crate::clock::Clock;
use crate::config::{self, Loaded, Mistake};
use crate::ledger::LedgerError;
use crate::listeners::{Activated, Listeners};
use crate::service_manager::ServiceManager;
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

/// Why the gate stops.
enum End {
    Signal,
    /// A successor serves its sockets.
    HandedOver,
    Moved(LedgerError),
}

/// Serves until a signal stops the process, or another takes over. Fails if the ledger was moved.
/// `activated` are the sockets of the service manager.
pub(super) async fn run(args: Args, activated: Activated) -> Result<(), CliError> {
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
        started = start(&path, loaded, activated) => started,
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
    let manager = running.service_manager().clone();
    manager.ready(&status(&running));
    if args.json {
        let ready = serde_json::json!({
            "base_url": base_url(running.public.first()),
            "base_urls": running.public.iter().map(base_url).collect::<Vec<_>>(),
            "admin_url": running.admin_url,
        });
        say(&ready.to_string())?;
    }
    let heartbeat = running.heartbeat();
    let is_alive = move |limit| {
        let heartbeat = heartbeat.clone();
        async move { heartbeat.is_alive_within(limit).await }
    };
    let watch = tokio::spawn(manager.clone().watch(is_alive));
    let end = serve(&running, &mut signals).await;
    match &end {
        End::Signal => manager.stopping("draining"),
        End::HandedOver => watch.abort(),
        End::Moved(_) => manager.stopping("the ledger was moved"),
    }
    stop(running, end, &mut signals).await.map_err(|error| {
        let error = CliError::new(error);
        if is_json { error.log("cannot continue") } else { error }
    })
}

/// Takes over the sockets of the service manager and of a running gate, and starts.
async fn start(file: &Path, loaded: Loaded, activated: Activated) -> Result<Running, StartError> {
    let (manager, config) = (ServiceManager::of_environment(), &loaded.config);
    let addresses = app::addresses(config);
    let (handover, admin_socket) = (&config.handover, config.admin.socket.clone());
    let listeners =
        Listeners::acquire(handover, addresses, admin_socket, activated, manager).await?;
    Box::pin(app::start_with(file, loaded, Clock::system(), listeners)).await
}

/// Handles signals until the gate must stop.
async fn serve(running: &Running, signals: &mut Signals) -> End {
    loop {
        let action = tokio::select! {
            action = signals.next() => action,
            error = running.ledger_moved() => return End::Moved(error),
            process = running.handed_over() => {
                tracing::info!(process, "another gate has taken over; this one drains");
                process.into_iter().for_each(|process| {
                    running.service_manager().succeeded_by(process);
                });
                return End::HandedOver;
            }
        };
        match action {
            SignalAction::Reload => {
                running.reload();
            }
            SignalAction::Drain => return End::Signal,
        }
    }
}

/// Stops the gate. A signal during the drain stops it at once.
async fn stop(running: Running, end: End, signals: &mut Signals) -> Result<(), LedgerError> {
    if let End::Moved(error) = end {
        tokio::select! {
            () = running.abort() => {}
            () = signals.drain() => {}
        }
        return Err(error);
    }
    let mut stopping = pin!(running.stop());
    if let End::HandedOver = end {
        // The signal to drain is sent to all processes of a service.
        tokio::select! {
            () = &mut stopping => {
                tracing::info!("stopped");
                return Ok(());
            }
            () = signals.drain() => tracing::info!("already draining"),
        }
    }
    tokio::select! {
        () = stopping => tracing::info!("stopped"),
        () = signals.drain() => tracing::warn!("stopped without draining"),
    }
    Ok(())
}

fn base_url(address: SocketAddr) -> String {
    format!("https://{address}")
}

fn status(running: &Running) -> String {
    format!("serving readers at {}, admin at {}", running.public, running.admin_url)
}
