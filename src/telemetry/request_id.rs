//! The id of a request, and which request the current task works for.
//!
//! The dispatcher creates the id and polls the request within [`RequestId::within`]. Every log line
//! that is written there carries the id (see `log`). A thread-local value, set during each poll,
//! serves here in place of a `tracing` span: it costs a request no allocation, while a span that is
//! enabled costs several percent of a small request.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::HeaderValue;
use uuid::Uuid;

use super::Trace;

thread_local! {
    static CURRENT: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// The id of one request. The reader receives it, and can report it to support.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestId(Uuid);

impl RequestId {
    /// Generates a random id of version 4.
    pub fn generate() -> RequestId {
        RequestId(Uuid::new_v4())
    }

    /// Returns the value of the response field `X-Request-Id`.
    pub fn field(self) -> Option<HeaderValue> {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let text = self.0.hyphenated().encode_lower(&mut text);
        let mut value = HeaderValue::from_str(text).ok()?;
        // HPACK would store each value in its table, where it replaces fields that occur again.
        value.set_sensitive(true);
        Some(value)
    }

    /// Parses an id as a reader reports it, with or without `urn:uuid:`.
    pub fn parse(text: &str) -> Option<RequestId> {
        Uuid::try_parse(text.trim()).ok().map(RequestId)
    }

    /// Returns the request with this id.
    pub fn of_uuid(id: Uuid) -> RequestId {
        RequestId(id)
    }

    /// Returns the id without its meaning.
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// Returns some of its random bits.
    pub fn low_bits(self) -> u64 {
        self.0.as_u64_pair().1
    }

    /// Returns the id as a URI (RFC 9562 §4), for `instance` in problem documents.
    pub fn urn(self) -> String {
        self.0.urn().to_string()
    }

    /// Runs a function as work for this request.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        let _outer = Outer(CURRENT.replace(Some(self)));
        work()
    }

    /// Polls a future as work for this request and its trace. The future stays in place, since to
    /// move it would copy it.
    pub(crate) fn poll_within<'w, F: Future>(
        &'w self,
        trace: Option<Arc<Trace>>,
        mut work: Pin<&'w mut F>,
    ) -> impl Future<Output = F::Output> + use<'w, F> {
        poll_fn(move |task| match &trace {
            None => self.within(|| work.as_mut().poll(task)),
            Some(trace) => trace.within(|| self.within(|| work.as_mut().poll(task))),
        })
    }

    /// Returns the request that the current task works for.
    pub fn current() -> Option<RequestId> {
        CURRENT.get()
    }

    /// Runs a future in another task as work for the request of the current task and its trace, as
    /// far as there are any.
    pub fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
        RequestId::inherit_with(Trace::current(), work)
    }

    /// As [`RequestId::inherit`], for this trace.
    pub(crate) fn inherit_with<F: Future>(
        trace: Option<Arc<Trace>>,
        work: F,
    ) -> impl Future<Output = F::Output> {
        let current = RequestId::current();
        async move {
            match current {
                Some(id) => id.poll_within(trace, pin!(work)).await,
                None => Trace::run(trace, work).await,
            }
        }
    }
}

/// Restores the request that was current before, also after a panic.
struct Outer(Option<RequestId>);

impl Drop for Outer {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_inherit_the_request_only_where_asked_to() {
        let id = RequestId::generate();
        assert_eq!(RequestId::current(), None);
        let work = async {
            assert_eq!(RequestId::current(), Some(id));
            let inherited = RequestId::inherit(async { RequestId::current() });
            assert_eq!(tokio::spawn(inherited).await.unwrap(), Some(id));
            assert_eq!(tokio::spawn(async { RequestId::current() }).await.unwrap(), None);
        };
        id.poll_within(None, pin!(work)).await;
        assert_eq!(id.within(RequestId::current), Some(id));
        assert_eq!(RequestId::current(), None);
    }

    #[test]
    fn field_and_uri_have_the_same_id() {
        let id = RequestId::generate();
        let field = id.field().unwrap();
        assert_eq!(field.to_str().unwrap(), id.to_string());
        assert_eq!(id.urn(), format!("urn:uuid:{id}"));
    }
}
