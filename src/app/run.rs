//! Starts and stops a gate.
//!
//! The order of stopping matters: first the readers drain, then the meter and `circulation` stop,
//! then the ledger. So the ledger still records everything that readers do.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::build::ConnectedParts;
use super::reload::Reloader;
use super::{StartError, background, descriptors};
use crate::admin::{self, Admin};
use crate::circulation::Circulation;
use crate::clock::Clock;
use crate::config::Loaded;
use crate::ledger::{Ledger, LedgerError};
use crate::metering::Flusher;
use crate::process_handles::ProcessHandles;
use crate::reader::Readers;
use crate::server::{self, RequestRecorder};
use crate::telemetry::Metrics;

/// How long `circulation` may take to stop, because it waits for begins in flight, and how long the
/// meter may take to write its last counts.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a gate whose ledger was moved, which can write nothing.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

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
    recorder: RequestRecorder,
    ledger: Ledger,
    reloader: Reloader,
    stopping: CancellationToken,
}

/// Starts everything in a configuration, on the current runtime. Readers get their own threads.
/// `file` is where it was loaded from, and where a reload loads it from.
///
/// # Errors
/// Returns a [`StartError`] that names the part that could not start.
pub async fn start(file: &Path, loaded: Loaded, clock: Clock) -> Result<Running, StartError> {
    let Loaded { mut config, written, .. } = loaded;
    descriptors::fit_limits(&mut config);
    let handles = ProcessHandles { clock, metrics: Metrics::new()?, slow: Handle::current() };
    let mut parts = ConnectedParts::build(&config, handles).await?;
    let services = Arc::new(parts.services(&config.server));
    let certificates = parts.certificates.clone();
    let server =
        server::start(&config.server, services.clone(), certificates, &mut parts.requests)?;
    let stopping = CancellationToken::new();
    background::start(&parts, &stopping);
    let reloader = Reloader::new(file.to_owned(), written, &parts);
    background::start_reloads(&parts, &reloader, &stopping);
    let store_requests = config.server.store_requests;
    let clock = parts.handles.clock.clone();
    let recorder = RequestRecorder::start(services.clone(), clock, store_requests);
    let monitor = parts.monitor(&config, server.address);
    monitor.start(&stopping);
    let for_admin =
        parts.for_admin(&config, server.address, services, monitor, &reloader, &stopping);
    let ConnectedParts {
        handles, readers, requests, meter, ledger, circulation, reporting, ..
    } = parts;
    let flusher = Flusher::start(config.metering, meter, ledger.clone(), handles.metrics);
    let admin = Admin::start(&config.admin, for_admin).await?;
    circulation.start();
    if let Some((settings, client)) = config.reports.clone().zip(reporting) {
        let stored_file = Arc::new(move |path: &str| requests.catalog().stored_file(path));
        circulation.start_reports(settings, client, stored_file);
    }
    Ok(Running {
        public: server.address,
        admin_url: admin.url().to_owned(),
        readers,
        server,
        admin,
        circulation,
        flusher,
        recorder,
        ledger,
        reloader,
        stopping,
    })
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

    /// Drains connections, then stops every part in order.
    pub async fn stop(self) {
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
        self.stopping.cancel();
        end(self.server).await;
        if timeout(limit, self.flusher.stop()).await.is_err() {
            tracing::error!("timed out while writing the last counts of delivered bytes");
        }
        if timeout(limit, self.recorder.stop()).await.is_err() {
            tracing::error!("timed out while storing the last requests");
        }
        self.circulation.stop(limit).await;
        self.admin.stop().await;
        self.ledger.close().await;
    }
}
