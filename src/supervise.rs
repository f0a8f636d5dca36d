//! Starts background tasks again that end although nobody stopped them.
//!
//! Whoever starts a task that must run for as long as the process wraps it in [`supervise`]. A
//! panic ends one run of the task and nothing else.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::crash::{self, Edge};
use crate::telemetry::Metrics;

/// The wait before a restart: the first, and the longest that it doubles up to.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A run of this length counts as healthy: the next wait is the first again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Runs a task until `stopping`. A run that panics or returns before is logged and counted by the
/// task's name, and followed by the next one after a wait. State that must survive a run belongs
/// outside of it.
pub(crate) async fn supervise<F, T>(
    task: &'static str,
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
            crash::point("task", task, Edge::Before);
            run().await;
        });
        let panicked = run.catch_unwind().await.is_err();
        if stopping.is_cancelled() {
            return;
        }
        if began.elapsed() >= HEALTHY {
            wait = FIRST_WAIT;
        }
        metrics.task_restarted(task);
        tracing::error!(
            task,
            panicked,
            ?wait,
            "a background task ended by itself; it is started again"
        );
        if tokio::time::timeout(wait, stopping.cancelled()).await.is_ok() {
            return;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_returns_runs_again_with_backoff() {
        let (metrics, stopping) = (Metrics::new().unwrap(), CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        let (counting, stop) = (runs.clone(), stopping.clone());
        let began = Instant::now();
        let supervised = supervise("fragile", metrics.clone(), stopping.clone(), move || {
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
        assert!(text.contains(r#"loangate_task_restarts_total{task="fragile"} 3"#), "{text}");
    }
}
