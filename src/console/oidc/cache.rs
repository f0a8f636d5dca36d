//! A value of the provider that is fetched when it is needed, one fetch at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a value is used.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// The shortest time from one fetch to the next.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(10);
/// The error of a fetch whose task has not ended.
const UNFINISHED: &str = "the last request was aborted";

/// A cached value.
pub(super) struct FetchCache<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    value: Option<(T, Instant)>,
    /// Whether a use of the value failed since the last fetch.
    is_doubtful: bool,
    /// When the last fetch began or ended, and why it failed.
    last: Option<(Instant, Option<String>)>,
}

impl<T> Default for FetchCache<T> {
    fn default() -> Self {
        let state = State { value: None, is_doubtful: false, last: None };
        FetchCache(Arc::new(Mutex::new(state)))
    }
}

impl<T: Clone + Send + 'static> FetchCache<T> {
    /// Returns the value, and fetches it if there is none, it is too old or a use of it failed.
    /// With `again`, it fetches unless the last fetch is recent. `fetch` has its own deadline.
    ///
    /// # Errors
    /// Why it cannot be fetched. Callers that waited, and those in the next seconds, get the same
    /// error.
    pub(super) async fn get(
        &self,
        again: bool,
        fetch: impl Future<Output = Result<T, String>> + Send + 'static,
    ) -> Result<T, String> {
        let mut state = self.0.clone().lock_owned().await;
        let value = state.value.as_ref().filter(|(_, at)| at.elapsed() < MAX_AGE);
        let value = value.map(|(value, _)| value.clone());
        let is_recent =
            state.last.as_ref().is_some_and(|(at, _)| at.elapsed() < MIN_FETCH_INTERVAL);
        if let Some(value) = &value
            && (is_recent || !again && !state.is_doubtful)
        {
            return Ok(value.clone());
        }
        if let Some((_, Some(why))) = state.last.as_ref().filter(|_| is_recent) {
            return Err(why.clone());
        }
        state.last = Some((Instant::now(), Some(UNFINISHED.to_owned())));
        state.is_doubtful = false;
        // A task of its own, which holds the lock: a client that disconnects does not abort it, or
        // the next client could begin another fetch at once.
        let fetched = tokio::spawn(async move {
            let fetched = fetch.await;
            state.last = Some((Instant::now(), fetched.as_ref().err().cloned()));
            if let Ok(value) = &fetched {
                state.value = Some((value.clone(), Instant::now()));
            }
            fetched
        });
        match (fetched.await.unwrap_or_else(|_| Err(UNFINISHED.to_owned())), value) {
            (Err(_), Some(value)) if !again => Ok(value),
            (fetched, _) => fetched,
        }
    }

    /// Records that a use of the value failed: the next caller fetches it again, if the last fetch
    /// is not recent. During a fetch this has no effect.
    pub(super) fn record_failed_use(&self) {
        if let Ok(mut state) = self.0.try_lock() {
            state.is_doubtful = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    /// Fetches the number of the fetch, in this time.
    async fn count(fetches: Arc<AtomicU32>, time: Duration) -> Result<u32, String> {
        let number = fetches.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(time).await;
        Ok(number)
    }

    #[tokio::test(start_paused = true)]
    async fn value_is_fetched_once_and_again_after_an_interval() {
        let (cache, fetches) = (FetchCache::default(), Arc::new(AtomicU32::new(0)));
        let get = async |again| {
            let fetch = count(fetches.clone(), Duration::from_secs(1));
            cache.get(again, fetch).await.unwrap()
        };
        assert_eq!(join_all((0..20).map(|_| get(false))).await, [0; 20]);
        assert_eq!(join_all((0..20).map(|_| get(true))).await, [0; 20], "fetched just now");
        tokio::time::advance(MIN_FETCH_INTERVAL - Duration::from_secs(1)).await;
        assert_eq!(get(true).await, 0, "fetched a while ago");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(get(false).await, 0);
        assert_eq!(join_all((0..20).map(|_| get(true))).await, [1; 20]);
        tokio::time::advance(MAX_AGE).await;
        assert_eq!(get(false).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failing_provider_is_called_once_in_an_interval() {
        let (cache, fetches) = (FetchCache::<u32>::default(), Arc::new(AtomicU32::new(0)));
        let get = async || {
            let fetch = count(fetches.clone(), Duration::from_secs(9));
            let fail = fetch.map(|number| Err(format!("failure {}", number.unwrap())));
            cache.get(false, fail).await.unwrap_err()
        };
        assert_eq!(join_all((0..20).map(|_| get())).await, ["failure 0"; 20]);
        tokio::time::advance(MIN_FETCH_INTERVAL - Duration::from_secs(1)).await;
        assert_eq!(get().await, "failure 0");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(get().await, "failure 1");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_fetch_keeps_the_value() {
        let cache = FetchCache::default();
        assert_eq!(cache.get(false, async { Ok(1) }).await, Ok(1));
        tokio::time::advance(MIN_FETCH_INTERVAL).await;
        assert!(cache.get(true, async { Err("down".to_owned()) }).await.is_err());
        assert_eq!(cache.get(false, async { Ok(2) }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_disconnects_starts_no_further_fetch() {
        let (cache, fetches) = (FetchCache::default(), Arc::new(AtomicU32::new(0)));
        for _ in 0..5 {
            let get = cache.get(false, count(fetches.clone(), Duration::from_secs(9)));
            assert!(tokio::time::timeout(Duration::from_secs(1), get).await.is_err());
        }
        let get = cache.get(false, count(fetches.clone(), Duration::ZERO));
        assert_eq!(get.await, Ok(0), "the first fetch goes on");
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_use_makes_the_next_caller_fetch() {
        let cache = FetchCache::default();
        assert_eq!(cache.get(false, async { Ok(1) }).await, Ok(1));
        cache.record_failed_use();
        assert_eq!(cache.get(false, async { Ok(2) }).await, Ok(1), "fetched just now");
        tokio::time::advance(MIN_FETCH_INTERVAL).await;
        assert_eq!(cache.get(false, async { Ok(2) }).await, Ok(2));
        tokio::time::advance(MIN_FETCH_INTERVAL).await;
        assert_eq!(cache.get(false, async { Ok(3) }).await, Ok(2), "nothing failed since");
        cache.record_failed_use();
        let down = async { Err("down".to_owned()) };
        assert_eq!(cache.get(false, down).await, Ok(2), "better than none");
    }
}
