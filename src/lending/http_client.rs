//! The HTTP client below `transport`, and its timeouts.

use std::time::Duration;

use super::SetUpError;
use super::response::cause;
use crate::http_calls;

/// The timeout for connection setup.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that the kernel resends unacknowledged data (TCP_USER_TIMEOUT). It bounds how late a
/// call can still arrive at Bokbasen.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that keeps at most `max_idle` connections for reuse.
pub(super) fn build(timeout: Duration, max_idle: usize) -> Result<reqwest::Client, SetUpError> {
    http_calls::client()
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .tcp_user_timeout(USER_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(max_idle)
        .build()
        .map_err(|error| SetUpError(cause(error)))
}
