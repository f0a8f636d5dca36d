//! A test whether the ledger can be written now, for `/readyz`.
//!
//! The executors perform a real write. `/readyz` needs no token, so callers share the result: the
//! test writes at most one row a second, for any number of callers. So each test is of one lane, in
//! turn, and of the lanes whose connection is closed. A lane stays the next one while it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::command::{Command, Reply, Update};
use super::{Ledger, LedgerError};
use crate::telemetry::Metrics;

/// How long callers share a result.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(1);
/// The deadline of the test, and of waiting for another caller's test.
const DEADLINE: Duration = Duration::from_secs(2);

/// The cause for any failure of a database server. Its error, which the executor logs, contains the
/// names of its hosts, and `/readyz` needs no token.
const SERVER_FAILED: &str = "its database failed; the log has the error";

/// The last result with its time. A failure is a phrase.
type LastResult = Option<(Instant, Result<(), String>)>;

/// The write test and its last result.
#[derive(Clone, Debug)]
pub(super) struct WriteTest {
    pub(super) last: Arc<Mutex<LastResult>>,
    /// The number of the lane whose turn it is.
    turn: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl WriteTest {
    pub(super) fn new(metrics: Metrics) -> WriteTest {
        WriteTest { last: Arc::default(), turn: Arc::default(), metrics }
    }
}

impl Ledger {
    /// Tests that the ledger can be written, unless that was tested within the last second. Returns
    /// within two seconds.
    ///
    /// # Errors
    /// Returns the cause as a phrase without a path, a host or a value.
    pub async fn check_writable(&self) -> Result<(), String> {
        match timeout(DEADLINE, self.shared_write_test()).await {
            Ok(result) => result,
            Err(_) => {
                // On a hanging disk no write has failed yet, so the metric is set here. The next
                // successful write resets it.
                self.write_test.metrics.ledger_writable(false);
                Err(format!("no response within {} s", DEADLINE.as_secs()))
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
        // Stored first, so that the rate limit holds even if this future is dropped.
        let pending = Err("the last write test did not finish".to_owned());
        *last = Some((Instant::now(), pending));
        let turn = &self.write_test.turn;
        let lanes = self.lanes.to_test(turn.load(Ordering::Relaxed));
        let tests = lanes.into_iter().map(|lane| self.test_lane(lane));
        let result = try_join_all(tests).await.map(drop).map_err(|error| match error {
            _ if self.file.is_none() => SERVER_FAILED.to_owned(),
            LedgerError::Commit(why) => why,
            other => other.to_string(),
        });
        if result.is_ok() {
            turn.fetch_add(1, Ordering::Relaxed);
        }
        *last = Some((Instant::now(), result.clone()));
        result
    }

    pub(in crate::ledger) async fn test_lane(&self, lane: usize) -> Result<(), LedgerError> {
        let (reply, response) = Reply::new();
        self.lanes.send_to(lane, Command::Update(Update::Probe, reply)).await?;
        response.await.map_err(|_| LedgerError::Closed)?.map(drop)
    }
}
