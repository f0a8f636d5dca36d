//! Where the files are: HTTP and HTTPS origins, object storages, directories.
//!
//! Delivery calls it and nobody else; it calls nothing of ours but the vocabulary. An origin has
//! one or more addresses, each of its kind (`http`, `object_store`, `directory`). All respond
//! alike: a head as HTTP has it, and a body that has not been read. No field of the reader's is
//! sent there but what delivery names.
//!
//! `fetch` chooses the address and decides what is repeated. Each worker has connections of its
//! own; all share, for each origin, the retry budget, and for each address, the circuit breaker and
//! the cap on connections.

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
mod object_store_error;
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

pub use body::{Body, Broken};
use breaker::Breaker;
use connection_limit::ConnectionLimits;
use endpoint::Endpoint;
pub use fetch::{Repetition, ResumeCost};
pub use file_request::{ByteRange, FileRequest};
pub use object_store::{Azure, Bucket, Google, S3};
pub use reachability::{Outcome, Probed};
pub use retry_after::retry_after;
use retry_budget::RetryBudget;

/// The longest file: no storage has a longer one, and sums of such lengths do not overflow.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// A body that breaks off before this many bytes were of no use: it counts as a failure of its
/// address.
pub const USEFUL_BYTES: u64 = 64 * 1024;

/// One `[[origins]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name by which routes call it.
    pub name: String,
    /// Where its files are, all in each place; the first that answers is asked.
    pub places: Vec<Where>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a request may take until the whole head of its response has arrived.
    pub first_byte: Duration,
    /// The longest pause between two bytes of a body.
    pub idle: Duration,
    /// The most connections to each address, over all workers. As many requests may wait for one.
    pub connections: usize,
    /// The most open files of each address that is a directory, over all workers. As many requests
    /// may wait for one.
    pub files: usize,
    /// How often in a row a broken body is resumed while less than [`USEFUL_BYTES`] arrive each
    /// time; 0 is never.
    pub resumes: u32,
    /// Whether symbolic links may lead out of a directory.
    pub follow_symlinks: bool,
    /// How long a file's size, type and validator are believed.
    pub metadata_ttl: Duration,
}

impl Settings {
    /// The most file descriptors that it needs.
    pub fn descriptors(&self) -> u64 {
        self.places.iter().map(|place| self.most(place) as u64).sum()
    }

    /// Has it need its part of `left` file descriptors, where all origins need so many.
    pub fn scale_descriptors(&mut self, left: u64, needed: u64) {
        let scale = |most: usize| {
            let scaled = most as u128 * u128::from(left) / u128::from(needed.max(1));
            usize::try_from(scaled).unwrap_or(most).clamp(1, most.max(1))
        };
        (self.connections, self.files) = (scale(self.connections), scale(self.files));
    }

    /// How long a request may wait for a connection or a file while all are in use.
    fn queue_timeout(&self) -> Duration {
        self.connect_timeout.min(self.first_byte / 2)
    }

    fn most(&self, place: &Where) -> usize {
        if matches!(place, Where::Directory(_)) { self.files } else { self.connections }
    }
}

/// One place of files.
#[derive(Clone, Debug)]
pub enum Where {
    /// An address to which paths are added.
    Http(Url),
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket of what speaks S3.
    S3(Bucket, S3),
    /// A bucket of Google Cloud Storage.
    Google(Bucket, Google),
    /// A container of Azure Blob Storage.
    Azure(Bucket, Azure),
}

impl fmt::Display for Where {
    /// As logs name it; nothing of it is secret.
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

/// Why there is no way to an origin.
#[derive(Debug, thiserror::Error)]
#[error("origin {name} cannot be used: {why}")]
pub struct SetUpError {
    name: String,
    why: String,
}

/// Why an origin gave no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OriginError {
    /// It could not be reached, broke off, or has failed so often that it is left alone for a
    /// while.
    Failed {
        /// How long it is left alone.
        retry_after: Option<Duration>,
    },
    /// It took too long.
    TimedOut,
    /// All connections that it may have are in use.
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
pub struct Origin {
    settings: Settings,
    places: Vec<Endpoint>,
    buffers: Buffers,
    metrics: Metrics,
    counts: OriginMetrics,
    shared: Arc<Shared>,
}

/// What all workers share of one origin.
#[derive(Debug)]
struct Shared {
    /// One for each address.
    breakers: Vec<Breaker>,
    budget: RetryBudget,
    limits: ConnectionLimits,
}

impl Origin {
    /// Whether requests of any worker wait for a connection to it.
    pub fn has_waiters(&self) -> bool {
        self.shared.limits.have_waiters()
    }

    /// A way to an origin, whose bodies hold what these buffers allow; nothing is sent yet.
    ///
    /// # Errors
    /// Where a place cannot be one, or this machine's root certificates cannot be read.
    pub fn new(
        settings: &Settings,
        buffers: &Buffers,
        metrics: Metrics,
    ) -> Result<Origin, SetUpError> {
        let shared = Shared {
            breakers: settings.places.iter().map(|_| Breaker::new()).collect(),
            budget: RetryBudget::new(),
            limits: ConnectionLimits::new(settings.connections, settings.files),
        };
        Origin::with(settings, buffers, metrics, Arc::new(shared))
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

    /// The same origin, with connections of its own.
    ///
    /// # Errors
    /// As [`Origin::new`].
    pub fn for_worker(&self) -> Result<Origin, SetUpError> {
        Origin::with(&self.settings, &self.buffers, self.metrics.clone(), self.shared.clone())
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
