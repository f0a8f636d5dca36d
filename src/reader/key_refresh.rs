//! The background task that fetches the keys of the login services, and what follows from new keys.
//!
//! `app` runs it. Each login service has its own loop, so that a slow one delays no other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderMap;
use reqwest::Client;

use super::Readers;
use super::credential::{self, Credential};
use super::fetched_keys::{FetchedKeys, KeyTrouble};
use super::jwks::KeyId;
use super::provider::{self, FetchError};
use super::provider_http::provider_client;
use crate::lock::lock;
use crate::telemetry::{KeyFetch, LogLimit, Metrics};

/// How often a loop checks whether its keys are stale. A movable clock wakes no sleeping task.
const TICK: Duration = Duration::from_secs(1);

/// Keys that are fetched, and how long they are used when they are stale.
struct Kept {
    keys: Arc<FetchedKeys>,
    keep: Duration,
    failures: LogLimit,
}

impl Readers {
    /// Keeps the keys of the login services fresh. Returns only if the HTTP client does not start.
    pub(crate) async fn keep_keys_fresh(&self, metrics: &Metrics) {
        loop {
            let services = self.kept();
            tokio::select! {
                () = self.reloaded.notified() => {}
                failed = self.refresh_all(&services, metrics) => {
                    let Err(error) = failed;
                    tracing::error!(%error, "the HTTP client of login services does not start");
                    return;
                }
            }
        }
    }

    /// Returns what is wrong with the keys of login services.
    pub(crate) fn key_troubles(&self) -> Vec<KeyTrouble> {
        let keys = self.keys.load();
        keys.tokens.services().iter().filter_map(|service| service.trouble(&self.clock)).collect()
    }

    /// Waits until a fetch has looked for the key of the token in these fields, as long as that may
    /// succeed. To call after [`Problem::LoginUnavailable`], before the next attempt.
    ///
    /// [`Problem::LoginUnavailable`]: crate::problem::Problem::LoginUnavailable
    pub(crate) async fn until_keys_fetched(&self, headers: &HeaderMap) {
        let Ok(Credential::Token(token)) = credential::find(headers, None, None) else { return };
        let found = self.keys.load().tokens.fetched_keys_for(token);
        let Some((keys, kid)) = found else { return };
        keys.until_looked_up(kid.as_deref(), &self.clock).await;
    }

    /// Waits until each login service was asked for its keys once, and returns those that gave
    /// none: their tokens would get 503. [`Readers::keep_keys_fresh`] must run meanwhile.
    pub(crate) async fn until_keys_asked_for(&self) -> Vec<KeyTrouble> {
        let services = self.kept();
        join_all(services.iter().map(|kept| kept.keys.until_first_fetch())).await;
        self.key_troubles().into_iter().filter(|trouble| trouble.is_missing).collect()
    }

    fn kept(&self) -> Vec<Kept> {
        let keys = self.keys.load();
        let kept = keys.tokens.services().iter().filter_map(|service| {
            let keys = service.fetched_keys()?.clone();
            let keep = service.settings.keep_keys;
            Some(Kept { keys, keep, failures: LogLimit::per_minute() })
        });
        kept.collect()
    }

    async fn refresh_all(
        &self,
        services: &[Kept],
        metrics: &Metrics,
    ) -> Result<Infallible, reqwest::Error> {
        if !services.is_empty() {
            let client = provider_client()?;
            join_all(services.iter().map(|kept| self.refresh(kept, &client, metrics))).await;
        }
        std::future::pending().await
    }

    /// Keeps the keys of one login service fresh.
    async fn refresh(&self, kept: &Kept, client: &Client, metrics: &Metrics) {
        let keys = &kept.keys;
        loop {
            let now = self.clock.age_millis();
            self.forget_verified_by(&keys.expire(now, kept.keep));
            if let Some(running) = keys.begin(now) {
                let (issuer, url) = (&keys.issuer, keys.jwks_url.as_ref());
                let fetched = provider::fetch(client, issuer, url).await;
                record(kept, fetched.as_ref().map(|fetched| fetched.keys.len()), metrics);
                let removed = running.end(self.clock.age_millis(), fetched);
                self.forget_verified_by(&removed);
            }
            if let Some(age) = keys.age(self.clock.age_millis()) {
                metrics.login_key_age(&keys.issuer, age);
            }
            let _ = tokio::time::timeout(TICK, keys.lookup_requested.notified()).await;
        }
    }

    /// Removes the tokens from the cache that these keys have signed.
    ///
    /// The cache is replaced: a token that is verified meanwhile, with the old keys, is stored in
    /// the old cache.
    pub(super) fn forget_verified_by(&self, removed: &[KeyId]) {
        if removed.is_empty() {
            return;
        }
        let _changing = lock(&self.changing);
        let keys = self.keys.load_full();
        let verified = keys.verified.without(|key| removed.contains(&key));
        self.keys.store(Arc::new(keys.with_verified(verified)));
        tracing::info!(keys = removed.len(), "keys of a login service are no longer accepted");
    }
}

/// Logs and counts a fetch.
fn record(kept: &Kept, fetched: Result<usize, &FetchError>, metrics: &Metrics) {
    let issuer = &kept.keys.issuer;
    let (outcome, kind) = match fetched {
        Ok(_) => (KeyFetch::Ok, "ok"),
        Err(FetchError::Failed(_)) => (KeyFetch::Failed, "failed"),
        Err(FetchError::Invalid(_)) => (KeyFetch::Invalid, "invalid"),
    };
    metrics.login_key_fetch(issuer, outcome);
    match fetched {
        Ok(keys) => tracing::debug!(issuer, keys, "fetched the keys of a login service"),
        Err(error) => {
            if let Some(suppressed) = kept.failures.permit(kind) {
                let why = error.why();
                tracing::warn!(issuer, why, suppressed, "cannot fetch the keys of a login service");
            }
        }
    }
}
