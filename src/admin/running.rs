//! A running admin listener, and how it stops.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listen::Stopping;

/// A running admin listener. Dropping it cancels all its tasks.
#[derive(Debug)]
pub(crate) struct Running {
    url: String,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: Stopping,
}

impl Running {
    /// Creates the state of a listener that accepts until `handed_over` is cancelled.
    pub(super) fn new(url: String, handed_over: &CancellationToken) -> Running {
        let stopping = Stopping {
            accepting: handed_over.child_token(),
            connections: CancellationToken::new(),
        };
        Running { url, tasks: TaskTracker::new(), stopping }
    }

    /// Returns the listener's URL, without a trailing slash.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Accepts no more connections, and lets those that are open end within this time.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.stopping.accepting.cancel();
        self.tasks.close();
        let _ = timeout(limit, self.tasks.wait()).await;
    }

    /// Closes every connection and waits until all tasks have ended.
    pub(crate) async fn stop(self) {
        self.stopping.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopping.stop();
    }
}
