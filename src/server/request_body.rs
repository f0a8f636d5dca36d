//! The body of a request, over HTTP/1.1 or HTTP/2.
//!
//! The dispatcher passes it to the loans API, which reads a limited length. The HTTP/2 window opens
//! only as the body is read, so an unread body occupies at most one window.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::Frame;
use hyper::body::Incoming;

/// A request's body.
pub(super) enum RequestBody {
    Http1(Incoming),
    Http2(RecvStream),
}

/// A request's body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestBodyError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self.get_mut() {
            RequestBody::Http1(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| Ok(frame?)))
            }
            RequestBody::Http2(body) => match ready!(body.poll_data(context)) {
                Some(Ok(data)) => {
                    // Fails only if the stream was reset, and then there is no window to open.
                    let _ = body.flow_control().release_capacity(data.len());
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Http1(body) => body.is_end_stream(),
            RequestBody::Http2(body) => body.is_end_stream(),
        }
    }
}
