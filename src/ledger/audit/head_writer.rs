//! Writes the head file about once a second, beside the executor's transactions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::chain_heads::ChainHeads;
use super::{Head, head_file};
use crate::loan::LibraryId;
use crate::telemetry::LogLimit;

/// The interval between writes of the head file.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The deadline of the last write.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// Where the executor records the newest link after each commit.
pub(in crate::ledger) enum HeadRecorder {
    /// The head file of a ledger with one chain.
    File(HeadWriter),
    /// The chains of this process, which a task of their own writes to a file.
    Chains(Arc<ChainHeads>),
}

impl HeadRecorder {
    /// Returns the time of the next work; none if there is none.
    pub(in crate::ledger) fn wake_at(&self) -> Option<Instant> {
        match self {
            HeadRecorder::File(writer) => writer.wake_at(),
            HeadRecorder::Chains(_) => None,
        }
    }

    /// Does the work of that time.
    pub(in crate::ledger) async fn wake(&mut self) {
        if let HeadRecorder::File(writer) = self {
            writer.wake().await;
        }
    }

    /// Records a committed link. `library` is that of the transaction.
    pub(in crate::ledger) async fn record(&mut self, library: Option<LibraryId>, head: Head) {
        match (self, library) {
            (HeadRecorder::File(writer), _) => writer.record(head).await,
            (HeadRecorder::Chains(chains), Some(library)) => chains.record(library, head),
            (HeadRecorder::Chains(_), None) => {}
        }
    }

    /// Writes the newest link and waits until it is durable. Used on closing.
    pub(in crate::ledger) async fn flush(&mut self) {
        match self {
            HeadRecorder::File(writer) => writer.flush().await,
            HeadRecorder::Chains(chains) => chains.flush().await,
        }
    }
}

/// The newest link, and the write of it in progress.
pub(in crate::ledger) struct HeadWriter {
    ledger: PathBuf,
    /// The name of this process.
    process: String,
    /// The newest committed link, until the head file has it.
    head: Option<Head>,
    /// When to write next.
    write_at: Instant,
    /// The write in progress. Returns the link if it fails.
    write: Option<JoinHandle<Option<Head>>>,
}

impl HeadWriter {
    /// Creates a writer that first writes this link.
    pub(in crate::ledger) fn new(ledger: &Path, process: &str, head: Head) -> HeadWriter {
        HeadWriter {
            ledger: ledger.to_owned(),
            process: process.to_owned(),
            head: (head.number > 0).then_some(head),
            write_at: Instant::now(),
            write: None,
        }
    }

    /// Returns the time of the next work; none if the head file has the newest link.
    pub(in crate::ledger) fn wake_at(&self) -> Option<Instant> {
        (self.head.is_some() || self.write.is_some()).then_some(self.write_at)
    }

    /// Records a committed link. The head file has it within [`WRITE_INTERVAL`]. An empty trail has
    /// none.
    pub(in crate::ledger) async fn record(&mut self, head: Head) {
        if head.number == 0 {
            return;
        }
        if self.head.is_none() && self.write.is_none() {
            self.write_at = Instant::now() + WRITE_INTERVAL;
        }
        self.head = Some(head);
        self.wake().await;
    }

    /// Starts a write if it is time for one.
    pub(in crate::ledger) async fn wake(&mut self) {
        if self.write_at <= Instant::now() {
            self.start_write().await;
        }
    }

    /// Starts to write the head file, unless a write is in progress. It runs on a blocking thread
    /// so that a hanging disk does not stop the commands.
    async fn start_write(&mut self) {
        self.write_at = Instant::now() + WRITE_INTERVAL;
        if let Some(write) = self.write.take_if(|write| write.is_finished())
            && let Ok(Some(failed)) = write.await
        {
            // Retry at the next interval, with the newer link if there is one.
            self.head.get_or_insert(failed);
            return;
        }
        if self.write.is_none()
            && let Some(head) = self.head.take()
        {
            let (ledger, process) = (self.ledger.clone(), self.process.clone());
            self.write = Some(tokio::task::spawn_blocking(move || store(&ledger, &process, head)));
        }
    }

    /// Writes the newest link and waits until it is durable. Used on closing.
    pub(in crate::ledger) async fn flush(&mut self) {
        let finish = async {
            for _ in 0..2 {
                if let Some(write) = self.write.take()
                    && let Ok(Some(failed)) = write.await
                {
                    self.head.get_or_insert(failed);
                }
                self.start_write().await;
            }
            if let Some(write) = self.write.take() {
                let _ = write.await;
            }
        };
        if timeout(FLUSH_DEADLINE, finish).await.is_err() {
            tracing::warn!("timed out while writing the head file of the audit trail");
        }
    }
}

/// Writes the head file. Returns the link if that fails.
fn store(ledger: &Path, process: &str, head: Head) -> Option<Head> {
    static LIMIT: LogLimit = LogLimit::per_minute();
    let error = head_file::store(ledger, process, &head).err()?;
    if let Some(suppressed) = LIMIT.permit("write") {
        tracing::warn!(
            %error,
            suppressed,
            "cannot write the head file of the audit trail; retrying"
        );
    }
    Some(head)
}
