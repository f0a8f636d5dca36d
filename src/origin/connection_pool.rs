//! The connections to one server that wait for their next request; one worker's.
//!
//! All workers together have no more connections to a server than its `ConnectionLimit` allows. A
//! request without one waits in a bounded queue for a bounded time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Response;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use super::connection_limit::{ConnectionLimit, ConnectionLimits, Slot, enter};
use super::exchange::{Connection, Failure, Incoming};
use super::socket::{Server, Socket};
use crate::buffer_budget::Buffers;

/// How long a connection is kept that nobody uses, and how many are.
const MAX_IDLE: Duration = Duration::from_secs(30);
const SWEEPS: u64 = 4;
const MAX_IDLE_CONNECTIONS: usize = 1024;

/// How connections are made.
#[derive(Clone)]
pub(super) struct ConnectSettings {
    pub(super) tls: TlsConnector,
    pub(super) connect_timeout: Duration,
    /// How long a request may wait for a connection while all are in use.
    pub(super) queue_timeout: Duration,
    pub(super) buffers: Buffers,
    pub(super) limits: ConnectionLimits,
}

/// A server, the way to it, and its idle connections.
pub(super) struct Pool {
    server: Server,
    settings: ConnectSettings,
    idle: Mutex<Idle>,
    limit: Arc<ConnectionLimit>,
    /// This worker's requests in the queue, and their wake-up when a connection here becomes idle.
    waiting: AtomicUsize,
    freed: Notify,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last is the last one. Each with the number of sweeps there had been.
    connections: Vec<(u64, Connection)>,
    sweeps: u64,
    /// Whether somebody looks for those that are too old.
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

    /// What the bodies of its answers may hold.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.settings.buffers
    }

    /// Sends a request once and returns its response; `fresh`: on a new connection.
    ///
    /// # Errors
    /// [`Failure`]. [`Failure::Stale`] is worth another try on a new connection.
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

    /// A new connection, or the next one that becomes idle unless it must be `fresh`.
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

    /// Waits for a slot, or else (in the error) for an idle connection.
    async fn wait(&self, fresh: bool) -> Result<Slot, Connection> {
        let _waiter = enter(&self.waiting);
        loop {
            // A connection may have become idle before this request was in the queue.
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

    /// The connection that was used last and on which nothing has come since.
    fn take(&self) -> Option<Connection> {
        loop {
            let (_, mut connection) = self.idle().connections.pop()?;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
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

    /// Hands the newest idle connection to a request of this worker's that waits, or its slot to
    /// one of another's.
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

    /// Closes those that are too old; false where none is left.
    fn close_old(&self) -> bool {
        let mut idle = self.idle();
        idle.sweeps += 1;
        let oldest = idle.sweeps.saturating_sub(SWEEPS);
        let young = idle.connections.partition_point(|(since, _)| *since < oldest);
        let old: Vec<_> = idle.connections.drain(..young).collect();
        idle.is_swept = !idle.connections.is_empty();
        let is_swept = idle.is_swept;
        drop(idle);
        drop(old);
        is_swept
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what is too old, for as long as any connection is idle.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(MAX_IDLE.div_f64(SWEEPS as f64)).await;
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
