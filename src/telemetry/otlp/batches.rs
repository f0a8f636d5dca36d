//! Takes what waits in a queue as batches of a bounded size.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

/// The most spans or log lines in one request.
const MAX_BATCH: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_secs(1);

/// The batches of a queue.
pub(super) struct Batches<'q, T> {
    queue: &'q mut Receiver<T>,
    stopping: &'q CancellationToken,
}

impl<'q, T> Batches<'q, T> {
    pub(super) fn new(
        queue: &'q mut Receiver<T>,
        stopping: &'q CancellationToken,
    ) -> Batches<'q, T> {
        Batches { queue, stopping }
    }

    /// Waits for the next batch. Returns none once the process stops and the queue is empty.
    pub(super) async fn next(&mut self) -> Option<Vec<T>> {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let first = self.queue.recv_many(&mut batch, MAX_BATCH);
        if self.stopping.run_until_cancelled(first).await.is_some() && batch.len() < MAX_BATCH {
            let more = tokio::time::sleep(LINGER);
            self.stopping.run_until_cancelled(more).await;
        }
        while batch.len() < MAX_BATCH {
            match self.queue.try_recv() {
                Ok(item) => batch.push(item),
                Err(_) => break,
            }
        }
        if batch.is_empty() {
            // Its senders are gone, or the process stops.
            self.stopping.cancelled().await;
            return None;
        }
        Some(batch)
    }
}
