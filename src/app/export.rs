//! The task that exports telemetry to a collector. `no_export` takes its place in a program that is
//! built without the feature `otlp`.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StartError;
use super::build::{ConnectedParts, node_name};
use crate::clock::Clock;
use crate::config::Config;
use crate::public_addresses::PublicAddresses;
use crate::supervise::supervise;
use crate::telemetry::{Metrics, Otlp, Task, Tracer};

/// How long the last export at the end of the process may take.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// The export before the gate has its address, which names it.
#[derive(Debug)]
pub(super) struct PendingExport(Option<Otlp>);

/// The running export, if it is on.
#[derive(Debug, Default)]
pub(super) struct Export(Option<(JoinHandle<()>, DropGuard)>);

impl PendingExport {
    pub(super) fn new(config: &Config, clock: &Clock, metrics: &Metrics) -> (Self, Tracer) {
        let otlp = config.otlp.as_ref().map(|otlp| Otlp::new(otlp, clock.clone(), metrics));
        let (otlp, tracer) = otlp.unzip();
        (PendingExport(otlp), tracer.unwrap_or_default())
    }

    /// Starts the export on the slow runtime.
    ///
    /// # Errors
    /// The client of the collector cannot be created.
    pub(super) fn start(
        self,
        parts: &ConnectedParts,
        public: &PublicAddresses,
    ) -> Result<Export, StartError> {
        let Some(otlp) = self.0 else { return Ok(Export::default()) };
        let export = otlp.connect(&node_name(public))?;
        let (stop, metrics) = (CancellationToken::new(), parts.handles.metrics.clone());
        let stopping = stop.clone();
        let run = move || export.clone().run(stopping.clone());
        let task = supervise(Task::ExportTelemetry, metrics, stop.clone(), run);
        Ok(Export(Some((parts.handles.slow.spawn(task), stop.drop_guard()))))
    }
}

impl Export {
    /// Exports what still waits, for 2 seconds at most.
    pub(super) async fn stop(self) {
        let Some((mut task, stop)) = self.0 else { return };
        drop(stop);
        if timeout(LAST_EXPORT, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("timed out while exporting the last telemetry");
        }
    }
}
