//! The answer to "can the ledger be written now?", for `/readyz`.
//!
//! The test is a real write by the writing task. `/readyz` needs no token, so the result is shared:
//! however many callers there are, the test writes one row a second at most.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};

use super::{Ledger, LedgerError, write::Command};
use crate::telemetry::Metrics;

/// How long a result is shared.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// Deadline of the test, and of waiting for the test of another caller.
const DEADLINE: Duration = Duration::from_secs(2);

/// The last result, as a phrase where the write failed.
type LastResult = Option<(Instant, Result<(), String>)>;

/// The last result of the write test.
#[derive(Clone, Debug)]
pub(super) struct WriteTest {
    pub(super) last: Arc<Mutex<LastResult>>,
    metrics: Metrics,
}

impl WriteTest {
    pub(super) fn new(metrics: Metrics) -> WriteTest {
        WriteTest { last: Arc::default(), metrics }
    }
}

impl Ledger {
    /// Writes a row, unless that was tried within the last second. Returns within two seconds.
    ///
    /// # Errors
    /// Why the ledger cannot be written, as a phrase without a path or a value.
    pub async fn check_writable(&self) -> Result<(), String> {
        match timeout(DEADLINE, self.shared_write_test()).await {
            Ok(result) => result,
            Err(_) => {
                // A disk that hangs fails no write for now. The next write that succeeds sets it
                // again.
                self.write_test.metrics.ledger_writable(false);
                Err(format!("no answer within {} s", DEADLINE.as_secs()))
            }
        }
    }

    async fn shared_write_test(&self) -> Result<(), String> {
        let mut last = self.write_test.last.lock().await;
        if let Some((at, result)) = last.as_ref()
            && at.elapsed() < SHARED_FOR
        {
            return result.clone();
        }
        // Stored first: when this caller hangs up or the deadline passes, the rate limit still
        // holds.
        let pending = Err("the last write test did not finish".to_owned());
        *last = Some((Instant::now(), pending));
        let (answer, answered) = oneshot::channel();
        let result = match self.send(Command::TestWrite { answer }).await {
            Ok(()) => answered.await.map_err(|_| LedgerError::Closed).and_then(|result| result),
            Err(error) => Err(error),
        };
        let result = result.map(drop).map_err(|error| match error {
            LedgerError::Commit(why) => why,
            other => other.to_string(),
        });
        *last = Some((Instant::now(), result.clone()));
        result
    }
}
