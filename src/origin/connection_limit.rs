//! The cap on connections to one server, or on open files of one directory, over all workers, and
//! the bounded queue for a free one.
//!
//! A connection holds a [`Slot`] until it is closed, also while it is idle. At the cap, a request
//! closes an idle connection of any worker. If none is idle, the request waits. Pools and
//! directories call it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection_pool::Pool;
use super::socket::Server;

use crate::lock::lock;

/// Shortest interval between two log lines about a full queue.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The right to one connection or open file.
#[derive(Debug)]
pub(super) struct Slot {
    /// Frees the slot on drop.
    _permit: OwnedSemaphorePermit,
}

/// The limits of one origin, by server or directory.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: usize,
    files: usize,
    by_name: Mutex<HashMap<String, Arc<ConnectionLimit>>>,
}

impl ConnectionLimits {
    /// Creates limits for the connections to each server and the open files of each directory. As
    /// many requests may wait.
    pub(super) fn new(connections: usize, files: usize) -> ConnectionLimits {
        ConnectionLimits(Arc::new(Inner { connections, files, by_name: Mutex::default() }))
    }

    pub(super) fn of(&self, server: &Server) -> Arc<ConnectionLimit> {
        let scheme = if server.secure { "https" } else { "http" };
        self.named(format!("{scheme}://{}:{}", server.host, server.port), self.0.connections)
    }

    pub(super) fn of_directory(&self, directory: &Path) -> Arc<ConnectionLimit> {
        self.named(format!("file://{}", directory.display()), self.0.files)
    }

    fn named(&self, name: String, most: usize) -> Arc<ConnectionLimit> {
        let mut limits = lock(&self.0.by_name);
        limits
            .entry(name.clone())
            .or_insert_with(|| Arc::new(ConnectionLimit::new(name, most)))
            .clone()
    }

    /// Returns whether a request waits for any of these connections or files.
    pub(super) fn have_waiters(&self) -> bool {
        let limits = lock(&self.0.by_name);
        limits.values().any(|limit| limit.has_waiters())
    }
}

#[derive(Debug)]
pub(super) struct ConnectionLimit {
    /// The address, as logs name it.
    name: String,
    most: usize,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Every worker's pool for this server.
    pools: Mutex<Vec<Weak<Pool>>>,
    epoch: Instant,
    /// Milliseconds since the epoch from which a full queue is logged again.
    log_after: AtomicU64,
}

/// A request in the queue. It leaves the queue on drop.
#[derive(Debug)]
pub(super) struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a waiter until it is dropped.
pub(super) fn count_waiter(waiting: &AtomicUsize) -> Waiter<'_> {
    waiting.fetch_add(1, Ordering::SeqCst);
    Waiter(waiting)
}

impl ConnectionLimit {
    fn new(name: String, most: usize) -> ConnectionLimit {
        ConnectionLimit {
            name,
            most,
            free: Arc::new(Semaphore::new(most)),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
            epoch: Instant::now(),
            log_after: AtomicU64::new(0),
        }
    }

    /// Registers a pool whose idle connections may be closed for other requests.
    pub(super) fn register(&self, pool: Weak<Pool>) {
        let mut pools = lock(&self.pools);
        pools.retain(|other| other.strong_count() > 0);
        pools.push(pool);
    }

    /// Returns a slot if one is free, or can be freed by closing an idle connection.
    pub(super) fn try_slot(&self) -> Option<Slot> {
        self.free_slot().or_else(|| {
            self.close_idle();
            self.free_slot()
        })
    }

    fn free_slot(&self) -> Option<Slot> {
        self.free.clone().try_acquire_owned().ok().map(|permit| Slot { _permit: permit })
    }

    /// Waits at most `timeout` for a file slot. Returns `None` on a full queue or a timeout.
    pub(super) async fn slot_within(&self, timeout: Duration) -> Option<Slot> {
        if let Some(slot) = self.free_slot() {
            return Some(slot);
        }
        let queued = async {
            let _in_queue = self.queue()?;
            self.slot().await
        };
        let slot = tokio::time::timeout(timeout, queued).await.ok().flatten();
        if slot.is_none() {
            self.log_refusal();
        }
        slot
    }

    /// Waits for a free slot.
    pub(super) async fn slot(&self) -> Option<Slot> {
        self.free.clone().acquire_owned().await.ok().map(|permit| Slot { _permit: permit })
    }

    /// Enters the queue. Returns `None` if it is full.
    pub(super) fn queue(&self) -> Option<Waiter<'_>> {
        let waiter = count_waiter(&self.waiting);
        (self.waiting.load(Ordering::SeqCst) <= self.most).then_some(waiter)
    }

    /// Returns whether a request of any worker waits.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Closes one idle connection of any worker.
    pub(super) fn close_idle(&self) {
        let pools = lock(&self.pools).clone();
        let closed = pools.iter().filter_map(Weak::upgrade).find_map(|pool| pool.pop_oldest());
        drop(closed);
    }

    /// Logs a refusal, at most once per [`LOG_INTERVAL`].
    pub(super) fn log_refusal(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = |after: u64| (after <= now).then(|| now + LOG_INTERVAL.as_millis() as u64);
        if self.log_after.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            let (place, most) = (&self.name, self.most);
            tracing::warn!(
                place,
                most,
                "all connections to an origin, or files of its directory, are in use; raise \
                 connections in [[origins]] if it can serve more, and LimitNOFILE if the log names \
                 fewer at the start"
            );
        }
    }
}
