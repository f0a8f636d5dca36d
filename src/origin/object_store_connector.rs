//! The HTTP client below the crate `object_store`: the gate's own connections.
//!
//! A request with a [`ResponseSlot`] is one for a file. Its response goes into the slot, and
//! `object_store` gets an error in its place. Other requests are for credentials and listings.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

use super::connections::Connections;
use super::exchange::{Failure, Incoming};

use crate::lock::lock;

/// A response, or why there is none.
pub(super) type FetchResult = Result<Response<Incoming>, Failure>;

/// Receives a file's response, bypassing `object_store`.
#[derive(Clone)]
pub(super) struct ResponseSlot {
    answer: Arc<Mutex<Option<FetchResult>>>,
    /// Whether the request needs a new connection.
    fresh: bool,
}

impl ResponseSlot {
    /// Returns an empty slot. `fresh` is [`FileRequest::fresh`](super::FileRequest::fresh).
    pub(super) fn new(fresh: bool) -> ResponseSlot {
        ResponseSlot { answer: Arc::default(), fresh }
    }

    fn put(&self, answer: FetchResult) {
        *lock(&self.answer) = Some(answer);
    }

    pub(super) fn take(&self) -> Option<FetchResult> {
        lock(&self.answer).take()
    }
}

/// The error that `object_store` gets in place of a response that was intercepted.
#[derive(Debug)]
struct Intercepted;

impl fmt::Display for Intercepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was intercepted")
    }
}

impl Error for Intercepted {}

/// A request for a credential that failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// The HTTP client that `object_store` uses.
#[derive(Clone, Debug)]
pub(super) struct Connector(Connections);

impl Connector {
    pub(super) fn new(connections: Connections) -> Connector {
        Connector(connections)
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut head, body) = request.into_parts();
        let slot = head.extensions.remove::<ResponseSlot>();
        if slot.is_some() {
            self.0.name_trace(&mut head.headers);
        }
        let body = body.collect().await?.to_bytes();
        let fresh = slot.as_ref().is_some_and(|slot| slot.fresh);
        let fetched = self.0.send(Request::from_parts(head, body), fresh).await;
        if let Some(slot) = slot {
            slot.put(fetched);
            return Err(HttpError::new(HttpErrorKind::Unknown, Intercepted));
        }
        let answer = fetched.map_err(|failure| {
            HttpError::new(HttpErrorKind::Connect, Failed(failure.to_string()))
        })?;
        let unreadable = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(answer.map(|body: Incoming| HttpResponseBody::new(body.map_err(unreadable))))
    }
}
