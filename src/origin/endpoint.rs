//! One address of an origin, and how it is reached.

use http::Response;

use super::body::Body;
use super::connection_limit::ConnectionLimits;
use super::directory::Directory;
use super::exchange::Failure;
use super::file_request::FileRequest;
use super::http::Http;
use super::object_store::Store;
use super::reachability::Outcome;
use super::{Settings, Where};
use crate::buffer_budget::Buffers;
use crate::path::FilePath;

#[derive(Debug)]
pub(super) struct Endpoint {
    kind: Kind,
    name: String,
}

#[derive(Debug)]
enum Kind {
    Http(Box<Http>),
    Store(Store),
    Directory(Directory),
}

impl Endpoint {
    pub(super) fn new(
        settings: &Settings,
        place: &Where,
        buffers: &Buffers,
        limits: &ConnectionLimits,
    ) -> Result<Endpoint, String> {
        let shared = (buffers, limits);
        let kind = match place {
            Where::Http(url) => Kind::Http(Box::new(Http::new(settings, url, buffers, limits)?)),
            Where::Directory(directory) => {
                Kind::Directory(Directory::new(settings, directory, limits)?)
            }
            Where::S3(bucket, s3) => Kind::Store(Store::s3(settings, bucket, s3, shared)?),
            Where::Google(bucket, google) => {
                Kind::Store(Store::google(settings, bucket, google, shared)?)
            }
            Where::Azure(bucket, azure) => {
                Kind::Store(Store::azure(settings, bucket, azure, shared)?)
            }
        };
        Ok(Endpoint { kind, name: place.to_string() })
    }

    /// Returns the address, for logs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends one request. Returns its response, of any status, once the head has arrived.
    pub(super) async fn send(
        &self,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        match &self.kind {
            Kind::Http(http) => http.send(path, request).await,
            // Boxed, since it would enlarge the future of every request to an HTTP server.
            Kind::Store(store) => Box::pin(store.send(path, request)).await,
            Kind::Directory(directory) => directory.send(path, request).await,
        }
    }

    /// Checks by listing an object storage or a directory. Returns `None` for an HTTP server.
    pub(super) async fn probe_listing(&self) -> Option<Outcome> {
        match &self.kind {
            Kind::Http(_) => None,
            Kind::Store(store) => Some(store.probe().await),
            Kind::Directory(directory) => Some(directory.probe()),
        }
    }
}
