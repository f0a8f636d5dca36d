//! The pool of idle connections to one server. Each worker has its own.
//!
//! `ConnectionLimit` caps the connections of all workers. At the cap, a request waits in a bounded
//! queue for a bounded time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use http::Response;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use super::connection_limit::{ConnectionLimit, ConnectionLimits, Slot, count_waiter};
use super::exchange::{Connection, Failure, Incoming};
use super::socket::{Server, Socket};
use crate::buffer_budget::Buffers;
use crate::lock::lock;

/// Longest idle time of a connection, the sweeps within it, and most idle connections of a pool.
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);
const MAX_AGE_SWEEPS: u64 = 4;
const MAX_IDLE_CONNECTIONS: usize = 1024;

/// Settings for new connections.
#[derive(Clone)]
pub(super) struct ConnectSettings {
    pub(super) tls: TlsConnector,
    pub(super) connect_timeout: Duration,
    /// How long a request may wait for a connection while all are in use.
    pub(super) queue_timeout: Duration,
    pub(super) buffers: Buffers,
    pub(super) limits: ConnectionLimits,
}

/// A server and its idle connections.
pub(super) struct Pool {
    server: Server,
    settings: ConnectSettings,
    idle: Mutex<Idle>,
    limit: Arc<ConnectionLimit>,
    /// Number of this worker's requests in the queue.
    waiting: AtomicUsize,
    /// Wakes one of them when a connection becomes idle.
    freed: Notify,
}

#[derive(Default)]
struct Idle {
    /// Sorted by last use, the newest last. The number is the value of `sweeps` at that time.
    connections: Vec<(u64, Connection)>,
    sweeps: u64,
    /// Whether a sweep task runs.
    is_swept: bool,
}

impl Pool {
    pub(super) fn new(server: Server, settings: ConnectSettings) -> Arc<Pool> {
        let limit = settings.limits.of(&server);
        let (idle, waiting, freed) = (Mutex::default(), AtomicUsize::new(0), Notify::new());
        let pool = Arc::new(Pool { server, settings, idle, limit, waiting, freed });
        pool.limit.register(Arc::downgrade(&pool));
        pool
    }

    /// Returns the buffer budget for response bodies.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.settings.buffers
    }

    /// Sends a request once and returns its response. With `fresh`, it uses a new connection.
    ///
    /// # Errors
    /// Returns a [`Failure`]. After [`Failure::Stale`], retry on a new connection.
    pub(super) async fn send(
        self: &Arc<Pool>,
        request: &[u8],
        to_head: bool,
        fresh: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let idle = if fresh { None } else { self.take() };
        let connection = match idle {
            Some(idle) => idle,
            None => Box::pin(self.connection(fresh)).await?,
        };
        connection.send(request, to_head, self).await
    }

    /// Returns a new connection, or the next one that becomes idle unless `fresh` is set.
    async fn connection(&self, fresh: bool) -> Result<Connection, Failure> {
        if let Some(slot) = self.limit.try_slot() {
            return self.connect(slot).await;
        }
        let Some(_in_queue) = self.limit.queue() else {
            self.limit.log_refusal();
            return Err(Failure::Busy);
        };
        let waited = tokio::time::timeout(self.settings.queue_timeout, self.wait(fresh)).await;
        match waited {
            Ok(Ok(slot)) => self.connect(slot).await,
            Ok(Err(idle)) => Ok(idle),
            Err(_) => {
                self.limit.log_refusal();
                Err(Failure::Busy)
            }
        }
    }

    /// Waits for a slot for a new connection, or for an idle connection (returned as the error).
    async fn wait(&self, fresh: bool) -> Result<Slot, Connection> {
        let _waiter = count_waiter(&self.waiting);
        loop {
            // A connection may have become idle before this request entered the queue.
            match if fresh { None } else { self.take() } {
                Some(idle) => return Err(idle),
                None => self.limit.close_idle(),
            }
            tokio::select! {
                Some(slot) = self.limit.slot() => return Ok(slot),
                () = self.freed.notified() => {}
            }
        }
    }

    async fn connect(&self, slot: Slot) -> Result<Connection, Failure> {
        let ConnectSettings { tls, connect_timeout, .. } = &self.settings;
        let socket = Socket::connect(&self.server, tls, *connect_timeout).await;
        let socket = socket.map_err(|error| match Failure::is_of_descriptors(&error) {
            true => Failure::Busy,
            false => Failure::Unreachable(error.to_string()),
        })?;
        Ok(Connection::new(socket, slot))
    }

    /// Removes the connection that has been idle for longest.
    pub(super) fn pop_oldest(&self) -> Option<Connection> {
        let mut idle = self.idle();
        (!idle.connections.is_empty()).then(|| idle.connections.remove(0).1)
    }

    /// Removes the most recently used connection on which nothing has arrived since.
    fn take(&self) -> Option<Connection> {
        loop {
            let (_, mut connection) = self.idle().connections.pop()?;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Stores a connection for the next request.
    pub(super) fn put(self: &Arc<Pool>, connection: Connection) {
        let mut idle = self.idle();
        if idle.connections.len() < MAX_IDLE_CONNECTIONS {
            let sweeps = idle.sweeps;
            idle.connections.push((sweeps, connection));
        }
        let runtime = Handle::try_current().ok().filter(|_| !idle.is_swept);
        idle.is_swept |= runtime.is_some();
        drop(idle);
        if let Some(runtime) = runtime {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
        self.wake_waiter();
    }

    /// Wakes a waiting request. One of this worker takes the idle connection; one of another worker
    /// takes the slot of that connection.
    fn wake_waiter(&self) {
        if !self.limit.has_waiters() {
            return;
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
        } else {
            self.limit.close_idle();
        }
    }

    /// Closes expired connections. Returns false if no idle connection is left.
    fn close_old(&self) -> bool {
        let mut idle = self.idle();
        idle.sweeps += 1;
        let oldest = idle.sweeps.saturating_sub(MAX_AGE_SWEEPS);
        let first_recent = idle.connections.partition_point(|(since, _)| *since < oldest);
        let old: Vec<_> = idle.connections.drain(..first_recent).collect();
        idle.is_swept = !idle.connections.is_empty();
        let is_swept = idle.is_swept;
        drop(idle);
        drop(old);
        is_swept
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        lock(&self.idle)
    }
}

/// Closes expired connections until no connection is idle.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(MAX_IDLE_TIME.div_f64(MAX_AGE_SWEEPS as f64)).await;
        match pool.upgrade() {
            Some(pool) if pool.close_old() => {}
            _ => return,
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("server", &self.server).finish_non_exhaustive()
    }
}
