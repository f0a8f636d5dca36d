//! The body of a request, whichever HTTP version it arrived by.
//!
//! `http1` and `http2` wrap the body of their library. The dispatcher passes it to the loans API,
//! which reads a limited length.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

/// A request's body. It hides the HTTP library, so that the dispatcher depends on none. An empty
/// body, as of every request for a file, is not allocated.
pub(super) struct RequestBody(Option<UnsyncBoxBody<Bytes, BrokenRequest>>);

/// A request's body ended early.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct BrokenRequest(Box<dyn Error + Send + Sync>);

impl RequestBody {
    /// Wraps the body of an HTTP library.
    pub(super) fn new<B>(body: B) -> RequestBody
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Error + Send + Sync + 'static,
    {
        let has_body = !body.is_end_stream();
        RequestBody(
            has_body.then(|| body.map_err(|error| BrokenRequest(Box::new(error))).boxed_unsync()),
        )
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenRequest;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenRequest>>> {
        match &mut self.get_mut().0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }
}
