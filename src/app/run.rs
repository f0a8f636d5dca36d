//! Starts and stops a gate.
//!
//! The gate opens its sockets last: a predecessor serves them until then. The order of stopping
//! matters: first the readers drain, then the meter and `circulation` stop,
//! then the ledger. So the ledger still records everything that readers do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::build::{ConnectedParts, Serving};
use super::export::{Export, PendingExport};
use super::reload::Reloader;
use super::{StartError, background, descriptors};
use crate::admin::{self, Admin, Sockets};
use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::ledger::{Ledger, LedgerError};
use crate::listeners::{
    Addresses, AdminSocket, AdminSocketFile, HandoverService, Listeners, Opened, PUBLIC,
};
use crate::low_priority::Threads;
use crate::metering::Flusher;
use crate::process_handles::ProcessHandles;
use crate::public_addresses::PublicAddresses;
use crate::reader::{KeyTrouble, Readers};
use crate::server::{self, Heartbeat, RequestRecorder};
use crate::service_manager::ServiceManager;
use crate::telemetry::{Metrics, access_log};

/// How long the last lines of the access log may take.
const ACCESS_LOG_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `circulation` may take to stop, because it waits for begins in flight, and how long the
/// meter may take to write its last counts.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a gate whose ledger was moved, which can write nothing.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long requests of operators may continue after another gate has taken over.
const ADMIN_DRAIN: Duration = Duration::from_secs(5);
/// How long the pages of the console may take to end once their connections are closed.
const LOOKS_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gate without a certificate takes over from no other.
const NO_CERTIFICATE: &str = "There is no certificate of [tls.acme] yet, and the running gate \
                              serves on. Reload that gate with this configuration, and start \
                              this one when the certificate was issued. To start without one, \
                              stop that gate first.";

/// A running gate.
#[derive(Debug)]
pub struct Running {
    /// The addresses where readers connect.
    pub public: PublicAddresses,
    /// The URL of the admin API.
    pub admin_url: String,
    /// The authentication of readers.
    pub readers: Arc<Readers>,
    server: server::Running,
    admin: admin::Running,
    /// The file of the Unix socket of the admin listener.
    admin_file: Option<AdminSocketFile>,
    circulation: Circulation,
    flusher: Flusher,
    recorder: RequestRecorder,
    ledger: Ledger,
    reloader: Reloader,
    /// Hands over to a successor; none if another gate cannot take over.
    handover: Option<HandoverService>,
    handed_over: CancellationToken,
    service_manager: ServiceManager,
    drain_delay: Duration,
    /// Exports telemetry, if it is on.
    export: Export,
    /// Make the pages of the console.
    threads: Threads,
    /// Makes `/readyz` report that the gate stops.
    unready: CancellationToken,
    stopping: CancellationToken,
}

/// Returns the addresses that a configuration names.
pub(crate) fn addresses(config: &Config) -> Addresses {
    Addresses { public: config.server.listen.clone(), admin: config.admin.listen }
}

/// Starts everything in a configuration, on the current runtime. Readers get their own threads.
/// `file` is where it was loaded from, and where a reload loads it from. The gate takes over from
/// no other, and hands over to none.
///
/// # Errors
/// Returns a [`StartError`] that names the part that could not start.
pub async fn start(file: &Path, loaded: Loaded, clock: Clock) -> Result<Running, StartError> {
    let Config { admin, .. } = &loaded.config;
    let listeners = Listeners::unshared(addresses(&loaded.config), admin.socket.clone());
    Box::pin(start_with(file, loaded, clock, listeners)).await
}

/// Like [`start`], with these listeners. Returns once a predecessor drains.
///
/// # Errors
/// Returns a [`StartError`]. A predecessor serves on then.
pub(crate) async fn start_with(
    file: &Path,
    loaded: Loaded,
    clock: Clock,
    mut listeners: Listeners,
) -> Result<Running, StartError> {
    let Loaded { mut config, written, .. } = loaded;
    descriptors::fit_limits(&mut config);
    let metrics = Metrics::new()?;
    access_log::open(&config.access_log, &metrics)?.apply();
    let (export, tracer) = PendingExport::new(&config, &clock, &metrics);
    let handles = ProcessHandles { clock, metrics, tracer, slow: Handle::current() };
    let early_admin = listeners.early_admin()?;
    let building = Box::pin(ConnectedParts::build(&config, handles, &early_admin));
    let parts = listeners.during(building).await??;
    drop(early_admin);
    let opened = listeners.open(parts.requests.workers()).await?;
    let (offer, was_taken_over) = (opened.offer.clone(), listeners.has_predecessor());
    let reloader = Reloader::new(file.to_owned(), written, &parts);
    let export = export.start(&parts, &opened.addresses)?;
    let mut running = serve(&config, parts, reloader, opened, &mut listeners).await?;
    running.export = export;
    match listeners.serving(offer, running.handed_over.clone()).await {
        Ok(handover) => {
            running.handover = handover;
            // The predecessor may have reloaded since this process has read the configuration.
            if was_taken_over {
                running.reload();
            }
            Ok(running)
        }
        Err(error) => {
            // Readers may have connected already, and another gate accepts the next ones.
            running.drain_delay = Duration::ZERO;
            running.stop().await;
            Err(error.into())
        }
    }
}

/// Starts all parts. They serve the opened sockets.
async fn serve(
    config: &Config,
    parts: ConnectedParts,
    reloader: Reloader,
    opened: Opened,
    listeners: &mut Listeners,
) -> Result<Running, StartError> {
    let threads = Threads::start("low-priority").map_err(|error| {
        let why = format!("cannot start a thread: {error}; check the limit of tasks (ulimit -u)");
        StartError::all([why])
    })?;
    let addresses = opened.addresses;
    let services = Arc::new(parts.services(&config.server));
    let (unready, stopping) = (CancellationToken::new(), CancellationToken::new());
    background::start(&parts, &stopping);
    let store_requests = config.server.store_requests;
    let clock = parts.handles.clock.clone();
    let recorder = RequestRecorder::start(services.clone(), clock, store_requests);
    let monitor = parts.monitor(config, &addresses);
    monitor.start(&stopping);
    require_login_keys(&parts.readers, listeners).await?;
    require_certificate(parts.certificates.awaits_first(), listeners)?;
    listeners.ready().await?;
    background::start_orders(&parts, &stopping);
    // By then the service manager of a predecessor is known.
    let manager = listeners.service_manager();
    let ProcessHandles { slow, metrics, .. } = &parts.handles;
    background::start_reloads(slow, metrics, &reloader, manager, &stopping);
    let (serving, certificates) = (services.clone(), parts.certificates.clone());
    let server =
        server::start(&config.server, serving, certificates, &parts.requests, opened.public)?;
    let readers_side =
        Serving { addresses: addresses.clone(), services, heartbeat: server.heartbeat() };
    let looks = threads.handle().clone();
    let for_admin = parts.for_admin(config, readers_side, monitor, &reloader, &unready, looks);
    let handed_over = CancellationToken::new();
    let ConnectedParts {
        handles, readers, requests, meter, ledger, circulation, reporting, ..
    } = parts;
    let (admin_file, local) = AdminSocket::parts(opened.admin_socket);
    let sockets = Sockets { tcp: opened.admin, local };
    let admin = Admin::start(&config.admin, sockets, for_admin, &handed_over)?;
    let flusher = Flusher::start(config.metering, meter, ledger.clone(), handles.metrics);
    circulation.start();
    if let Some((settings, client)) = config.reports.clone().zip(reporting) {
        let stored_file = Arc::new(move |path: &str| requests.catalog().stored_file(path));
        circulation.start_reports(settings, client, stored_file);
    }
    Ok(Running {
        public: addresses,
        admin_url: admin.url().to_owned(),
        readers,
        server,
        admin,
        admin_file,
        circulation,
        flusher,
        recorder,
        ledger,
        reloader,
        handover: None,
        handed_over,
        service_manager: listeners.service_manager().clone(),
        drain_delay: config.server.drain_delay,
        export: Export::default(),
        threads,
        unready,
        stopping,
    })
}

/// Waits for the keys of login services, if another gate serves until this one is ready. It has
/// keys, also those of a login service that does not answer now.
async fn require_login_keys(
    readers: &Readers,
    listeners: &mut Listeners,
) -> Result<(), StartError> {
    if !listeners.has_predecessor() {
        return Ok(());
    }
    let missing = listeners.during(readers.until_keys_asked_for()).await?;
    if missing.is_empty() || !listeners.has_predecessor() {
        return Ok(());
    }
    let sentence = |trouble: KeyTrouble| {
        format!(
            "{} The running gate may have its keys, so it serves on. To start without them, stop \
             that gate first.",
            trouble.what
        )
    };
    Err(StartError::all(missing.into_iter().map(sentence)))
}

/// Refuses to take over from a gate that serves while this one has no certificate: it would end the
/// connections of readers until the authority has issued one.
fn require_certificate(awaits_first: bool, listeners: &Listeners) -> Result<(), StartError> {
    match awaits_first && listeners.has_predecessor() {
        false => Ok(()),
        true => Err(StartError::all([NO_CERTIFICATE.to_owned()])),
    }
}

impl Running {
    /// Requests a reload of the configuration, in the background. A mistake changes nothing, and is
    /// logged.
    pub fn reload(&self) {
        self.reloader.request();
    }

    /// Waits until the gate must end, since its ledger was moved, and returns the error. It already
    /// delivers nothing under the loans of that ledger. The caller calls [`Running::abort`].
    pub async fn ledger_moved(&self) -> LedgerError {
        self.ledger.until_moved().await
    }

    /// Waits until a successor has taken over, and returns its process id. It serves the sockets of
    /// this gate. The caller calls [`Running::stop`].
    pub(crate) async fn handed_over(&self) -> Option<u32> {
        self.handed_over.cancelled().await;
        self.handover.as_ref().and_then(HandoverService::successor)
    }

    /// Shows whether the threads of readers respond.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        self.server.heartbeat()
    }

    /// The service manager of this process.
    pub(crate) fn service_manager(&self) -> &ServiceManager {
        &self.service_manager
    }

    /// Reports that the gate stops, and accepts connections for `server.drain_delay`. Then drains
    /// connections, and stops every part in order. A gate that has handed over has no delay.
    pub async fn stop(self) {
        self.unready.cancel();
        let _ = timeout(self.drain_delay, self.handed_over.cancelled()).await;
        self.end(STOP_TIMEOUT, async |server| {
            let aborted = server.drain().await;
            if aborted > 0 {
                tracing::warn!(aborted, "connections were aborted when server.drain ended");
            }
        })
        .await;
    }

    /// Aborts connections, then stops every part in order.
    pub async fn abort(self) {
        self.end(ABORT_TIMEOUT, server::Running::abort).await;
    }

    /// Ends the server by `end`, and then every other part within this time.
    async fn end(self, limit: Duration, end: impl AsyncFnOnce(server::Running)) {
        self.unready.cancel();
        self.stopping.cancel();
        // A successor may still take over the admin listener.
        self.handover.iter().for_each(|handover| handover.close(PUBLIC));
        end(self.server).await;
        let flushed = tokio::task::spawn_blocking(|| access_log::flush(ACCESS_LOG_TIMEOUT));
        let _ = flushed.await;
        if timeout(limit, self.flusher.stop()).await.is_err() {
            tracing::error!("timed out while writing the last counts of delivered bytes");
        }
        if timeout(limit, self.recorder.stop()).await.is_err() {
            tracing::error!("timed out while storing the last requests");
        }
        self.circulation.stop(limit).await;
        if let Some(handover) = self.handover {
            handover.stop().await;
        }
        drop(self.admin_file);
        if self.handed_over.is_cancelled() {
            self.admin.drain(ADMIN_DRAIN).await;
        }
        self.admin.stop().await;
        // What still looks at the ledger would take its end for a failure.
        self.threads.stop(LOOKS_TIMEOUT).await;
        self.ledger.close().await;
        self.export.stop().await;
    }
}
