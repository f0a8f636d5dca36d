//! The connections to one server that wait for their next request; one worker's.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Response;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;

use super::exchange::{Connection, Incoming};
use super::socket::{Server, Socket};
use crate::buffers::Buffers;

/// How long a connection is kept that nobody uses, and how many are.
const KEPT: Duration = Duration::from_secs(30);
const SWEEPS: u64 = 4;
const MOST: usize = 1024;

/// How connections are made.
#[derive(Clone)]
pub(super) struct Ways {
    pub(super) tls: TlsConnector,
    pub(super) connect_timeout: Duration,
    pub(super) buffers: Buffers,
}

/// A server, the way to it, and its idle connections.
pub(super) struct Pool {
    server: Server,
    ways: Ways,
    idle: Mutex<Idle>,
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
    pub(super) fn new(server: Server, ways: Ways) -> Arc<Pool> {
        Arc::new(Pool { server, ways, idle: Mutex::default() })
    }

    /// What the bodies of its answers may hold.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.ways.buffers
    }

    /// Sends a request and gives its answer. Once more, on a new connection, where a kept one broke before anything came
    /// of an answer: so it ends when the server had closed it at that moment.
    pub(super) async fn ask(
        self: &Arc<Pool>,
        request: &[u8],
        to_head: bool,
    ) -> Result<Response<Incoming>, String> {
        if let Some(kept) = self.take() {
            match kept.ask(request, to_head, self).await {
                Err(failure) if failure.unanswered => {}
                answered => return answered.map_err(|failure| failure.why),
            }
        }
        let connection = self.connect().await.map_err(|error| error.to_string())?;
        connection.ask(request, to_head, self).await.map_err(|failure| failure.why)
    }

    async fn connect(&self) -> io::Result<Connection> {
        let Ways { tls, connect_timeout, .. } = &self.ways;
        Socket::connect(&self.server, tls, *connect_timeout).await.map(Connection::new)
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
        if idle.connections.len() < MOST {
            let sweeps = idle.sweeps;
            idle.connections.push((sweeps, connection));
        }
        let Some(runtime) = Handle::try_current().ok().filter(|_| !idle.is_swept) else { return };
        idle.is_swept = true;
        drop(idle);
        runtime.spawn(sweep(Arc::downgrade(self)));
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
        tokio::time::sleep(KEPT.div_f64(SWEEPS as f64)).await;
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
