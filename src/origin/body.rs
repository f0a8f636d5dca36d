//! The bytes of an answer, whichever kind of origin gives it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;

use super::directory::Reading;
use super::exchange::Incoming;

/// A body that comes from an origin.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// [`Body::address`].
    pub(super) address: usize,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Incoming(Box<Incoming>),
    File(Box<Reading>),
}

/// The body broke off before its end; why is logged where it is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the origin's body broke off")]
pub struct Broken;

impl Body {
    pub(super) fn empty() -> Body {
        Kind::Empty.into()
    }

    /// Which of the origin's addresses sends it.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Holds no more than it must while nobody asks for bytes.
    pub fn release(&mut self) {
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

/// An answer of an origin that tells a status and nothing more.
pub(super) fn bodiless(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The answer to a range that lies outside of a file of this length (RFC 9110 §15.5.17).
pub(super) fn not_satisfiable(complete: u64) -> Response<Body> {
    let mut response = bodiless(StatusCode::RANGE_NOT_SATISFIABLE);
    let field = HeaderValue::try_from(format!("bytes */{complete}"));
    response.headers_mut().extend(field.ok().map(|field| (CONTENT_RANGE, field)));
    response
}
