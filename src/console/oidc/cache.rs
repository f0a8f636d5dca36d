//! A value of the provider that is fetched when it is needed, one fetch at a time.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a value is used.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// The shortest time from one fetch to the next.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// A cached value.
pub(super) struct FetchCache<T>(Mutex<State<T>>);

struct State<T> {
    value: Option<(T, Instant)>,
    /// When the last fetch ended, and why it failed.
    last: Option<(Instant, Option<String>)>,
}

impl<T> Default for FetchCache<T> {
    fn default() -> Self {
        FetchCache(Mutex::new(State { value: None, last: None }))
    }
}

impl<T: Clone> FetchCache<T> {
    /// Returns the value, and fetches it if there is none or it is too old; with `again` also if
    /// the last fetch is some time ago.
    ///
    /// # Errors
    /// Why it cannot be fetched. Callers that waited, and those in the next seconds, get the same
    /// error.
    pub(super) async fn get(
        &self,
        again: bool,
        fetch: impl AsyncFnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let mut state = self.0.lock().await;
        let value = state.value.as_ref().filter(|(_, at)| at.elapsed() < MAX_AGE);
        let is_recent =
            state.last.as_ref().is_some_and(|(at, _)| at.elapsed() < MIN_FETCH_INTERVAL);
        if let Some((value, _)) = value
            && (!again || is_recent)
        {
            return Ok(value.clone());
        }
        if let Some((_, Some(why))) = state.last.as_ref().filter(|_| is_recent) {
            return Err(why.clone());
        }
        let fetched = fetch().await;
        state.last = Some((Instant::now(), fetched.as_ref().err().cloned()));
        let value = fetched?;
        state.value = Some((value.clone(), Instant::now()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn value_is_fetched_once_and_again_after_a_pause() {
        let (cache, fetches) = (FetchCache::default(), AtomicU32::new(0));
        let get = async |again| {
            let slow = async || {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(fetches.fetch_add(1, Ordering::Relaxed))
            };
            cache.get(again, slow).await.unwrap()
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
    async fn failing_provider_is_called_once_in_a_pause() {
        let (cache, fetches) = (FetchCache::<u32>::default(), AtomicU32::new(0));
        let get = async || {
            let fail = async || {
                tokio::time::sleep(Duration::from_secs(9)).await;
                Err(format!("failure {}", fetches.fetch_add(1, Ordering::Relaxed)))
            };
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
        assert_eq!(cache.get(false, async || Ok(1)).await, Ok(1));
        tokio::time::advance(MIN_FETCH_INTERVAL).await;
        assert!(cache.get(true, async || Err("down".to_owned())).await.is_err());
        assert_eq!(cache.get(false, async || Ok(2)).await, Ok(1));
    }
}
