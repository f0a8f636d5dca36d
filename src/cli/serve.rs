//! `loangate serve`: builds every part from its settings, starts them, and stops them in order.
//!
//! The demo and some tests also call [`start`]. The order of stopping matters: first the readers
//! drain, then the meter and `circulation` stop, then the ledger. So the ledger still records
//! everything that readers do.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

use super::signals::{SignalAction, Signals};
use super::{CliError, say};
use crate::admin::{self, Admin};
use crate::buffer_budget::Buffers;
use crate::catalog::Catalog;
use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::config::{self, Config, Loaded, Mistake};
use crate::delivery::Delivery;
use crate::gate::Gate;
use crate::ledger::{AuditKey, Ledger};
use crate::lending::Bokbasen;
use crate::metering::{Flusher, Meter};
use crate::process_handles::ProcessHandles;
use crate::reader::Readers;
use crate::server::{self, Certificates, Limits, SecurityHeaders, Services};
use crate::supervise::supervise;
use crate::telemetry::{self, Metrics};

/// How long `circulation` may take to stop, because it waits for begins in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// The most title-table mistakes to log on a reload. `loangate check` lists all of them.
const MAX_REPORTED_ERRORS: usize = 10;

/// File descriptors for the ledger, the runtimes, listening sockets, standard streams, closing
/// connections and briefly open files.
const RESERVED_DESCRIPTORS: u64 = 96;

/// How often certificate dates are checked.
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(86_400);

/// How often the metrics are folded.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration of the gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print one line of JSON once the gate is ready.
    #[arg(long)]
    json: bool,
}

/// A running gate.
#[derive(Debug)]
pub struct Running {
    /// The address where readers connect.
    pub public: SocketAddr,
    /// The URL of the admin API.
    pub admin_url: String,
    /// The authentication of readers.
    pub readers: Arc<Readers>,
    server: server::Running,
    admin: admin::Running,
    circulation: Circulation,
    flusher: Flusher,
    ledger: Ledger,
    catalog: Arc<Catalog>,
    certificates: Arc<Certificates>,
    stopping: CancellationToken,
}

/// Serves until a signal stops the process.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let path = args.config;
    let Loaded { config, warnings, .. } = config::load(&path).map_err(CliError::all)?;
    telemetry::init(&config.log).map_err(CliError::new)?;
    for Mistake { file, line, key, sentence } in warnings {
        tracing::warn!(file = %file.display(), line, key, "{sentence}");
    }
    let mut signals = Signals::listen()?;
    let is_json = config.log.json;
    let running = start(config, Clock::system()).await.map_err(|error| match is_json {
        true => error.log("cannot start"),
        false => error,
    })?;
    tracing::info!(public = %running.public, admin = running.admin_url, "serving");
    if args.json {
        let ready = serde_json::json!({
            "base_url": format!("https://{}", running.public),
            "admin_url": running.admin_url,
        });
        say(&ready.to_string())?;
    }
    while let SignalAction::Reload = signals.next().await {
        running.reload(&path);
    }
    tokio::select! {
        () = running.stop() => tracing::info!("stopped"),
        () = signals.drain() => tracing::warn!("stopped without draining"),
    }
    Ok(())
}

/// Starts everything in a configuration, on the current runtime. Readers get their own threads.
///
/// # Errors
/// Returns a [`CliError`] that names the part that could not start.
pub async fn start(mut config: Config, clock: Clock) -> Result<Running, CliError> {
    fit_limits(&mut config);
    let metrics = Metrics::new().map_err(CliError::new)?;
    let readers = Arc::new(Readers::new(&config.readers, clock.clone()).map_err(CliError::new)?);
    let catalog = Arc::new(Catalog::new(&config.catalog).map_err(CliError::all)?);
    catalog.read_tables().map_err(CliError::all)?;
    let certificates =
        Arc::new(Certificates::load(&config.server, clock.clone()).map_err(CliError::new)?);
    let meter = Meter::new();
    let buffers = Buffers::new(config.server.buffers);
    let delivery = Delivery::new(
        config.delivery,
        &config.origins,
        buffers.clone(),
        meter.clone(),
        metrics.clone(),
    )
    .map_err(CliError::new)?;
    let ledger = Ledger::open(
        &config.ledger,
        &readers.key_fingerprint(),
        AuditKey::new(&readers.audit_key()),
        clock.clone(),
        metrics.clone(),
    )
    .await
    .map_err(CliError::new)?;
    announce_others(&ledger);
    let lending =
        Bokbasen::new(&config.lending, clock.clone(), metrics.clone()).map_err(CliError::new)?;
    let reference = lending.clone();
    readers.compare_clock_with(move || reference.clock_ahead());
    let handles =
        ProcessHandles { clock: clock.clone(), metrics: metrics.clone(), slow: Handle::current() };
    let circulation =
        Circulation::new(config.circulation, ledger.clone(), lending.clone(), handles.clone());
    let gate = Gate::new(&config.gate, circulation.clone(), handles);
    let services = Arc::new(Services {
        readers: readers.clone(),
        catalog: catalog.clone(),
        gate: gate.clone(),
        ledger: ledger.clone(),
        cors: config.server.cors.clone(),
        security: SecurityHeaders::new(config.server.hsts),
        body_timeout: config.server.limits.body,
        buffers: buffers.clone(),
        metrics: metrics.clone(),
    });
    let count = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers: Result<Vec<Delivery>, _> = (0..count).map(|_| delivery.for_worker()).collect();
    // It works until the drain ends, so only the end of the process stops it.
    let watch = move || delivery.run_stall_monitor();
    tokio::spawn(supervise("watch-readers", metrics.clone(), CancellationToken::new(), watch));
    let server = server::start(
        &config.server,
        services,
        certificates.clone(),
        workers.map_err(CliError::new)?,
    )
    .map_err(CliError::new)?;
    let stopping = CancellationToken::new();
    let (folding, stop) = (metrics.clone(), stopping.clone());
    let fold = move || fold(folding.clone(), stop.clone());
    tokio::spawn(supervise("fold-metrics", metrics.clone(), stopping.clone(), fold));
    let (watched, now, stop) = (certificates.clone(), clock.clone(), stopping.clone());
    let watch = move || watch_certificates(watched.clone(), now.clone(), stop.clone());
    tokio::spawn(supervise("watch-certificates", metrics.clone(), stopping.clone(), watch));
    let flusher = Flusher::start(config.metering, meter, ledger.clone(), metrics.clone());
    let parts = admin::Parts {
        ledger: ledger.for_support(),
        metrics,
        buffers,
        readiness: readiness(&ledger, &lending, &stopping),
        gate,
        circulation: circulation.clone(),
        readers: readers.clone(),
        public_base: public_base(&certificates, server.address),
        catalog: catalog.clone(),
        clock,
        readers_api: server::Api::openapi(),
        tls: certificates.config(),
    };
    let admin = Admin::start(&config.admin, parts).await.map_err(CliError::new)?;
    circulation.start();
    Ok(Running {
        public: server.address,
        admin_url: admin.url().to_owned(),
        readers,
        server,
        admin,
        circulation,
        flusher,
        ledger,
        catalog,
        certificates,
        stopping,
    })
}

impl Running {
    /// Reloads title tables, certificates, ticket keys and readers' keys. Keeps the old version of
    /// anything invalid.
    fn reload(&self, path: &std::path::Path) {
        self.reload_titles();
        let config = match super::load(path) {
            Ok(config) => config,
            Err(error) => return tracing::error!(%error, "the configuration was not reloaded"),
        };
        match self.certificates.reload(&config.server) {
            Ok(()) => tracing::info!("the certificates and the ticket keys were reloaded"),
            Err(error) => {
                tracing::error!(%error, "the certificates were not reloaded; the old ones stay")
            }
        }
        match self.readers.reload_with(&config.readers) {
            Ok(()) => tracing::info!("the readers' keys were reloaded"),
            Err(error) => {
                tracing::error!(%error, "the readers' keys were not reloaded; the old ones stay")
            }
        }
        tracing::info!(
            "a reload covers title tables, certificates, ticket keys and readers' keys; for other \
             changes, restart"
        );
    }

    /// Reloads the title tables from the paths that were configured at the start.
    fn reload_titles(&self) {
        match self.catalog.read_tables() {
            Ok(lines) => {
                lines.iter().for_each(|lines| tracing::info!(lines, "a title table was reloaded"))
            }
            Err(errors) => {
                let mistakes = errors.len();
                for error in errors.iter().take(MAX_REPORTED_ERRORS) {
                    tracing::error!(
                    %error,
                    mistakes,
                    "a title table was not reloaded; the old one stays"
                    );
                }
            }
        }
    }

    /// Drains connections, then stops every part in order.
    pub async fn stop(self) {
        self.stopping.cancel();
        let aborted = self.server.drain().await;
        if aborted > 0 {
            tracing::warn!(aborted, "connections were aborted when server.drain ended");
        }
        self.flusher.stop().await;
        self.circulation.stop(STOP_TIMEOUT).await;
        self.admin.stop().await;
        self.ledger.close().await;
    }
}

/// Raises the file descriptor limit, and adjusts the limits of reader and origin connections to it.
fn fit_limits(config: &mut Config) {
    let descriptors = server::raise_descriptor_limit();
    let calls = u64::try_from(config.lending.concurrency).unwrap_or(u64::MAX);
    let reserved = calls.saturating_add(admin::DESCRIPTORS).saturating_add(RESERVED_DESCRIPTORS);
    let for_origins =
        config.origins.iter().map(|origin| origin.descriptors()).fold(0, u64::saturating_add);
    let configured = config.server.limits.connections;
    config.server.limits = config.server.limits.fit(descriptors, for_origins, reserved);
    let Limits { connections, connections_per_address, .. } = config.server.limits;
    let left = descriptors.saturating_sub(reserved).saturating_sub(connections as u64);
    if left < for_origins {
        config.origins.iter_mut().for_each(|origin| origin.scale_descriptors(left, for_origins));
    }
    tracing::info!(
        connections,
        per_address = connections_per_address,
        for_origins = left.min(for_origins),
        descriptors,
        reserved,
        "limits on connections"
    );
    if connections < configured || left < for_origins {
        tracing::warn!(
            connections,
            configured,
            for_origins = left.min(for_origins),
            configured_for_origins = for_origins,
            descriptors,
            "fewer connections than configured, for lack of file descriptors; raise LimitNOFILE \
             (ulimit -Hn)"
        );
    }
}

/// Warns at the start if other gates share the ledger.
fn announce_others(ledger: &Ledger) {
    let others = ledger.other_processes();
    if others > 0 {
        tracing::warn!(
            others,
            "another gate uses this ledger. Each loan is still registered once, and each return is \
             sent. A return at one gate stops streams of the other within a second. Borrower \
             limits \
             apply per gate. Links and session tickets need the same keys at both gates"
        );
    }
}

/// Logs invalid certificate dates, and dates that become invalid soon: at the start and daily.
async fn watch_certificates(
    certificates: Arc<Certificates>,
    clock: Clock,
    stopping: CancellationToken,
) {
    daily(stopping, || {
        for (file, problem) in certificates.date_problems(clock.now()) {
            let (file, kind) = (file.display(), problem.name());
            match problem.is_fatal() {
                true => tracing::error!(%file, kind, "{problem}"),
                false => tracing::warn!(%file, kind, "{problem}"),
            }
        }
    })
    .await;
}

/// Runs `work` now and once a day.
async fn daily(stopping: CancellationToken, mut work: impl FnMut()) {
    loop {
        work();
        if tokio::time::timeout(CERTIFICATE_CHECK_INTERVAL, stopping.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Folds the metrics regularly, to bound their memory if no client reads them.
async fn fold(metrics: Metrics, stopping: CancellationToken) {
    while tokio::time::timeout(FOLD_INTERVAL, stopping.cancelled()).await.is_err() {
        metrics.fold();
    }
}

/// Returns the base URL of links. Uses the certificate's name, because the listen address may be a
/// wildcard.
fn public_base(certificates: &Certificates, address: SocketAddr) -> String {
    match certificates.name() {
        Some(name) if !name.starts_with('*') => format!("https://{name}:{}", address.port()),
        _ => format!("https://{address}"),
    }
}

/// Builds the readiness check, which returns what is missing as sentences.
fn readiness(
    ledger: &Ledger,
    lending: &Bokbasen,
    stopping: &CancellationToken,
) -> admin::Readiness {
    let (ledger, lending, stopping) = (ledger.clone(), lending.clone(), stopping.clone());
    admin::Readiness::new(move || {
        let (ledger, lending, stopping) = (ledger.clone(), lending.clone(), stopping.clone());
        async move {
            let mut missing = admin::Missing::default();
            if stopping.is_cancelled() {
                missing.needed.push("The gate is stopping: it accepts no new connections.".into());
            }
            if ledger.check().await.is_err() {
                missing.needed.push("The ledger cannot be read: no new reader gets a file.".into());
            } else if let Err(why) = ledger.check_writable().await {
                missing.wanted.push(
                    format!(
                        "The ledger cannot be written ({why}): readers without a loan cannot \
                             get one. \
                         Check its disk."
                    )
                    .into(),
                );
            }
            if lending.clock_is_off() {
                missing.wanted.push(
                    "This machine's clock is more than 15 minutes from Bokbasen's: no loan is \
                     begun \
                     and no expiry is registered. Set it by NTP."
                        .into(),
                );
            }
            let damaged = ledger.damaged_rows();
            if damaged > 0 {
                missing.wanted.push(
                    format!(
                        "{damaged} rows of the ledger are damaged and skipped: `loangate \
                             ledger check` \
                         names them."
                    )
                    .into(),
                );
            }
            if let Some(trouble) = lending.trouble() {
                missing.wanted.push(trouble.sentence().into());
            }
            missing
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn daily_work_runs_at_the_start_and_every_day() {
        let stopping = CancellationToken::new();
        let mut runs = 0;
        let three_days = tokio::time::timeout(
            CERTIFICATE_CHECK_INTERVAL * 3 + Duration::from_secs(1),
            daily(stopping.clone(), || runs += 1),
        );
        assert!(three_days.await.is_err());
        assert_eq!(runs, 4);
        stopping.cancel();
        daily(stopping, || runs += 1).await;
        assert_eq!(runs, 5, "it stops with the gate");
    }
}
