//! Shows whether the threads that serve readers respond.
//!
//! The health checks of the admin listener use it, and the signs of life for a service manager. A
//! runtime that answers them from other threads would call a gate healthy that serves nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::placement::Workers;

/// Shows whether the workers respond. Clones share one check at a time.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    workers: Workers,
    drain: CancellationToken,
    /// When the last check ended well. Each check leaves a task with a worker that does not
    /// respond, so they are made in turn, and those who have waited for one share its result.
    last: Arc<Mutex<Option<Instant>>>,
}

impl Heartbeat {
    /// `drain` is cancelled when the workers begin to end.
    pub(super) fn new(workers: Workers, drain: CancellationToken) -> Heartbeat {
        Heartbeat { workers, drain, last: Arc::default() }
    }

    /// Returns one that shares no checks with this, so that it does not wait for theirs.
    pub(super) fn separate(&self) -> Heartbeat {
        Heartbeat::new(self.workers.clone(), self.drain.clone())
    }

    /// Returns whether every worker runs a task within this time. A gate that drains is not
    /// checked, since its workers end one by one.
    pub(crate) async fn is_alive_within(&self, limit: Duration) -> bool {
        let began = Instant::now();
        let deadline = began + limit;
        let respond = async {
            let mut last = self.last.lock().await;
            if last.is_some_and(|ended| ended > began) {
                return true;
            }
            // Those whose time is over have a turn, too, before they find that it is.
            let responds = Instant::now() < deadline && self.workers.respond().await;
            if responds {
                *last = Some(Instant::now());
            }
            responds
        };
        let responds = self.drain.run_until_cancelled(timeout_at(deadline, respond));
        responds.await.is_none_or(|within| within == Ok(true)) || self.drain.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Handle};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn gate_is_alive_while_its_workers_respond_and_while_it_drains() {
        let drain = CancellationToken::new();
        let (workers, _inboxes) = Workers::new(vec![Handle::current(); 2]);
        assert!(Heartbeat::new(workers, drain.clone()).is_alive_within(LIMIT).await);
        let never_run = Builder::new_current_thread().build().unwrap();
        let (workers, _inboxes) = Workers::new(vec![never_run.handle().clone()]);
        let heartbeat = Heartbeat::new(workers, drain.clone());
        assert!(!heartbeat.is_alive_within(LIMIT).await);
        drain.cancel();
        assert!(heartbeat.is_alive_within(LIMIT).await);
        never_run.shutdown_background();
    }

    #[tokio::test(start_paused = true)]
    async fn crowd_of_checks_shares_the_result_of_slow_workers() {
        const ROUND: Duration = Duration::from_millis(500);
        let slow = Builder::new_current_thread().build().unwrap();
        let (workers, _inboxes) = Workers::new(vec![slow.handle().clone()]);
        let heartbeat = Heartbeat::new(workers, CancellationToken::new());
        let checks = (0..100).map(|_| heartbeat.is_alive_within(LIMIT));
        let rounds = async {
            for _ in 0..3 {
                tokio::time::sleep(ROUND).await;
                std::thread::scope(|scope| {
                    scope.spawn(|| slow.block_on(tokio::task::yield_now()));
                });
            }
        };
        let (alive, ()) = tokio::join!(futures_util::future::join_all(checks), rounds);
        assert!(alive.iter().all(|is_alive| *is_alive));
        slow.shutdown_background();
    }

    #[tokio::test(start_paused = true)]
    async fn many_checks_of_a_stuck_worker_leave_it_few_tasks() {
        let never_run = Builder::new_current_thread().build().unwrap();
        let runtime = never_run.handle().clone();
        let (workers, _inboxes) = Workers::new(vec![runtime.clone()]);
        let heartbeat = Heartbeat::new(workers, CancellationToken::new());
        let checks = (0..100).map(|_| heartbeat.is_alive_within(LIMIT));
        let alive = futures_util::future::join_all(checks).await;
        assert!(alive.iter().all(|is_alive| !is_alive));
        assert!(runtime.metrics().global_queue_depth() <= 2);
        never_run.shutdown_background();
    }
}
