//! The cap on connections to one server, over all workers, and the bounded queue for a free one.
//!
//! A connection holds a [`Slot`] until it is closed, also while it is idle. At the cap, an idle connection of any
//! worker is closed for the sake of a request; if there is none, the request waits. Pools call it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pool::Pool;
use super::socket::Server;

/// How often a full queue is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The right to one connection.
#[derive(Debug)]
pub(super) struct Slot {
    /// Frees the connection's place on drop.
    _permit: OwnedSemaphorePermit,
}

/// The limits of one origin, by server.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: usize,
    servers: Mutex<HashMap<Server, Arc<ConnectionLimit>>>,
}

impl ConnectionLimits {
    /// At most this many connections to each server, and as many requests that wait for one.
    pub(super) fn new(connections: usize) -> ConnectionLimits {
        ConnectionLimits(Arc::new(Inner { connections, servers: Mutex::default() }))
    }

    pub(super) fn of(&self, server: &Server) -> Arc<ConnectionLimit> {
        let mut servers = self.0.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(ConnectionLimit::new(server.clone(), self.0.connections));
        servers.entry(server.clone()).or_insert_with(new).clone()
    }

    /// Whether a request waits for a connection to any of them.
    pub(super) fn have_waiters(&self) -> bool {
        let servers = self.0.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.values().any(|limit| limit.has_waiters())
    }
}

#[derive(Debug)]
pub(super) struct ConnectionLimit {
    server: Server,
    connections: usize,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Every worker's pool for this server.
    pools: Mutex<Vec<Weak<Pool>>>,
    epoch: Instant,
    /// Milliseconds since the epoch from which a full queue is logged again.
    log_after: AtomicU64,
}

/// A request in the queue; leaves it on drop.
#[derive(Debug)]
pub(super) struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a waiter, who leaves on drop.
pub(super) fn enter(waiting: &AtomicUsize) -> Waiter<'_> {
    waiting.fetch_add(1, Ordering::SeqCst);
    Waiter(waiting)
}

impl ConnectionLimit {
    fn new(server: Server, connections: usize) -> ConnectionLimit {
        ConnectionLimit {
            server,
            connections,
            free: Arc::new(Semaphore::new(connections)),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
            epoch: Instant::now(),
            log_after: AtomicU64::new(0),
        }
    }

    /// Adds a pool whose idle connections may be closed for others.
    pub(super) fn register(&self, pool: Weak<Pool>) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|other| other.strong_count() > 0);
        pools.push(pool);
    }

    /// A slot, if one is free or can be freed by closing an idle connection.
    pub(super) fn try_slot(&self) -> Option<Slot> {
        self.free_slot().or_else(|| {
            self.close_idle();
            self.free_slot()
        })
    }

    fn free_slot(&self) -> Option<Slot> {
        self.free.clone().try_acquire_owned().ok().map(|permit| Slot { _permit: permit })
    }

    /// The next slot that becomes free.
    pub(super) async fn slot(&self) -> Option<Slot> {
        self.free.clone().acquire_owned().await.ok().map(|permit| Slot { _permit: permit })
    }

    /// A place in the queue; none where the queue is full.
    pub(super) fn queue(&self) -> Option<Waiter<'_>> {
        let waiter = enter(&self.waiting);
        (self.waiting.load(Ordering::SeqCst) <= self.connections).then_some(waiter)
    }

    /// Whether any worker's request waits.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Closes one idle connection, of whichever worker has one.
    pub(super) fn close_idle(&self) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = pools.iter().filter_map(Weak::upgrade).find_map(|pool| pool.pop_oldest());
        drop(closed);
    }

    /// Logs a refusal, once in a while.
    pub(super) fn log_refusal(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = |after: u64| (after <= now).then(|| now + LOG_INTERVAL.as_millis() as u64);
        if self.log_after.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            let (host, port, connections) = (&self.server.host, self.server.port, self.connections);
            tracing::warn!(
                host,
                port,
                connections,
                "all connections to an origin are in use; raise connections in [[origins]] if it can serve more"
            );
        }
    }
}
