//! Where the files are: HTTP and HTTPS origins, object storages, directories.
//!
//! Delivery calls it and nobody else; it calls nothing of ours but the vocabulary. An origin has one or more places, each of
//! its kind (`http`, `store`, `directory`), and the first that answers is asked. All answer alike: a head as HTTP has it,
//! and a body that has not been read. No field of the reader's goes there but what delivery names. Each worker has
//! connections of its own.

mod ask;
mod body;
mod connections;
mod directory;
mod exchange;
mod framing;
mod head;
mod http;
mod place;
mod pool;
mod socket;
mod store;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::http::{Response, StatusCode};
use url::Url;

use crate::buffers::Buffers;
use crate::path::FilePath;
use crate::problem::Problem;
use crate::telemetry::{Metrics, OriginMetrics};

pub use ask::{Ask, Asked};
pub use body::{Body, Broken};
use place::Place;
pub use store::{Azure, Bucket, Google, S3};

/// One `[[origins]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name by which routes call it.
    pub name: String,
    /// Where its files are, all in each place; the first that answers is asked.
    pub places: Vec<Where>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take.
    pub first_byte: Duration,
    /// How long a body may stand still on the origin's side.
    pub idle: Duration,
    /// How often in a row a body that broke is asked for again without a byte of it coming; 0 is never.
    pub resumes: u32,
    /// How long a file's size, type and validator are believed.
    pub metadata_ttl: Duration,
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

/// Why an origin gave no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OriginError {
    /// It could not be reached, or broke off.
    Failed,
    /// It took too long.
    TimedOut,
}

impl From<OriginError> for Problem {
    fn from(error: OriginError) -> Problem {
        match error {
            OriginError::Failed => Problem::OriginFailed,
            OriginError::TimedOut => Problem::OriginTimeout,
        }
    }
}

/// One origin, with one worker's connections to it.
#[derive(Debug)]
pub struct Origin {
    settings: Settings,
    places: Vec<Place>,
    buffers: Buffers,
    metrics: Metrics,
    counts: OriginMetrics,
}

impl Origin {
    /// A way to an origin, whose bodies hold what these buffers allow; nothing is sent yet.
    ///
    /// # Errors
    /// Where a place cannot be one, or this machine's root certificates cannot be read.
    pub fn new(settings: &Settings, buffers: &Buffers, metrics: Metrics) -> Result<Origin, SetUpError> {
        let places = settings.places.iter().map(|place| Place::new(settings, place, buffers));
        let places = places
            .collect::<Result<Vec<Place>, String>>()
            .map_err(|why| SetUpError { name: settings.name.clone(), why })?;
        let counts = metrics.origin(&settings.name);
        Ok(Origin { settings: settings.clone(), places, buffers: buffers.clone(), metrics, counts })
    }

    /// The same origin, with connections of its own.
    ///
    /// # Errors
    /// As [`Origin::new`].
    pub fn for_worker(&self) -> Result<Origin, SetUpError> {
        Origin::new(&self.settings, &self.buffers, self.metrics.clone())
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks for a file, and gives the answer as soon as its head is there, whatever its status. Where a place does not
    /// answer, or answers that something is wrong with itself, the next is asked.
    ///
    /// # Errors
    /// [`OriginError`]; the reason is logged here, since no reader may see it.
    pub async fn fetch(&self, path: &FilePath, ask: &Ask) -> Result<Response<Body>, OriginError> {
        if let [only] = self.places.as_slice() {
            return self.try_place(only, path, ask).await;
        }
        let now = Instant::now();
        let is_worth: Vec<bool> = self.places.iter().map(|place| place.is_worth_asking(now)).collect();
        let mut last = Err(OriginError::Failed);
        // First those that are thought well, then the others: all may have come back, or gone.
        for turn in [true, false] {
            let places = self.places.iter().zip(&is_worth).filter(|(_, worth)| **worth == turn);
            for (place, _) in places {
                last = self.try_place(place, path, ask).await;
                let is_well = last.as_ref().is_ok_and(|answer| !answer.status().is_server_error());
                place.note(is_well);
                if is_well {
                    return last;
                }
            }
        }
        last
    }

    async fn try_place(
        &self,
        place: &Place,
        path: &FilePath,
        ask: &Ask,
    ) -> Result<Response<Body>, OriginError> {
        let began = Instant::now();
        let (origin, place_name) = (self.settings.name.as_str(), place.name());
        let result = match tokio::time::timeout(self.settings.first_byte, place.ask(path, ask)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(why)) => {
                tracing::warn!(origin, place = place_name, why, "an origin failed");
                Err(OriginError::Failed)
            }
            Err(_) => {
                tracing::warn!(origin, place = place_name, "an origin did not answer in time");
                Err(OriginError::TimedOut)
            }
        };
        let outcome = match &result {
            Ok(response) => status_class(response.status()),
            Err(OriginError::Failed) => "failed",
            Err(OriginError::TimedOut) => "timed_out",
        };
        self.counts.request(outcome, began.elapsed());
        result
    }
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}
