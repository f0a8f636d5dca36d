//! A last check before a call that must not be sent late or twice.
//!
//! A begin waits for a slot, a login and a connection. Meanwhile its process may lose the right to
//! send it, and another one may act on its loan. So the check runs immediately before the first
//! byte: in the body of the request, which the HTTP client reads before it writes the head.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// Returns whether a call may be sent now. It must return at once.
pub type MaySend = Arc<dyn Fn() -> bool + Send + Sync>;

/// The check of one call. Clones share its result.
#[derive(Clone)]
pub(super) struct SendGuard {
    may_send: MaySend,
    /// The latest time of the first byte.
    deadline: Instant,
    is_withheld: Arc<AtomicBool>,
}

impl fmt::Debug for SendGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendGuard").field("is_withheld", &self.is_withheld).finish_non_exhaustive()
    }
}

impl SendGuard {
    pub(super) fn new(may_send: MaySend, deadline: Instant) -> SendGuard {
        SendGuard { may_send, deadline, is_withheld: Arc::default() }
    }

    /// Returns a request body with these bytes, which is checked before it is sent.
    pub(super) fn body(&self, bytes: Vec<u8>) -> reqwest::Body {
        reqwest::Body::wrap(GuardedBody { guard: self.clone(), bytes: Some(bytes.into()) })
    }

    /// Returns whether the check has withheld the call: not a byte of it was sent.
    pub(super) fn is_withheld(&self) -> bool {
        self.is_withheld.load(Ordering::Acquire)
    }

    fn check(&self) -> Result<(), Withheld> {
        if Instant::now() <= self.deadline && (self.may_send)() {
            return Ok(());
        }
        self.is_withheld.store(true, Ordering::Release);
        Err(Withheld)
    }
}

/// The error that keeps the HTTP client from sending.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the call may not be sent any more")]
struct Withheld;

struct GuardedBody {
    guard: SendGuard,
    bytes: Option<Bytes>,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Withheld;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withheld>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        Poll::Ready(Some(self.guard.check().map(|()| Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Sends a guarded call, and returns its result with what the server has received.
    async fn send(guard: &SendGuard) -> (reqwest::Result<reqwest::Response>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/loans", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            let reading = stream.read_to_end(&mut received);
            let _ = tokio::time::timeout(Duration::from_millis(500), reading).await;
            String::from_utf8(received).unwrap()
        });
        let client = reqwest::Client::builder().no_proxy().http1_only().build().unwrap();
        let sent = client.post(url).body(guard.body(b"{\"isbn\":1}".to_vec())).send().await;
        (sent, server.await.unwrap())
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn withheld_call_sends_no_byte() {
        let guards = [
            SendGuard::new(Arc::new(|| false), later()),
            SendGuard::new(Arc::new(|| true), Instant::now() - Duration::from_millis(1)),
        ];
        for guard in guards {
            let (sent, received) = send(&guard).await;
            assert!(sent.is_err() && guard.is_withheld());
            assert_eq!(received, "");
        }
    }

    #[tokio::test]
    async fn permitted_call_has_its_length_and_body() {
        let guard = SendGuard::new(Arc::new(|| true), later());
        let (_, received) = send(&guard).await;
        assert!(!guard.is_withheld());
        let (head, body) = received.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-length: 10") && !head.contains("chunked"), "{head}");
        assert_eq!(body, "{\"isbn\":1}");
    }

    #[tokio::test]
    async fn check_runs_once_the_connection_is_there() {
        // Nothing accepts: connecting fails, and the check did not run.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/loans", listener.local_addr().unwrap());
        drop(listener);
        let guard = SendGuard::new(Arc::new(|| false), later());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let error = client.post(url).body(guard.body(Vec::from(*b"x"))).send().await.unwrap_err();
        assert!(error.is_connect() && !guard.is_withheld());
    }
}
