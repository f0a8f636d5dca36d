//! Tasks that concurrent callers share: one for each key.
//!
//! The first caller of a key starts the task, and callers that arrive while it runs get the same
//! result. The task belongs to no caller, so it completes even if all of them leave. Only inside
//! [`SharedTask::while_joined`] does it end with its last caller. The gate's flights are such
//! tasks.
//!
//! Guarantees:
//! - At most one task runs for a key, and at most `limit` in all. A task that
//!   [`SharedTask::while_joined`] has abandoned does not count.
//! - The key is free only when the work has returned or was abandoned. So whatever the work has
//!   stored is visible to the next task of the key, and abandoned work must store nothing more.
//! - The key is free before a caller gets the result. A caller that then starts another task does
//!   not hit the limit because of this one.
//! - A caller that joins while the last one leaves either keeps the task alive or starts a new one.
//! - If the work panics, its callers get an error and the key is free.
//!
//! Waits for a loan in circulation need no such task. Only flights wait there, at most two for a
//! loan, and the schedule drives the loan whether anyone waits or not. A shared task would hold
//! memory beside the schedule's entry, under a second lock.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::lock::lock;

/// Why a caller gets no result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SharedTaskError {
    /// As many tasks are running as the limit allows, and none has this key.
    LimitReached,
    /// The task panicked, or its runtime is shutting down.
    Died,
}

/// Receives the number of running tasks after each change, under the lock of the tasks.
type CountObserver = Box<dyn Fn(usize) + Send + Sync>;
/// Sends the result of one task. Its receivers are the callers.
type ResultSender<T> = Arc<watch::Sender<Option<T>>>;

/// The running shared tasks. Clones share them.
pub(super) struct SharedTasks<K, T>(Arc<Inner<K, T>>);

struct Inner<K, T> {
    running: Mutex<HashMap<K, ResultSender<T>>>,
    runtime: Handle,
    limit: usize,
    observer: CountObserver,
}

impl<K, T> Clone for SharedTasks<K, T> {
    fn clone(&self) -> SharedTasks<K, T> {
        SharedTasks(self.0.clone())
    }
}

impl<K, T> fmt::Debug for SharedTasks<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTasks").field("limit", &self.0.limit).finish_non_exhaustive()
    }
}

/// A running task, for its own work. Dropping the last handle frees its key.
pub(super) struct SharedTask<K: Eq + Hash, T> {
    tasks: Arc<Inner<K, T>>,
    key: K,
    result: ResultSender<T>,
}

impl<K, T> SharedTasks<K, T>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Creates an empty set, whose tasks run on `runtime`. `observer` receives the number of
    /// running tasks after each change; it must not block.
    pub(super) fn new(
        runtime: Handle,
        limit: usize,
        observer: impl Fn(usize) + Send + Sync + 'static,
    ) -> SharedTasks<K, T> {
        let observer = Box::new(observer);
        SharedTasks(Arc::new(Inner { running: Mutex::default(), runtime, limit, observer }))
    }

    /// Waits for the result of the task of this key. If none is running, it starts one with `work`.
    /// The work returns none once [`SharedTask::while_joined`] has: no caller is left then.
    ///
    /// # Errors
    /// [`SharedTaskError`].
    pub(super) async fn join<W>(
        &self,
        key: K,
        work: impl FnOnce(Arc<SharedTask<K, T>>) -> W,
    ) -> Result<T, SharedTaskError>
    where
        W: Future<Output = Option<T>> + Send + 'static,
    {
        let mut receiver = self.find_or_start(key, work)?;
        match receiver.wait_for(Option::is_some).await {
            Ok(result) => result.clone().ok_or(SharedTaskError::Died),
            Err(_) => Err(SharedTaskError::Died),
        }
    }

    /// Returns whether a task of this key is running.
    pub(super) fn is_running(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }

    fn find_or_start<W>(
        &self,
        key: K,
        work: impl FnOnce(Arc<SharedTask<K, T>>) -> W,
    ) -> Result<watch::Receiver<Option<T>>, SharedTaskError>
    where
        W: Future<Output = Option<T>> + Send + 'static,
    {
        let mut running = self.0.lock();
        if let Some(sender) = running.get(&key) {
            return Ok(sender.subscribe());
        }
        if running.len() >= self.0.limit {
            return Err(SharedTaskError::LimitReached);
        }
        let (sender, receiver) = watch::channel(None);
        let result = Arc::new(sender);
        running.insert(key.clone(), result.clone());
        (self.0.observer)(running.len());
        drop(running);
        let task = Arc::new(SharedTask { tasks: self.0.clone(), key, result });
        let work = work(task.clone());
        self.0.runtime.spawn(async move {
            if let Some(result) = work.await {
                task.publish(result);
            }
        });
        Ok(receiver)
    }
}

impl<K: Eq + Hash, T> SharedTask<K, T> {
    /// Waits for `wait` while callers are waiting for this task. Returns none once the last has
    /// left. The key is then free, and the work must end.
    pub(super) async fn while_joined<R>(&self, wait: impl Future<Output = R>) -> Option<R> {
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                biased;
                waited = &mut wait => return Some(waited),
                () = self.result.closed() => {
                    // Callers join under this lock, so a caller that has joined since is counted.
                    let mut running = self.tasks.lock();
                    if self.result.receiver_count() == 0 {
                        self.free_key(&mut running);
                        return None;
                    }
                }
            }
        }
    }

    /// Frees the key, and sends the result to the callers.
    fn publish(&self, result: T) {
        self.free_key(&mut self.tasks.lock());
        self.result.send_replace(Some(result));
    }

    /// Removes this task from the list, but no later task of the same key.
    fn free_key(&self, running: &mut HashMap<K, ResultSender<T>>) {
        if running.get(&self.key).is_some_and(|result| Arc::ptr_eq(result, &self.result)) {
            running.remove(&self.key);
            (self.tasks.observer)(running.len());
        }
    }
}

impl<K: Eq + Hash, T> Drop for SharedTask<K, T> {
    fn drop(&mut self) {
        self.free_key(&mut self.tasks.lock());
    }
}

impl<K, T> Inner<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, ResultSender<T>>> {
        lock(&self.running)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::{Notify, Semaphore};
    use tokio::task::yield_now;

    use super::*;

    type Tasks = SharedTasks<&'static str, usize>;

    fn tasks(limit: usize) -> Tasks {
        SharedTasks::new(Handle::current(), limit, |_| {})
    }

    /// Starts a caller that is a task of its own, and lets it join.
    async fn spawn_caller<W>(
        tasks: &Tasks,
        work: impl FnOnce(Arc<SharedTask<&'static str, usize>>) -> W + Send + 'static,
    ) -> tokio::task::JoinHandle<Result<usize, SharedTaskError>>
    where
        W: Future<Output = Option<usize>> + Send + 'static,
    {
        let tasks = tasks.clone();
        let caller = tokio::spawn(async move { tasks.join("key", work).await });
        yield_now().await;
        caller
    }

    /// Lets every task run until it waits.
    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn concurrent_callers_share_one_task() {
        let (tasks, started) = (tasks(10), AtomicUsize::new(0));
        let join = || {
            tasks.join("key", |_task| {
                let number = started.fetch_add(1, Ordering::SeqCst);
                async move {
                    yield_now().await;
                    Some(number)
                }
            })
        };
        assert_eq!(join_all((0..100).map(|_| join())).await, vec![Ok(0); 100]);
        assert_eq!(join().await, Ok(1), "a later caller starts its own task");
    }

    #[tokio::test]
    async fn caller_that_joins_as_the_last_leaves_keeps_the_task() {
        let (tasks, release) = (tasks(10), Arc::new(Notify::new()));
        let released = release.clone();
        let mut first = Box::pin(tasks.join("key", |task| async move {
            task.while_joined(released.notified()).await.map(|()| 1)
        }));
        assert_eq!((&mut first).now_or_never(), None);
        settle().await;
        drop(first);
        // The task has not run since.
        let mut second = Box::pin(tasks.join("key", |_task| async { panic!("one is running") }));
        assert_eq!((&mut second).now_or_never(), None);
        settle().await;
        release.notify_one();
        assert_eq!(second.await, Ok(1));
    }

    #[tokio::test]
    async fn waiting_task_ends_with_its_last_caller() {
        let tasks = tasks(1);
        let first = spawn_caller(&tasks, |task| async move {
            task.while_joined(std::future::pending::<usize>()).await
        })
        .await;
        settle().await;
        first.abort();
        settle().await;
        assert_eq!(tasks.join("other", |_task| async { Some(2) }).await, Ok(2), "there is room");
    }

    #[tokio::test]
    async fn abandoned_task_frees_no_later_task_of_its_key() {
        let (tasks, late) = (tasks(10), Arc::new(Notify::new()));
        let holds = late.clone();
        let first = spawn_caller(&tasks, |task| async move {
            let waited = task.while_joined(std::future::pending::<usize>()).await;
            holds.notified().await;
            waited
        })
        .await;
        settle().await;
        first.abort();
        settle().await;
        let release = Arc::new(Notify::new());
        let released = release.clone();
        let second = spawn_caller(&tasks, |_task| async move {
            released.notified().await;
            Some(2)
        })
        .await;
        late.notify_one();
        settle().await;
        let third = spawn_caller(&tasks, |_task| async { panic!("the second task runs") }).await;
        release.notify_one();
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (Ok(2), Ok(2)));
    }

    #[tokio::test]
    async fn work_that_does_not_wait_completes_without_callers() {
        let (tasks, completed) = (tasks(10), Arc::new(AtomicUsize::new(0)));
        let (permits, count) = (Arc::new(Semaphore::new(0)), completed.clone());
        let acquired = permits.clone();
        let caller = spawn_caller(&tasks, |_task| async move {
            drop(acquired.acquire().await);
            count.fetch_add(1, Ordering::SeqCst);
            Some(1)
        })
        .await;
        settle().await;
        caller.abort();
        settle().await;
        permits.add_permits(1);
        settle().await;
        assert_eq!(completed.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn panic_is_an_error_for_callers_and_frees_the_key() {
        let tasks = tasks(1);
        let callers = [
            spawn_caller(&tasks, |_task| async {
                settle().await;
                panic!("on purpose")
            })
            .await,
            spawn_caller(&tasks, |_task| async { Some(0) }).await,
        ];
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Err(SharedTaskError::Died));
        }
        assert_eq!(tasks.join("key", |_task| async { Some(1) }).await, Ok(1));
    }

    #[tokio::test]
    async fn limit_refuses_new_keys_until_a_result_is_out() {
        let counts = Arc::new(Mutex::new(Vec::new()));
        let observed = counts.clone();
        let observer = move |count| observed.lock().unwrap().push(count);
        let tasks: Tasks = SharedTasks::new(Handle::current(), 1, observer);
        let release = Arc::new(Notify::new());
        let released = release.clone();
        let first = spawn_caller(&tasks, |_task| async move {
            released.notified().await;
            Some(1)
        })
        .await;
        let refused = tasks.join("other", |_task| async { Some(2) }).await;
        assert_eq!(refused, Err(SharedTaskError::LimitReached));
        let joined = spawn_caller(&tasks, |_task| async { panic!("it runs already") }).await;
        release.notify_one();
        assert_eq!((first.await.unwrap(), joined.await.unwrap()), (Ok(1), Ok(1)));
        assert_eq!(tasks.join("other", |_task| async { Some(2) }).await, Ok(2));
        assert_eq!(*counts.lock().unwrap(), [1, 0, 1, 0]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn result_is_stored_before_the_key_is_free() {
        let (tasks, started) = (tasks(10), Arc::new(AtomicUsize::new(0)));
        let stored = Arc::new(AtomicUsize::new(0));
        let callers = (0..8).map(|_| {
            let (tasks, started, stored) = (tasks.clone(), started.clone(), stored.clone());
            tokio::spawn(async move {
                for _ in 0..500 {
                    let (started, stored) = (started.clone(), stored.clone());
                    let work = |_task| async move {
                        let before = started.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(stored.load(Ordering::SeqCst), before, "one task at a time");
                        yield_now().await;
                        Some(stored.fetch_add(1, Ordering::SeqCst))
                    };
                    let result = tasks.join("key", work).await;
                    assert!(result.is_ok(), "{result:?}");
                }
            })
        });
        for caller in join_all(callers).await {
            caller.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn callers_that_join_and_leave_at_random_lose_no_result() {
        let tasks = tasks(10);
        let callers = (0..8_u64).map(|number| {
            let tasks = tasks.clone();
            tokio::spawn(async move {
                for round in 0..300_u64 {
                    let work = |task: Arc<SharedTask<&'static str, usize>>| async move {
                        task.while_joined(tokio::time::sleep(Duration::from_millis(1))).await?;
                        task.while_joined(yield_now()).await.map(|()| 1)
                    };
                    let joined = tasks.join("key", work);
                    if (number + round).is_multiple_of(2) {
                        let patience = Duration::from_micros(100 * (round % 12));
                        let _ = tokio::time::timeout(patience, joined).await;
                    } else {
                        assert_eq!(joined.await, Ok(1));
                    }
                }
            })
        });
        for caller in join_all(callers).await {
            caller.unwrap();
        }
        let all_ended = async {
            while !tasks.0.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all_ended).await.unwrap();
    }
}
