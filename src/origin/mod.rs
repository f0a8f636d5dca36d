//! The clients of the origins, which store the files: HTTP and HTTPS servers, object storages and
//! directories.
//!
//! Only delivery fetches files through it. An origin has one or more addresses, each of one kind
//! (`http`, `object_store`, `directory`). All kinds return an HTTP response whose body has not been
//! read. An origin receives no field of the reader's request, except what delivery passes.
//!
//! `address` chooses the address and `fetch` decides on retries. Each worker has its own
//! connections. All workers share the retry budget of an origin, and the circuit breaker and
//! connection limit of an address.

mod address;
mod body;
mod breaker;
mod connection_limit;
mod connection_pool;
mod connections;
mod directory;
mod endpoint;
mod exchange;
mod fetch;
mod file_request;
mod framing;
mod http;
mod object_store;
mod object_store_connector;
mod object_store_error;
mod object_store_kinds;
mod reachability;
mod response_head;
mod retry_after;
mod retry_budget;
mod socket;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::buffer_budget::Buffers;
use crate::problem::Problem;
use crate::telemetry::{Metrics, OriginMetrics};

pub(crate) use body::Body;
use breaker::Breaker;
use connection_limit::ConnectionLimits;
use endpoint::Endpoint;
pub(crate) use fetch::{Repetition, ResumeCost};
pub(crate) use file_request::{ByteRange, FileRequest};
pub(crate) use object_store_kinds::{Azure, Bucket, Google, S3};
pub(crate) use reachability::Outcome;
pub(crate) use retry_after::retry_after;
use retry_budget::RetryBudget;

/// Longest file in bytes. No storage has a longer one, and the sum of two lengths fits a `u64`.
pub(crate) const MAX_LENGTH: u64 = i64::MAX as u64;

/// A body that breaks off before this many bytes counts as a failure of its address.
pub(crate) const USEFUL_BYTES: u64 = 64 * 1024;

/// Settings of one `[[origins]]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that routes refer to.
    pub name: String,
    /// Addresses of the origin. Each has all files; requests prefer the first one that works.
    pub places: Vec<Where>,
    /// Timeout for a new connection.
    pub connect_timeout: Duration,
    /// Timeout from the request until the whole response head has arrived.
    pub first_byte: Duration,
    /// The longest pause between two bytes of a body.
    pub idle: Duration,
    /// Most connections to each address over all workers. As many requests may wait for one.
    pub connections: usize,
    /// Most open files of each directory over all workers. As many requests may wait for one.
    pub files: usize,
    /// Most resumes in a row that each deliver less than [`USEFUL_BYTES`]; 0 disables resuming.
    pub resumes: u32,
    /// Whether symbolic links may lead out of a directory.
    pub follow_symlinks: bool,
    /// How long a file's metadata (size, type and validator) is cached.
    pub metadata_ttl: Duration,
    /// Whether requests name their trace (W3C Trace Context).
    pub traces: bool,
}

impl Settings {
    /// Returns the most file descriptors that this origin needs.
    pub fn descriptors(&self) -> u64 {
        self.places.iter().map(|place| self.most(place) as u64).sum()
    }

    /// Scales the limits down to a share of `left` file descriptors, if all origins need `needed`.
    pub fn scale_descriptors(&mut self, left: u64, needed: u64) {
        let scale = |most: usize| {
            let scaled = most as u128 * u128::from(left) / u128::from(needed.max(1));
            usize::try_from(scaled).unwrap_or(most).clamp(1, most.max(1))
        };
        (self.connections, self.files) = (scale(self.connections), scale(self.files));
    }

    /// Returns how long a request may wait while all connections or files are in use.
    fn queue_timeout(&self) -> Duration {
        self.connect_timeout.min(self.first_byte / 2)
    }

    fn most(&self, place: &Where) -> usize {
        if matches!(place, Where::Directory(_)) { self.files } else { self.connections }
    }
}

/// An address of an origin.
#[derive(Clone, Debug, PartialEq)]
pub enum Where {
    /// The base URL of an HTTP server.
    Http(Url),
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket of an S3-compatible storage.
    S3(Bucket, S3),
    /// A bucket of Google Cloud Storage.
    Google(Bucket, Google),
    /// A container of Azure Blob Storage.
    Azure(Bucket, Azure),
}

impl fmt::Display for Where {
    /// Formats the address for logs, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Where::Http(url) => write!(f, "{url}"),
            Where::Directory(directory) => write!(f, "file://{}", directory.display()),
            Where::S3(bucket, _) => write!(f, "s3://{bucket}"),
            Where::Google(bucket, _) => write!(f, "gs://{bucket}"),
            Where::Azure(bucket, _) => write!(f, "az://{bucket}"),
        }
    }
}

/// The error of an origin that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("origin {name} cannot be used: {why}")]
pub(crate) struct SetUpError {
    name: String,
    why: String,
}

/// Why an origin gave no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OriginError {
    /// It could not be reached, broke off, or its circuit breaker is open.
    Failed {
        /// Time until the next trial request, if the breaker is open.
        retry_after: Option<Duration>,
    },
    /// The response head did not arrive in time.
    TimedOut,
    /// All its connections are in use.
    Busy,
}

impl From<OriginError> for Problem {
    fn from(error: OriginError) -> Problem {
        match error {
            OriginError::Failed { retry_after } => Problem::OriginFailed { retry_after },
            OriginError::TimedOut => Problem::OriginTimeout,
            OriginError::Busy => Problem::Overloaded,
        }
    }
}

/// One origin, with one worker's connections to it.
#[derive(Debug)]
pub(crate) struct Origin {
    settings: Settings,
    places: Vec<Endpoint>,
    buffers: Buffers,
    metrics: Metrics,
    counts: OriginMetrics,
    shared: Arc<Shared>,
}

/// The state of one origin that all workers share.
#[derive(Debug)]
struct Shared {
    /// One for each address.
    breakers: Vec<Breaker>,
    budget: RetryBudget,
    limits: ConnectionLimits,
}

impl Origin {
    /// Returns whether requests of any worker wait for a connection.
    pub(crate) fn has_waiters(&self) -> bool {
        self.shared.limits.have_waiters()
    }

    /// Creates the client of an origin, without a request. `buffers` bounds what its bodies buffer.
    ///
    /// # Errors
    /// Fails if an address is not valid, or this machine's root certificates cannot be read.
    pub(crate) fn new(
        settings: &Settings,
        buffers: &Buffers,
        metrics: Metrics,
    ) -> Result<Origin, SetUpError> {
        let shared = Shared {
            breakers: settings.places.iter().map(|_| Breaker::new()).collect(),
            budget: RetryBudget::new(),
            limits: ConnectionLimits::new(settings.connections, settings.files),
        };
        let origin = Origin::with(settings, buffers, metrics, Arc::new(shared))?;
        origin.counts.suspended(0);
        Ok(origin)
    }

    fn with(
        settings: &Settings,
        buffers: &Buffers,
        metrics: Metrics,
        shared: Arc<Shared>,
    ) -> Result<Origin, SetUpError> {
        let places = settings
            .places
            .iter()
            .map(|place| Endpoint::new(settings, place, buffers, &shared.limits));
        let places = places
            .collect::<Result<Vec<Endpoint>, String>>()
            .map_err(|why| SetUpError { name: settings.name.clone(), why })?;
        let counts = metrics.origin(&settings.name);
        Ok(Origin {
            settings: settings.clone(),
            places,
            buffers: buffers.clone(),
            metrics,
            counts,
            shared,
        })
    }

    /// Returns the same origin with its own connections.
    ///
    /// # Errors
    /// The errors of [`Origin::new`].
    pub(crate) fn for_worker(&self) -> Result<Origin, SetUpError> {
        Origin::with(&self.settings, &self.buffers, self.metrics.clone(), self.shared.clone())
    }

    /// Returns whether both are the same origin, with connections of their own.
    pub(crate) fn is_of(&self, other: &Origin) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns the settings of this origin.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }
}
