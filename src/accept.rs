//! Accepts connections, for every listener of the process.
//!
//! Any module with a listener may call [`next`]. It depends on no other module.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// The delay after an accept that failed for lack of resources. An immediate retry would only spin.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// When to accept again after a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AcceptRetry {
    /// The listener has freed a resource, so the next accept can succeed.
    AtOnce,
    /// Nothing was freed.
    AfterDelay,
}

/// Waits for the next connection. Returns none once `stop` is cancelled. Cancel safe.
///
/// Calls `on_failure` if an accept failed for lack of resources, such as file descriptors. Skips
/// connections that closed before they were accepted.
pub(crate) async fn next(
    listener: &TcpListener,
    stop: &CancellationToken,
    mut on_failure: impl FnMut(&Error) -> AcceptRetry,
) -> Option<(TcpStream, SocketAddr)> {
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) if affects_one_connection(&error) => {}
                Err(error) => {
                    if on_failure(&error) == AcceptRetry::AfterDelay {
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await
}

/// Whether the error concerns a single connection that closed before it was accepted.
fn affects_one_connection(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_ends_a_listener_that_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let on_failure = |error: &Error| panic!("{error}");
        assert!(next(&listener, &stop, on_failure).await.is_some());
        stop.cancel();
        assert!(next(&listener, &stop, on_failure).await.is_none());
    }

    #[test]
    fn exhausted_descriptors_concern_every_connection() {
        assert!(affects_one_connection(&ErrorKind::ConnectionAborted.into()));
        let exhausted = rustix::io::Errno::MFILE.into();
        assert!(!affects_one_connection(&exhausted));
    }
}
