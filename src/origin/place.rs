//! One place of an origin's files: its kind, and whether it has answered of late.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Response;

use super::ask::Ask;
use super::body::Body;
use super::directory::Directory;
use super::http::Http;
use super::store::Store;
use super::{Settings, Where};
use crate::buffers::Buffers;
use crate::path::FilePath;

/// How long a place that failed is asked after the others only; then one request tries it.
const ILL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Place {
    kind: Kind,
    name: String,
    made: Instant,
    /// Until when it is thought ill, in milliseconds since it was made; 0 while it is well.
    ill_until: AtomicU64,
}

#[derive(Debug)]
enum Kind {
    Http(Box<Http>),
    Store(Store),
    Directory(Directory),
}

impl Place {
    pub(super) fn new(settings: &Settings, place: &Where, buffers: &Buffers) -> Result<Place, String> {
        let kind = match place {
            Where::Http(url) => Kind::Http(Box::new(Http::new(settings, url, buffers)?)),
            Where::Directory(directory) => Kind::Directory(Directory::new(directory)?),
            Where::S3(bucket, s3) => Kind::Store(Store::s3(settings, bucket, s3, buffers)?),
            Where::Google(bucket, google) => Kind::Store(Store::google(settings, bucket, google, buffers)?),
            Where::Azure(bucket, azure) => Kind::Store(Store::azure(settings, bucket, azure, buffers)?),
        };
        Ok(Place { kind, name: place.to_string(), made: Instant::now(), ill_until: AtomicU64::new(0) })
    }

    /// As logs name it: its address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn ask(&self, path: &FilePath, ask: &Ask) -> Result<Response<Body>, String> {
        match &self.kind {
            Kind::Http(http) => http.ask(path, ask).await,
            Kind::Store(store) => store.ask(path, ask).await,
            Kind::Directory(directory) => directory.ask(path, ask).await,
        }
    }

    /// Whether to ask it in its turn. Of those who come when it has been ill for long enough, only one is told so, since
    /// it may have to wait for nothing.
    pub(super) fn is_worth_asking(&self, now: Instant) -> bool {
        let (ill_until, now) = (self.ill_until.load(Ordering::Relaxed), self.since_made(now));
        let swap = |until| {
            self.ill_until.compare_exchange(ill_until, until, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        ill_until == 0 || (ill_until <= now && swap(now + millis(ILL)))
    }

    /// Notes whether it answered well.
    pub(super) fn note(&self, is_well: bool) {
        let until = if is_well { 0 } else { self.since_made(Instant::now()) + millis(ILL) };
        self.ill_until.store(until, Ordering::Relaxed);
    }

    fn since_made(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.made))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
