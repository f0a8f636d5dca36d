//! The write connection: closed after every failed transaction, and reopened with a backoff.
//!
//! The executor owns it. When the disk is full or an I/O error occurs, SQLite rolls the transaction
//! back, and sqlx does not notice: its transaction depth stays at 1, and every later `BEGIN` fails.
//! A connection that has failed once is therefore never used again. A new one counts as open only
//! after a probe row is committed through it, so a disk that is still full costs one attempt per
//! backoff and not one per command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::store::{LedgerStore, StoreConnection, reason};

/// The deadline of one attempt to reopen.
const REOPEN_DEADLINE: Duration = Duration::from_secs(2);
/// The deadline for closing a failed connection. If the disk hangs, its thread ends later.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);
/// The backoff after the second failure in a row, and the limit of its doubling. After the first
/// failure there is no wait.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// A write connection that is closed between a failure and the next successful reopening.
pub(super) struct WriteConnection<S: LedgerStore> {
    store: S,
    state: State<S::Connection>,
    /// The number of failures since the last committed batch.
    failures: u32,
    /// Whether it is open, for `/readyz`.
    is_open: Arc<AtomicBool>,
}

enum State<C> {
    Open(C),
    Closed(Closed),
}

/// Why there is no connection, since when, and when to try again.
struct Closed {
    why: String,
    since: Instant,
    retry_at: Instant,
}

impl<S: LedgerStore> WriteConnection<S> {
    pub(super) fn new(store: S, open: S::Connection) -> WriteConnection<S> {
        let is_open = Arc::new(AtomicBool::new(true));
        WriteConnection { store, state: State::Open(open), failures: 0, is_open }
    }

    /// Returns a flag that says whether the connection is open.
    pub(super) fn is_open(&self) -> Arc<AtomicBool> {
        self.is_open.clone()
    }

    /// Returns the connection, or why there is none.
    pub(super) fn get(&mut self) -> Result<&mut S::Connection, &str> {
        match &mut self.state {
            State::Open(connection) => Ok(connection),
            State::Closed(closed) => Err(&closed.why),
        }
    }

    /// Returns the time of the next attempt to reopen; none while the connection is open.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match &self.state {
            State::Open(_) => None,
            State::Closed(closed) => Some(closed.retry_at),
        }
    }

    /// Records that a batch was committed: the next failure is a first one again.
    pub(super) fn committed(&mut self) {
        self.failures = 0;
    }

    /// Closes the connection after a failure, which releases its lock on the ledger.
    pub(super) async fn discard(&mut self, why: String) {
        self.is_open.store(false, Ordering::Relaxed);
        let now = Instant::now();
        let (since, connection) = match std::mem::replace(
            &mut self.state,
            State::Closed(Closed { why, since: now, retry_at: now + backoff(self.failures) }),
        ) {
            State::Open(connection) => (now, Some(connection)),
            State::Closed(closed) => (closed.since, None),
        };
        self.failures = self.failures.saturating_add(1);
        if let State::Closed(closed) = &mut self.state {
            closed.since = since;
        }
        if let Some(connection) = connection {
            // After the deadline, the thread of the connection closes it once the disk responds.
            let _ = timeout(CLOSE_DEADLINE, connection.close()).await;
        }
    }

    /// Opens a connection and commits a probe row through it. Returns how long it was closed.
    ///
    /// # Errors
    /// Returns the cause as a phrase. The next attempt waits longer.
    pub(super) async fn reopen(&mut self, now: Timestamp) -> Result<Duration, String> {
        let State::Closed(closed) = &self.state else { return Ok(Duration::ZERO) };
        let since = closed.since;
        let opened = match timeout(REOPEN_DEADLINE, self.store.connect(now)).await {
            Ok(opened) => opened.map_err(|error| reason(&error)),
            Err(_) => Err(format!("no response within {} s", REOPEN_DEADLINE.as_secs())),
        };
        match opened {
            Ok(connection) => {
                self.state = State::Open(connection);
                self.is_open.store(true, Ordering::Relaxed);
                Ok(since.elapsed())
            }
            Err(why) => {
                self.discard(why.clone()).await;
                Err(why)
            }
        }
    }
}

fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_BACKOFF.saturating_mul(1 << doublings.min(8)).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_starts_at_zero_and_ends_at_a_second() {
        let waits: Vec<u128> =
            [0, 1, 2, 3, 6, 1000].map(|failures| backoff(failures).as_millis()).into();
        assert_eq!(waits, [0, 50, 100, 200, 1000, 1000]);
    }
}
