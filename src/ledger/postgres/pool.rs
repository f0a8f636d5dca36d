//! A bounded pool of connections for short transactions.
//!
//! The queries of the store use it; the writers, the lease and the feed have connections of
//! their own. Every call ends by its deadline, whatever the server or the network does:
//!
//! - A caller waits at most [`ACQUIRE`] for a connection, and only [`MAX_WAITERS`] wait at once.
//! - A transaction that is not finished by its deadline loses its connection, which is closed and
//!   never reused. So does one whose future is dropped.
//! - An error that concerns the server closes all connections, so that the next callers find the
//!   new primary.
//!
//! A task opens each connection (`opening`) and keeps it for the next caller if the first one has
//! given up. So a server that needs longer than callers wait gets its connections in the end.
//!
//! A connection is tested by the `BEGIN` of the next transaction. If a reused one fails there, the
//! transaction starts again on another.

mod opening;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::connect::{Connector, Purpose, no_response};
use super::server_error;
use super::session::Session;
use opening::Failure;

/// How long a caller waits for a connection.
pub(in crate::ledger) const ACQUIRE: Duration = Duration::from_secs(2);
/// The maximum number of callers that wait. Twenty connections serve that many short queries in
/// much less than [`ACQUIRE`].
const MAX_WAITERS: usize = 4096;
/// The longest deadline of a transaction in this process. The server ends a statement earlier
/// ([`BEGIN`]), so a caller usually gets the server's error.
pub(in crate::ledger) const TRANSACTION: Duration = Duration::from_secs(5);
/// The deadline of `BEGIN` on a reused connection. It needs no lock and no disk. A caller has this
/// time left when its wait for others ends: if it had less, overload would look like a broken
/// connection, and closing that would add to the overload.
const REUSE: Duration = Duration::from_millis(700);
/// How long an unused connection is kept. Firewalls drop idle connections without a word.
const MAX_IDLE: Duration = Duration::from_secs(240);
/// Begins a transaction that writes. The server ends a statement after 4 s, a wait for a lock after
/// 3 s, and a transaction that stays idle after 5 s. Without these limits a stalled client would
/// hold its locks, and the change feed would have to read back further. `SET LOCAL` ends with the
/// transaction, so it also works behind a pooler.
pub(in crate::ledger) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = 4000; \
    SET LOCAL lock_timeout = 3000; \
    SET LOCAL idle_in_transaction_session_timeout = 5000";
/// Begins a transaction that only reads, with the same limits.
pub(in crate::ledger) const BEGIN_READ_ONLY: &str = "BEGIN ISOLATION LEVEL READ COMMITTED \
    READ ONLY; \
    SET LOCAL statement_timeout = 4000; \
    SET LOCAL lock_timeout = 3000; \
    SET LOCAL idle_in_transaction_session_timeout = 5000";

/// A pool of connections with one purpose.
#[derive(Debug)]
pub(in crate::ledger) struct Pool {
    connector: Connector,
    purpose: Purpose,
    /// Opens the connections, and has their sockets, whoever asks for one.
    runtime: Handle,
    permits: Arc<Semaphore>,
    waiters: AtomicUsize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<(Session, Instant)>,
    /// Increases when all connections are discarded. A connection of an earlier one is closed.
    generation: u64,
    is_closed: bool,
    /// Why the last attempt to connect failed, and when the next may start.
    failure: Option<Failure>,
}

/// A connection in use. Unless [`Pool::put_back`] gets it, it is closed.
struct Acquired {
    connection: Session,
    is_reused: bool,
    generation: u64,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Creates a pool of at most `size` connections. Nothing connects yet.
    pub(in crate::ledger) fn new(connector: Connector, purpose: Purpose, size: u32) -> Pool {
        Pool {
            connector,
            purpose,
            runtime: Handle::current(),
            permits: Arc::new(Semaphore::new(size as usize)),
            waiters: AtomicUsize::new(0),
            state: Arc::default(),
        }
    }

    /// Runs queries in a transaction that only reads. It ends by `deadline`, waiting included.
    ///
    /// # Errors
    /// Returns the error of the database, of connecting, or of the deadline.
    pub(in crate::ledger) async fn read<T>(
        &self,
        deadline: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        self.transaction(BEGIN_READ_ONLY, deadline, work).await
    }

    /// Runs statements in a transaction that starts with `begin`, and commits it. It ends by
    /// `deadline`, waiting included.
    ///
    /// # Errors
    /// Returns the error of the database, of connecting, or of the deadline. The transaction is
    /// rolled back, but if its commit failed or met the deadline, that is uncertain.
    pub(in crate::ledger) async fn transaction<T>(
        &self,
        begin: &'static str,
        deadline: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let end = Instant::now() + deadline;
        let mut acquired = self.begin(begin, end).await?;
        let ran = timeout_at(end, async {
            let result = work(&mut acquired.connection).await;
            let sql = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = sqlx::raw_sql(sql).execute(&mut *acquired.connection).await;
            (result, ended)
        });
        match ran.await {
            Ok((Ok(value), Ok(_))) => {
                self.put_back(acquired);
                Ok(value)
            }
            Ok((Err(error), Ok(_))) if !server_error::is_of_connection(&error) => {
                self.put_back(acquired);
                Err(error)
            }
            Ok((Err(error), _) | (Ok(_), Err(error))) => {
                self.after_error(&error, acquired.generation);
                Err(error)
            }
            Err(_) => Err(no_response(deadline)),
        }
    }

    /// Closes all idle connections. No caller can acquire one afterwards.
    pub(in crate::ledger) async fn close(&self) {
        self.permits.close();
        let idle = {
            let mut state = self.lock();
            state.is_closed = true;
            std::mem::take(&mut state.idle)
        };
        for (connection, _) in idle {
            let _ = timeout_at(Instant::now() + REUSE, connection.close()).await;
        }
    }

    /// Acquires a connection and begins a transaction on it.
    async fn begin(&self, sql: &'static str, end: Instant) -> Result<Acquired, sqlx::Error> {
        let end = end.min(Instant::now() + ACQUIRE);
        let mut permit = Some(self.permit(end.checked_sub(REUSE).unwrap_or(end)).await?);
        while let Some(taken) = permit.take() {
            let mut acquired = self.connection(taken, end).await?;
            let began = Instant::now();
            let reused_until = began + REUSE;
            let limit = if acquired.is_reused { end.min(reused_until) } else { end };
            let begun = timeout_at(limit, acquired.connection.begin(sql)).await;
            // A caller that had too little time has proved nothing.
            let (error, is_proof, is_repeatable) = match begun {
                Ok(Ok(())) => return Ok(acquired),
                Ok(Err((error, found_pooler))) => (error, true, found_pooler),
                Err(_) => (no_response(began.elapsed()), limit == reused_until, false),
            };
            let Acquired { connection, is_reused, generation, permit: kept } = acquired;
            drop(connection);
            if is_proof {
                // What breaks one idle connection has usually broken all.
                self.discard_all(generation);
            }
            if !(is_reused || is_repeatable) || Instant::now() >= end {
                return Err(error);
            }
            permit = Some(kept);
        }
        Err(sqlx::Error::PoolTimedOut)
    }

    /// Waits for the right to use a connection.
    async fn permit(&self, end: Instant) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let waiter = Waiter::new(&self.waiters).ok_or(sqlx::Error::PoolTimedOut)?;
        let acquired = timeout_at(end, self.permits.clone().acquire_owned()).await;
        drop(waiter);
        match acquired {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// Takes an idle connection, or opens one.
    async fn connection(
        &self,
        permit: OwnedSemaphorePermit,
        end: Instant,
    ) -> Result<Acquired, sqlx::Error> {
        let (idle, generation, expired) = {
            let mut state = self.lock();
            // The newest is last. If it is too old, all are.
            let newest = state.idle.pop();
            let is_usable = newest.as_ref().is_some_and(|(_, since)| since.elapsed() < MAX_IDLE);
            match is_usable {
                true => (newest, state.generation, Vec::new()),
                false => (None, state.generation, std::mem::take(&mut state.idle)),
            }
        };
        drop(expired);
        let is_reused = idle.is_some();
        let (connection, permit) = match idle {
            Some((connection, _)) => (connection, permit),
            None => self.open(permit, end).await?,
        };
        Ok(Acquired { connection, is_reused, generation, permit })
    }

    fn put_back(&self, acquired: Acquired) {
        self.lock().keep(acquired.connection, acquired.generation);
    }

    /// Closes all connections if the error concerns the server and not only one connection.
    fn after_error(&self, error: &sqlx::Error, generation: u64) {
        if server_error::is_of_server(error) {
            self.discard_all(generation);
        }
    }

    /// Closes the connections of this generation: idle ones now, and others after their use.
    fn discard_all(&self, generation: u64) {
        let discarded = {
            let mut state = self.lock();
            if state.generation != generation {
                return;
            }
            state.generation += 1;
            std::mem::take(&mut state.idle)
        };
        drop(discarded);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        crate::lock::lock(&self.state)
    }
}

impl State {
    /// Keeps an unused connection, unless all of its generation were discarded.
    fn keep(&mut self, connection: Session, generation: u64) {
        if generation == self.generation && !self.is_closed {
            self.idle.push((connection, Instant::now()));
        }
    }
}

/// A caller that waits for a connection.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    /// Counts the caller; none if too many wait.
    fn new(count: &'a AtomicUsize) -> Option<Waiter<'a>> {
        let waiter = Waiter(count);
        let before = count.fetch_add(1, Ordering::Relaxed);
        (before < MAX_WAITERS).then_some(waiter)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
