//! Opens the connections of a pool, each in a task of its own.
//!
//! If the caller has given up, the pool keeps the connection for the next one. Callers share a
//! backoff.

use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::connect::phrase;
use super::super::session::Session;
use super::{Pool, State};
use crate::lock::lock;

/// The backoff after a failed attempt to connect, and the limit of its doubling.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Why the last attempt failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    why: String,
    backoff: Duration,
    retry_at: Instant,
}

/// What a task that opens a connection gives to its caller.
struct Opened {
    /// None if that failed.
    connection: Option<Session>,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Opens a connection, with a backoff that all callers share.
    pub(super) async fn open(
        &self,
        mut permit: OwnedSemaphorePermit,
        end: Instant,
    ) -> Result<(Session, OwnedSemaphorePermit), sqlx::Error> {
        loop {
            let failure = self.lock().failure.clone();
            if let Some(Failure { why, retry_at, .. }) = failure
                && retry_at > Instant::now()
            {
                if retry_at >= end {
                    sleep_until(end).await;
                    return Err(unavailable(why));
                }
                sleep_until(retry_at).await;
            }
            match timeout_at(end, self.start_to_open(permit)).await {
                Ok(Ok(Opened { connection: Some(connection), permit })) => {
                    return Ok((connection, permit));
                }
                Ok(Ok(Opened { connection: None, permit: returned })) => permit = returned,
                // The task has panicked, or the runtime stops.
                Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
                Err(_) => return Err(unavailable("no host responded in time".to_owned())),
            }
        }
    }

    /// Starts a task that opens a connection, within the `connect_timeout` of its connector.
    fn start_to_open(&self, permit: OwnedSemaphorePermit) -> oneshot::Receiver<Opened> {
        let (sender, receiver) = oneshot::channel();
        let (connector, purpose) = (self.connector.clone(), self.purpose);
        let (state, generation) = (self.state.clone(), self.lock().generation);
        self.runtime.spawn(async move {
            let connected = connector.session(purpose).await;
            let connection = {
                let mut state = lock(&state);
                match connected {
                    Ok(connection) => {
                        state.failure = None;
                        Some(connection)
                    }
                    Err(error) => {
                        state.record_failure(phrase(&error));
                        None
                    }
                }
            };
            // If the caller has given up, the next one gets the connection.
            if let Err(Opened { connection: Some(connection), permit }) =
                sender.send(Opened { connection, permit })
            {
                lock(&state).keep(connection, generation);
                drop(permit);
            }
        });
        receiver
    }
}

impl State {
    /// Records a failed attempt to connect. Concurrent failures count once.
    fn record_failure(&mut self, why: String) {
        let now = Instant::now();
        let backoff = match &self.failure {
            Some(failure) if failure.retry_at > now => return,
            Some(failure) => (failure.backoff * 2).min(MAX_BACKOFF),
            None => FIRST_BACKOFF,
        };
        self.failure = Some(Failure { why, backoff, retry_at: now + backoff });
    }
}

fn unavailable(why: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::NotConnected, why))
}
