//! Threads that give way to those that serve readers.
//!
//! Where all cores are busy, a person who looks at the console should wait, and not a reader. `app`
//! starts the runtime. Only what nobody else waits for may run on it: no lock that readers need is
//! held across an await there, and nothing that it starts serves others. This module depends on no
//! other one.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::spawn_blocking;

/// The nice value of the threads: about a tenth of the time that others get on a busy core.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// The threads of [`Threads`] that run tasks, so that one long task does not delay all others.
const WORKERS: usize = 2;

/// A runtime on threads of low priority. Dropping it ends its tasks.
#[derive(Debug)]
pub(crate) struct Threads {
    handle: Handle,
    /// None once it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    /// Starts the runtime. Its threads have this name.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub(crate) fn start(name: &str) -> io::Result<Threads> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(name)
            .on_thread_start(give_way)
            .enable_all()
            .build()?;
        Ok(Threads { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Ends the tasks, and waits until none runs any more, for this time at most.
    pub(crate) async fn stop(mut self, limit: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        // It may fail only if it panics.
        let _ = spawn_blocking(move || runtime.shutdown_timeout(limit)).await;
    }

    /// Returns what spawns tasks.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // It may be dropped by a task, which may not wait for the end of a runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lowers the priority of this thread.
fn give_way() {
    // Only Linux has a nice value for each thread. A sandbox may forbid a change of it, and then
    // the thread still works.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::getpriority_process(None)
        .and_then(|now| rustix::process::setpriority_process(None, now.max(NICE)));
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    fn priority() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn its_threads_give_way_and_no_others_do() {
        let before = priority();
        let threads = Threads::start("test").unwrap();
        let handle = threads.handle().clone();
        let lowered = NICE.max(before);
        assert_eq!(handle.spawn(async { priority() }).await.unwrap(), lowered);
        assert_eq!(handle.spawn_blocking(priority).await.unwrap(), lowered);
        assert_eq!(priority(), before);
    }

    #[tokio::test]
    async fn tasks_end_with_the_threads() {
        let threads = Threads::start("test").unwrap();
        let task = threads.handle().spawn(std::future::pending::<()>());
        drop(threads);
        assert!(task.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn nothing_runs_after_the_stop() {
        let threads = Threads::start("test").unwrap();
        let (guard, ended) = tokio::sync::oneshot::channel::<()>();
        let task = threads.handle().spawn(async move {
            std::future::pending::<()>().await;
            drop(guard);
        });
        threads.stop(Duration::from_secs(60)).await;
        assert!(task.is_finished() && ended.await.is_err());
    }
}
