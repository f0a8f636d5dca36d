//! The public listener: HTTPS over HTTP/1.1 and HTTP/2, on one single-threaded runtime per core.
//!
//! `app` builds the [`Services`] and calls [`start`]. Each worker thread has its own listening
//! socket of each address (SO_REUSEPORT) and its own connections to the origins. The workers share
//! the [`Services`]. Every connection is a task of the worker that was least busy when it arrived.
//!
//! [`Running::drain`] stops accepting, and closes connections that stay idle for some seconds. It
//! waits up to `server.drain` for responses in flight, and then aborts the remaining connections.
//!
//! `limits` holds the keys of `[limits]`, `open_connections` admits connections, `deadlines`
//! decides when one is closed, and `frame_budget` counts the frames of an HTTP/2 client.

mod acme_challenge;
mod authentication;
mod certificate_file;
mod certificate_watch;
mod connection;
mod cors;
mod date;
mod deadlines;
mod dispatch;
mod download_continuation;
mod explain;
mod frame_budget;
mod heartbeat;
mod http1;
mod http2;
mod limits;
mod listen;
mod loans_api;
mod open_connections;
mod pending_responses;
mod placement;
mod problem_response;
mod proxy_protocol;
mod recent_requests;
mod request_body;
mod request_checks;
mod request_config;
mod request_queue;
mod request_recorder;
mod security_headers;
mod session_tickets;
mod tls;
mod tls_choice;
mod tls_stream;
mod validity;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use secrecy::SecretString;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer_budget::Buffers;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::public_addresses::PublicAddresses;
use crate::reader::Readers;
use crate::reload::Current;
use crate::supervise::supervise;
use crate::telemetry::{Metrics, Task, Tracer};

pub(crate) use acme_challenge::challenge_file;
pub(crate) use certificate_file::TlsError;
pub(crate) use certificate_watch::{CertificateWatch, Seen};
pub(crate) use cors::{AllowedOrigin, Cors};
pub(crate) use explain::{
    Asking, Explained, ExplainedProblem, Explainer, Explanation, NotExplained, Question,
    RecordedView, Step, WrongFields, parse_fields,
};
pub(crate) use heartbeat::Heartbeat;
pub(crate) use limits::{Limits, raise_descriptor_limit};
use open_connections::OpenConnections;
use placement::Workers;
pub(crate) use recent_requests::RecentRequests;
pub(crate) use request_config::{NewRequestConfigs, RequestConfig, RequestConfigs};
pub(crate) use request_recorder::RequestRecorder;
pub(crate) use security_headers::SecurityHeaders;
pub(crate) use tls::{Candidate, Certificates, LoadedKeys};
pub(crate) use tls_choice::{MinimumTlsVersion, TlsChoice};
pub(crate) use validity::{DateProblem, Validity};

/// A certificate chain and its key, as files in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The file of the chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The file of the certificate's private key.
    pub key: PathBuf,
}

/// The TLS of the admin listener, as far as it differs from that of readers.
#[derive(Clone, Debug, Default)]
pub struct AdminTls {
    /// `admin.certificate` and `admin.key`: its own certificate.
    pub certificate: Option<Certificate>,
    /// `admin.client_ca`: the roots of the certificates that clients must have, as a file in PEM.
    pub client_ca: Option<PathBuf>,
}

/// What the public listener must know of a certificate that `acme` orders.
#[derive(Clone, Debug)]
pub struct OrderedCertificate {
    /// The names of the certificate, in lower case.
    pub names: Vec<String>,
    /// The directory with the answers to the challenges of the certificate authority.
    pub challenges: PathBuf,
}

/// The keys of `[listen] public`, `[tls]` and `[server]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The addresses that readers connect to.
    pub listen: PublicAddresses,
    /// The default certificate, for names that no other certificate covers.
    pub certificate: Certificate,
    /// `[tls.acme]`: the default certificate is ordered, and may not be there yet.
    pub ordered: Option<OrderedCertificate>,
    /// `[[tls.extra]]`: more certificates, chosen by SNI.
    pub extra: Vec<Certificate>,
    /// `tls.ticket_keys`: the secrets of session tickets, at least 32 bytes each. The first seals,
    /// and all open. If there are none, the process uses random keys.
    pub ticket_keys: Vec<SecretString>,
    /// The TLS versions and cipher suites that clients may use.
    pub tls: TlsChoice,
    /// The TLS of the admin listener, whose certificate is watched with the others.
    pub admin: AdminTls,
    /// How long downloads in flight may continue after the signal to stop.
    pub drain: Duration,
    /// How long new connections are accepted after the signal to stop.
    pub drain_delay: Duration,
    /// The buffer budget of all streams together, in bytes, beyond the minimum for each.
    pub buffers: usize,
    /// `[cors]`: the origins whose web pages may send requests.
    pub cors: Cors,
    /// `[limits]`: the limits of connections.
    pub limits: Limits,
    /// The `max-age` of Strict-Transport-Security; zero omits the field.
    pub hsts: Duration,
    /// The number of requests that are stored in memory for support.
    pub recent_requests: usize,
    /// How long requests are stored in the ledger, too; zero stores none.
    pub store_requests: Duration,
}

/// The services that handle a request, shared by all workers.
#[derive(Debug)]
pub(crate) struct Services {
    /// Authenticates readers.
    pub readers: Arc<Readers>,
    /// Admits requests under a loan.
    pub gate: Gate,
    /// Stores the loans of readers.
    pub ledger: Ledger,
    /// The buffer budget of all streams together.
    pub buffers: Buffers,
    /// The last requests, for support.
    pub recent: RecentRequests,
    /// The metrics of the process.
    pub metrics: Metrics,
    /// Begins the traces of requests.
    pub tracer: Tracer,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// A listening socket cannot be used.
    #[error("cannot use a listening socket: {0}")]
    Socket(std::io::Error),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A worker thread cannot be started.
    #[error("cannot start a worker thread: {0}")]
    Worker(std::io::Error),
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Running {
    drain: Duration,
    stopping: Stopping,
    workers: Vec<JoinHandle<()>>,
    heartbeat: Heartbeat,
}

/// The signals that stop workers and their connections.
#[derive(Clone, Debug, Default)]
struct Stopping {
    /// Stops accepting; open connections finish their responses.
    drain: CancellationToken,
    /// Aborts the open connections.
    abort: CancellationToken,
    connections: TaskTracker,
}

/// The state of one worker thread.
#[derive(Debug)]
struct Worker {
    number: usize,
    workers: Workers,
    services: Arc<Services>,
    config: Current<RequestConfig>,
    certificates: Arc<Certificates>,
    open: OpenConnections,
    stopping: Stopping,
}

/// The OpenAPI 3.1 description of the readers' API.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(paths(
    loans_api::list,
    loans_api::show,
    loans_api::begin,
    loans_api::cancel_or_return,
    loans_api::progress,
    loans_api::availability
))]
pub(crate) struct Api;

/// Starts one worker for each configuration, which has the worker's own connections to the origins.
/// The workers accept from the sockets, at least one, which listen on the public addresses. Must be
/// called on a runtime: it spawns a task that samples the load of the workers.
///
/// # Errors
/// [`ServerError`]. No worker is left running.
pub(crate) fn start(
    settings: &Settings,
    services: Arc<Services>,
    certificates: Arc<Certificates>,
    configs: &RequestConfigs,
    sockets: Vec<TcpListener>,
) -> Result<Running, ServerError> {
    let sockets = listen::deal(sockets, configs.workers.len()).map_err(ServerError::Socket)?;
    let runtimes: Vec<Runtime> = configs
        .workers
        .iter()
        .map(|_| listen::runtime())
        .collect::<Result<_, _>>()
        .map_err(ServerError::Worker)?;
    let metrics = services.metrics.clone();
    let (workers, inboxes) =
        Workers::new(runtimes.iter().map(|runtime| runtime.handle().clone()).collect());
    let stopping = Stopping::default();
    let open = OpenConnections::new(settings.limits.clone(), services.metrics.clone());
    configs.limit(open.clone());
    let mut threads = Vec::with_capacity(configs.workers.len());
    let parts = sockets.into_iter().zip(&configs.workers).zip(runtimes.into_iter().zip(inboxes));
    for (number, ((sockets, config), (runtime, inbox))) in parts.enumerate() {
        let worker = Worker {
            number,
            workers: workers.clone(),
            services: services.clone(),
            config: config.clone(),
            certificates: certificates.clone(),
            open: open.clone(),
            stopping: stopping.clone(),
        };
        let accepting = stopping.connections.token();
        let thread =
            listen::spawn(runtime, sockets, worker, inbox, accepting).map_err(|error| {
                stopping.drain.cancel();
                ServerError::Worker(error)
            })?;
        threads.push(thread);
    }
    let drained = stopping.drain.clone();
    let sampled = workers.clone();
    let sampling = supervise(Task::PlaceConnections, metrics, drained.clone(), move || {
        sampled.clone().sample_load()
    });
    tokio::spawn(drained.run_until_cancelled_owned(sampling));
    let heartbeat = Heartbeat::new(workers, stopping.drain.clone());
    Ok(Running { drain: settings.drain, stopping, workers: threads, heartbeat })
}

impl Running {
    /// Shows whether the workers respond. Each call returns one that waits for no other.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.separate()
    }

    /// Stops accepting, waits for requests in flight, then aborts the remaining connections.
    /// Returns the number of aborted connections.
    pub(crate) async fn drain(self) -> usize {
        self.stopping.drain.cancel();
        self.stopping.connections.close();
        let finished = tokio::time::timeout(self.drain, self.stopping.connections.wait()).await;
        let left = if finished.is_ok() { 0 } else { self.stopping.connections.len() };
        self.stopping.abort.cancel();
        let workers = self.workers;
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("worker thread panicked");
                }
            }
        })
        .await;
        left
    }

    /// Aborts all connections at once.
    pub(crate) async fn abort(self) {
        Running { drain: Duration::ZERO, ..self }.drain().await;
    }
}
