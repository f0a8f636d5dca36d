//! Answers of the gate's own that an HTTP/2 client has not taken yet.
//!
//! hyper shows neither its streams nor what waits in them for the client's window. An answer's bytes hold a guard
//! instead, which is dropped when the last of them is written. `connection` reads the counts for its deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;

use crate::delivery::Body;

/// The answers on one connection. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingAnswers(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    taken: AtomicU64,
}

struct Guard(PendingAnswers);

/// Bytes that hold the guard of their answer.
struct Guarded(Bytes, #[allow(dead_code, reason = "held until it is dropped")] Arc<Guard>);

impl PendingAnswers {
    /// How many answers wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// How many have been taken, or dropped.
    pub(super) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Watches an answer that the gate composed itself: a document in JSON. Files have limits of their own.
    pub(super) fn watch(&self, response: Response<Body>) -> Response<Body> {
        let kind = response.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        if !matches!(kind, Some(b"application/problem+json" | b"application/json")) {
            return response;
        }
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = Arc::new(Guard(self.clone()));
        response.map(|body| {
            let guarded = move |data| Bytes::from_owner(Guarded(data, guard.clone()));
            body.map_frame(move |frame| frame.map_data(&guarded)).boxed_unsync()
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.0.taken.fetch_add(1, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::respond;

    #[tokio::test]
    async fn an_answer_waits_until_its_last_byte_is_dropped() {
        let answers = PendingAnswers::default();
        let mut response = Response::new(respond::full("{}"));
        response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
        let mut watched = answers.watch(response);
        let data = watched.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        drop(watched);
        assert_eq!((answers.waiting(), answers.taken(), &data[..]), (1, 0, &b"{}"[..]));
        drop(data);
        assert_eq!((answers.waiting(), answers.taken()), (0, 1));
    }

    #[test]
    fn a_file_is_not_watched() {
        let answers = PendingAnswers::default();
        let _file = answers.watch(Response::new(respond::full("file")));
        assert_eq!(answers.waiting(), 0);
    }
}
