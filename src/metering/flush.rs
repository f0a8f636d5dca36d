//! The one task that gives counts to the ledger, again and again, and a last time at the end.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::counters::Tallies;
use super::{Meter, Settings};
use crate::ledger::{Delivered, Ledger, LedgerError};
use crate::supervise::supervise;
use crate::telemetry::Metrics;

/// How many files' counts one command writes: a begin that comes meanwhile waits for no more.
const TOGETHER: usize = 256;

/// Writes counts until it is stopped.
#[derive(Debug)]
pub struct Flusher {
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Flusher {
    /// Begins to write the counts of every worker, on the runtime that it is called on.
    pub fn start(settings: Settings, meter: Meter, ledger: Ledger, metrics: Metrics) -> Flusher {
        let stop = CancellationToken::new();
        // Outside of the task, so that nothing is lost where a run of it panics.
        let waiting = Arc::new(Mutex::new(Tallies::default()));
        let (counting, stopping) = (metrics.clone(), stop.clone());
        let run = move || {
            let (meter, ledger, metrics) = (meter.clone(), ledger.clone(), counting.clone());
            run(settings, meter, ledger, metrics, stopping.clone(), waiting.clone())
        };
        let task = tokio::spawn(supervise("flush-metering", metrics, stop.clone(), run));
        Flusher { task, stop: stop.drop_guard() }
    }

    /// Writes what is left. To be called when the last body is over, and before the ledger is
    /// closed.
    pub async fn stop(self) {
        drop(self.stop);
        if self.task.await.is_err() {
            tracing::error!("the task that writes what was delivered had died");
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
        let lost = waiting.lost();
        if lost > 0 {
            tracing::error!(bytes = lost, "too many counts wait for the ledger: some were lost");
        }
        if let Err(error) = &written {
            tracing::error!(%error, stopped, "what was delivered could not be written; it is tried again");
        }
        metrics.metering_flush(written.is_ok());
        if stopped {
            return;
        }
    }
}

/// Writes everything, some at a time. What fails waits for the next time, with all that comes after
/// it.
async fn write(ledger: &Ledger, waiting: &mut Tallies) -> Result<(), LedgerError> {
    loop {
        let some: Arc<[Delivered]> = waiting.some(TOGETHER).into();
        if some.is_empty() {
            return Ok(());
        }
        match ledger.note_delivered(some.clone()).await {
            Ok(()) => {}
            // Whether it was written cannot be told, and what is written twice would claim too
            // much.
            Err(LedgerError::Closed) => return Err(LedgerError::Closed),
            Err(error) => {
                waiting.put_back(&some);
                return Err(error);
            }
        }
    }
}
