//! The task that writes the counts to the ledger at an interval, and a last time on shutdown.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::counters::Tallies;
use super::{Meter, Settings};
use crate::ledger::{Delivered, Ledger, LedgerError};
use crate::loan::LibraryId;
use crate::supervise::supervise;
use crate::telemetry::{FlushOutcome, Metrics, Task};

/// The maximum number of entries written at once, so that a concurrent begin waits only briefly.
const ENTRIES_PER_CHUNK: usize = 256;

/// The handle of the task that writes counts.
#[derive(Debug)]
pub(crate) struct Flusher {
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Flusher {
    /// Starts the task on the current runtime. It writes the counts of every worker.
    pub(crate) fn start(
        settings: Settings,
        meter: Meter,
        ledger: Ledger,
        metrics: Metrics,
    ) -> Flusher {
        let stop = CancellationToken::new();
        // Outside of the task, so that a panic in it loses no counts.
        let waiting = Arc::new(Mutex::new(Tallies::default()));
        let (run_metrics, stopping) = (metrics.clone(), stop.clone());
        let run = move || {
            let (meter, ledger, metrics) = (meter.clone(), ledger.clone(), run_metrics.clone());
            run(settings, meter, ledger, metrics, stopping.clone(), waiting.clone())
        };
        let task = tokio::spawn(supervise(Task::FlushMetering, metrics, stop.clone(), run));
        Flusher { task, stop: stop.drop_guard() }
    }

    /// Writes the remaining counts. Call it after the last body and before closing the ledger.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        if self.task.await.is_err() {
            tracing::error!("the metering task ended abnormally; its last counts may be lost");
        }
    }
}

async fn run(
    settings: Settings,
    meter: Meter,
    ledger: Ledger,
    metrics: Metrics,
    stop: CancellationToken,
    waiting: Arc<Mutex<Tallies>>,
) {
    let mut waiting = waiting.lock().await;
    loop {
        let stopped = tokio::time::timeout(settings.flush, stop.cancelled()).await.is_ok();
        meter.collect(&mut waiting);
        let written = write(&ledger, &mut waiting).await;
        let lost = waiting.take_lost();
        if lost > 0 {
            tracing::error!(
                bytes = lost,
                "counts of delivered bytes were lost: too many waited, or the ledger rejects them"
            );
        }
        if let Err(error) = &written {
            tracing::error!(%error, stopped, "cannot write the counts of delivered bytes");
        }
        let outcome = if written.is_ok() { FlushOutcome::Written } else { FlushOutcome::Failed };
        metrics.metering_flush(outcome);
        if stopped {
            return;
        }
    }
}

/// Writes all counts, chunk by chunk. After a failure, what failed in the chunk and the rest wait
/// for the next flush.
async fn write(ledger: &Ledger, waiting: &mut Tallies) -> Result<(), LedgerError> {
    loop {
        let chunk = waiting.take(ENTRIES_PER_CHUNK);
        if chunk.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        let by_library = by_library(chunk).into_iter().map(async |(library, delivered)| {
            (ledger.note_delivered(library, delivered.clone()).await, delivered)
        });
        // Together, so that a ledger that can write them in one transaction does.
        for (written, delivered) in join_all(by_library).await {
            match written {
                Ok(()) => {}
                // It is unknown whether they were written. Writing them twice would over-report.
                Err(LedgerError::Closed) => result = Err(LedgerError::Closed),
                // They would fail each time, and the counts behind them would wait for ever.
                Err(error @ LedgerError::Unwritable(_)) => {
                    waiting.lose(&delivered);
                    result = Err(error);
                }
                Err(error) => {
                    waiting.put_back(&delivered);
                    result = Err(error);
                }
            }
        }
        result?;
    }
}

/// Groups counts by the library of their loans.
fn by_library(chunk: Vec<Delivered>) -> HashMap<LibraryId, Arc<[Delivered]>> {
    let mut groups: HashMap<LibraryId, Vec<Delivered>> = HashMap::new();
    for delivered in chunk {
        groups.entry(delivered.loan.library()).or_default().push(delivered);
    }
    groups.into_iter().map(|(library, group)| (library, group.into())).collect()
}
