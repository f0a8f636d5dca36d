//! Restarts background tasks that end early.
//!
//! Any module may wrap a task in [`supervise`] if the task must run as long as the process. A panic
//! ends one run of the task and nothing else.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::crash::{self, Edge};
use crate::telemetry::{Metrics, Task};

/// The first wait before a restart, and the limit of its doubling.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The length of a healthy run. After one, the wait is reset to [`FIRST_WAIT`].
const HEALTHY_RUN: Duration = Duration::from_secs(60);

/// Runs a task until `stopping` is cancelled.
///
/// A run that panics or returns early is logged, counted by the task's name, and restarted after a
/// wait. State that must survive a restart belongs outside of the run.
pub(crate) async fn supervise<F, T>(
    task: Task,
    metrics: Metrics,
    stopping: CancellationToken,
    mut run: F,
) where
    F: FnMut() -> T,
    T: Future<Output = ()>,
{
    let mut wait = FIRST_WAIT;
    loop {
        let began = Instant::now();
        let run = AssertUnwindSafe(async {
            crash::point("task", task.name(), Edge::Before);
            run().await;
        });
        let panicked = run.catch_unwind().await.is_err();
        if stopping.is_cancelled() {
            return;
        }
        if began.elapsed() >= HEALTHY_RUN {
            wait = FIRST_WAIT;
        }
        metrics.task_restarted(task);
        tracing::error!(
            task = task.name(),
            panicked,
            ?wait,
            "a background task ended early; restarting it"
        );
        if tokio::time::timeout(wait, stopping.cancelled()).await.is_ok() {
            return;
        }
        wait = (wait * 2).min(MAX_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_or_returns_restarts_with_backoff() {
        let (metrics, stopping) = (Metrics::new().unwrap(), CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        let (counting, stop) = (runs.clone(), stopping.clone());
        let began = Instant::now();
        let supervised = supervise(Task::Balance, metrics.clone(), stopping.clone(), move || {
            let (run, stop) = (counting.fetch_add(1, Ordering::SeqCst), stop.clone());
            async move {
                match run {
                    0 | 1 => panic!("on purpose"),
                    2 => {}
                    _ => {
                        stop.cancel();
                        panic!("while stopping");
                    }
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(60), supervised).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 4);
        assert_eq!(began.elapsed(), FIRST_WAIT * 7, "100, 200 and 400 ms");
        let text = metrics.render();
        assert!(text.contains(r#"loangate_task_restarts_total{task="balance"} 3"#), "{text}");
    }
}
