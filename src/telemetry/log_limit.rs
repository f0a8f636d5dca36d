//! A rate limit for log lines, so that a failing dependency does not fill the log.
//!
//! A module that logs from a retry loop has a [`LogLimit`] in a `static` or in its state. The first
//! line of a kind is permitted at once. After it, one line of that kind is permitted per interval.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::lock::lock;

/// The interval of [`LogLimit::per_minute`].
const MINUTE: Duration = Duration::from_secs(60);

/// Permits one log line of each kind per interval, and counts the suppressed ones.
///
/// A kind is a fixed text, such as the reason of a failure, so the code bounds the number of kinds.
/// The first line of a kind is permitted even if another kind was just logged.
///
/// ```
/// use loangate::telemetry::LogLimit;
///
/// static LIMIT: LogLimit = LogLimit::per_minute();
/// if let Some(suppressed) = LIMIT.permit("refused") {
///     tracing::warn!(suppressed, "cannot connect");
/// }
/// ```
#[derive(Debug)]
pub struct LogLimit {
    interval: Duration,
    kinds: Mutex<Vec<Kind>>,
}

#[derive(Debug)]
struct Kind {
    name: &'static str,
    logged: Instant,
    suppressed: u64,
}

impl LogLimit {
    /// Creates a limit of one line a minute for each kind.
    pub const fn per_minute() -> LogLimit {
        LogLimit { interval: MINUTE, kinds: Mutex::new(Vec::new()) }
    }

    /// Returns the number of lines of this kind suppressed since the last one, or none if this line
    /// must be suppressed too.
    pub fn permit(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = lock(&self.kinds);
        let Some(known) = kinds.iter_mut().find(|known| known.name == kind) else {
            kinds.push(Kind { name: kind, logged: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(known.logged) < self.interval {
            known.suppressed = known.suppressed.saturating_add(1);
            return None;
        }
        known.logged = now;
        Some(std::mem::take(&mut known.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_of_a_kind_is_permitted_per_minute() {
        let limit = LogLimit::per_minute();
        assert_eq!(limit.permit("refused"), Some(0));
        for _ in 0..393 {
            assert_eq!(limit.permit("refused"), None);
        }
        assert_eq!(limit.permit("timeout"), Some(0), "another kind is permitted at once");
        tokio::time::advance(MINUTE - Duration::from_secs(1)).await;
        assert_eq!(limit.permit("refused"), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limit.permit("refused"), Some(394));
        assert_eq!(limit.permit("refused"), None);
    }
}
