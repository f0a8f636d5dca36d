//! One HTTP/2 stream: its request, and the head of its response.
//!
//! `serve` spawns [`handle`] as a task for each stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body as _, Frame};

use super::super::connection::ConnectionInfo;
use super::super::pending_responses::PendingResponses;
use super::super::request_body::RequestBody;
use super::super::{Worker, date, dispatch};
use super::body_sender::BodySender;
use crate::connection_handle::InFlight;
use crate::delivery::{Body, Chunk};

/// The body of a request. The window opens only as the body is read, so an unread body occupies at
/// most one window.
struct Http2Body(RecvStream);

impl http_body::Body for Http2Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(context)) {
            Some(Ok(data)) => {
                // Fails only if the stream was reset, and then there is no window to open.
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Handles the request of one stream.
pub(super) async fn handle(
    worker: Arc<Worker>,
    info: ConnectionInfo,
    in_flight: InFlight,
    responses: PendingResponses,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) {
    let request = request.map(|body| RequestBody::new(Http2Body(body)));
    // A request that was reset before its task ran must not reach the origin.
    if poll_fn(|context| Poll::Ready(respond.poll_reset(context).is_ready())).await {
        return;
    }
    let config = worker.config.get();
    // Boxed, so it is freed once the head is sent.
    let mut dispatched = Box::pin(dispatch::dispatch(&worker.services, &config, &info, request));
    let polled = poll_fn(|context| {
        if let Poll::Ready(response) = dispatched.as_mut().poll(context) {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(context).map(|_| None)
    });
    let Some(response) = polled.await else { return };
    drop(dispatched);
    let (mut head, body) = response.into_parts();
    add_fields(&mut head.headers, &body);
    let has_no_body = body.is_end_stream();
    let response = http::Response::from_parts(head, ());
    let stream = match respond.send_response(response, has_no_body) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "cannot send the head of a response");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    if !has_no_body {
        let send = config.limits.send;
        let pending = (!body.is_file()).then(|| responses.enter());
        // The body of a file has a guard of its own.
        drop((worker, config, info, in_flight, respond));
        BodySender::new(body, stream, send, pending).run().await;
    }
}

/// Adds Date and Content-Length. The gate sets no field that HTTP/2 forbids (RFC 9113 §8.2.2),
/// which `h2` would refuse to send.
fn add_fields(fields: &mut HeaderMap, body: &Body) {
    if let Some(now) = date::now() {
        fields.insert(DATE, now);
    }
    if let (Some(length @ 1..), false) =
        (body.size_hint().exact(), fields.contains_key(CONTENT_LENGTH))
    {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}
