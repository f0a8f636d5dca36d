//! The body of an origin's response, for every kind of origin.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;

use super::directory::Reading;
use super::exchange::Incoming;

/// The body of an origin's response.
#[derive(Debug)]
pub(crate) struct Body {
    kind: Kind,
    /// Index of the address in the origin's list.
    pub(super) address: usize,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Incoming(Box<Incoming>),
    File(Box<Reading>),
}

/// The error of a body that ended early. The reason is logged where it occurs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the origin's body broke off")]
pub(crate) struct Broken;

impl Body {
    pub(super) fn empty() -> Body {
        Kind::Empty.into()
    }

    /// Returns the index of the origin's address that sends this body.
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// Releases the buffers that an idle body does not need.
    pub(crate) fn release(&mut self) {
        if let Kind::Incoming(incoming) = &mut self.kind {
            incoming.release();
        }
    }

    pub(super) fn file(reading: Reading) -> Body {
        Kind::File(Box::new(reading)).into()
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Body {
        Kind::Incoming(Box::new(incoming)).into()
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Body {
        Body { kind, address: 0 }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.get_mut().kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Incoming(incoming) => Pin::new(incoming).poll_frame(context),
            Kind::File(reading) => {
                let bytes = ready!(reading.poll_bytes(context));
                Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }
}

/// Returns a response with a status and nothing else.
pub(super) fn bodiless(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Returns the response to a range outside a file of this length (RFC 9110 §15.5.17).
pub(super) fn not_satisfiable(complete: u64) -> Response<Body> {
    let mut response = bodiless(StatusCode::RANGE_NOT_SATISFIABLE);
    let field = HeaderValue::try_from(format!("bytes */{complete}"));
    response.headers_mut().extend(field.ok().map(|field| (CONTENT_RANGE, field)));
    response
}
