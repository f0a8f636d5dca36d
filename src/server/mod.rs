//! The public listener: HTTPS over HTTP/1.1 and HTTP/2, on one single-threaded runtime per core.
//!
//! Called by the command line, which builds the [`Line`]. Each worker thread has its own listening
//! socket (SO_REUSEPORT) and its own connections to the origins; what they share is the line. Every
//! connection is a task of the worker that was least busy when it arrived. [`Running::drain`] ends
//! them: it stops accepting, closes connections on which nothing runs, waits for running answers as
//! long as `server.drain` says, and aborts the rest.
//!
//! `limits` has the keys of `[limits]`; `open_connections` admits connections, `deadlines` says
//! when one is closed, and `frame_budget` counts what an HTTP/2 client sends.

mod connection;
mod cors;
mod date;
mod deadlines;
mod dispatch;
mod download_continuation;
mod frame_budget;
mod http1;
mod http2;
mod limits;
mod listen;
mod loans_api;
mod open_connections;
mod pending_responses;
mod placement;
mod problem_response;
mod request_body;
mod security_headers;
mod session_tickets;
mod tls;
mod tls_stream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use secrecy::SecretString;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer_budget::Buffers;
use crate::catalog::Catalog;
use crate::delivery::Delivery;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::reader::Readers;
use crate::supervise::supervise;
use crate::telemetry::Metrics;

pub use cors::{AllowedOrigin, Cors};
pub use limits::{Limits, raise_descriptor_limit};
use open_connections::OpenConnections;
use placement::Workers;
pub use security_headers::SecurityHeaders;
pub use tls::{Certificates, DateProblem, TlsError, Validity};

/// A certificate chain and its key, as files in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The keys of `[listen] public`, `[tls]` and `[server]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where readers connect.
    pub listen: SocketAddr,
    /// The certificate for names that no other has.
    pub certificate: Certificate,
    /// `[[tls.extra]]`: more certificates, chosen by SNI.
    pub extra: Vec<Certificate>,
    /// `tls.ticket_keys`: what session tickets are sealed with, by the first, and opened; at least
    /// 32 bytes each. Without any the keys are random ones of the process.
    pub ticket_keys: Vec<SecretString>,
    /// How long running downloads may go on after the signal to stop.
    pub drain: Duration,
    /// How many bytes all streams together may hold, beyond the least for each.
    pub buffers: usize,
    /// `[cors]`: which web pages may ask.
    pub cors: Cors,
    /// `[limits]`: what connections may cost.
    pub limits: Limits,
    /// How long browsers use HTTPS only for this host; zero sends no Strict-Transport-Security.
    pub hsts: Duration,
}

/// Everything that a request walks through, shared by all workers.
#[derive(Debug)]
pub struct Line {
    /// Who asks.
    pub readers: Arc<Readers>,
    /// What is asked.
    pub catalog: Arc<Catalog>,
    /// May they.
    pub gate: Gate,
    /// Which loans a reader has.
    pub ledger: Ledger,
    /// Which web pages may ask.
    pub cors: Cors,
    /// The fields that every answer has for the reader's security.
    pub security: SecurityHeaders,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// What all streams together may hold.
    pub buffers: Buffers,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another program there, or is the port below 1024?"
    )]
    Listen {
        /// The address as configured.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The certificate is not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A worker thread could not be made.
    #[error("cannot start a worker thread: {0}")]
    Worker(std::io::Error),
}

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    /// Where it answers, with the port that it really has.
    pub address: SocketAddr,
    drain: Duration,
    stopping: Stopping,
    workers: Vec<JoinHandle<()>>,
}

/// How a worker and its connections are told to stop.
#[derive(Clone, Debug, Default)]
struct Stopping {
    /// No new connections; the open ones finish what they are doing.
    drain: CancellationToken,
    /// The open ones are cut.
    cut: CancellationToken,
    connections: TaskTracker,
}

/// One core's part of the server.
#[derive(Debug)]
struct Worker {
    number: usize,
    workers: Workers,
    line: Arc<Line>,
    delivery: Delivery,
    certificates: Arc<Certificates>,
    open: OpenConnections,
    limits: Arc<Limits>,
    stopping: Stopping,
}

/// The description of the readers' API, in OpenAPI 3.1.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(paths(
    loans_api::list,
    loans_api::show,
    loans_api::begin,
    loans_api::give_back,
    loans_api::progress,
    loans_api::availability
))]
pub struct Api;

/// Starts one worker for each of these ways to the origins, of which every worker has its own. To
/// be called on a runtime, which looks now and then how busy they are.
///
/// # Errors
/// [`ServerError`]; nothing is left running.
pub fn start(
    settings: &Settings,
    line: Arc<Line>,
    certificates: Arc<Certificates>,
    deliveries: Vec<Delivery>,
) -> Result<Running, ServerError> {
    let listen_error = |source| ServerError::Listen { address: settings.listen, source };
    let first = listen::bind(settings.listen).map_err(listen_error)?;
    let address = first.local_addr().map_err(listen_error)?;
    let mut sockets = vec![first];
    for _ in 1..deliveries.len() {
        sockets.push(listen::bind(address).map_err(listen_error)?);
    }
    let runtimes: Vec<Runtime> = deliveries
        .iter()
        .map(|_| listen::runtime())
        .collect::<Result<_, _>>()
        .map_err(ServerError::Worker)?;
    let metrics = line.metrics.clone();
    let (workers, inboxes) =
        Workers::new(runtimes.iter().map(|runtime| runtime.handle().clone()).collect());
    let stopping = Stopping::default();
    let limits = Arc::new(settings.limits.clone());
    let open = OpenConnections::new(settings.limits.clone(), line.metrics.clone());
    let mut threads = Vec::with_capacity(deliveries.len());
    let parts = sockets.into_iter().zip(deliveries).zip(runtimes.into_iter().zip(inboxes));
    for (number, ((socket, delivery), (runtime, inbox))) in parts.enumerate() {
        let worker = Worker {
            number,
            workers: workers.clone(),
            line: line.clone(),
            delivery,
            certificates: certificates.clone(),
            open: open.clone(),
            limits: limits.clone(),
            stopping: stopping.clone(),
        };
        let thread = listen::spawn(runtime, socket, worker, inbox).map_err(|error| {
            stopping.drain.cancel();
            ServerError::Worker(error)
        })?;
        threads.push(thread);
    }
    let drained = stopping.drain.clone();
    let watch =
        supervise("place-connections", metrics, drained.clone(), move || workers.clone().watch());
    tokio::spawn(drained.run_until_cancelled_owned(watch));
    Ok(Running { address, drain: settings.drain, stopping, workers: threads })
}

impl Running {
    /// Stops accepting, waits for running requests, then cuts what is left. Returns how many were
    /// cut.
    pub async fn drain(self) -> usize {
        self.stopping.drain.cancel();
        self.stopping.connections.close();
        let finished = tokio::time::timeout(self.drain, self.stopping.connections.wait()).await;
        let left = if finished.is_ok() { 0 } else { self.stopping.connections.len() };
        self.stopping.cut.cancel();
        let workers = self.workers;
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker thread had died");
                }
            }
        })
        .await;
        left
    }
}
