//! The keys of one login service that are fetched: which there are, when they are fetched again,
//! and who waits for that.
//!
//! `key_refresh` fetches them, one request at a time, and at most once in ten seconds. A token with
//! an unknown key is refused only after a fetch that began later has not found its key. Times are
//! those of [`Clock::age_millis`](crate::clock::Clock::age_millis).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use url::Url;

use super::jwks::{KeyId, VerifyKey};
use super::provider::{FetchError, Fetched};
use super::refusal::{JwtFault, Refusal};
use crate::clock::Clock;
use crate::lock::lock;

/// The shortest time from one fetch to the next.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long a request waits for a fetch: an interval, and half of the fetch's own deadline.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// The most requests that wait for the keys of one login service.
const MAX_WAITING: usize = 256;
/// The most unknown key ids that one fetch looks up, and the longest one, in bytes.
const MAX_LOOKUPS: usize = 64;
const MAX_KID: usize = 256;

/// The keys of one login service, and the progress of fetching them.
pub(super) struct FetchedKeys {
    pub(super) issuer: String,
    /// Where the keys are; none if discovery finds them.
    pub(super) jwks_url: Option<Url>,
    set: ArcSwapOption<KeySet>,
    progress: Mutex<Progress>,
    /// Wakes the task that fetches.
    pub(super) lookup_requested: Notify,
    /// Changes whenever a fetch ends.
    ended: watch::Sender<()>,
    waiting: Semaphore,
}

/// The keys of the last successful fetch.
pub(super) struct KeySet {
    pub(super) keys: Vec<VerifyKey>,
    /// When they should be fetched again.
    stale: i64,
}

#[derive(Default)]
struct Progress {
    /// When the last fetch began.
    begun: Option<i64>,
    last: LastFetch,
    /// When the last successful fetch ended.
    succeeded: Option<i64>,
    /// Unknown key ids that the next fetch looks up.
    to_look_up: Vec<String>,
    /// Unknown key ids that the running fetch looks up.
    looked_up: Vec<String>,
    /// Key ids that the last successful fetch has looked up, or knew before, and not found.
    absent: Vec<String>,
}

#[derive(Default)]
enum LastFetch {
    #[default]
    None,
    Running,
    Succeeded,
    /// It failed, with the reason.
    Failed(String),
}

/// What is wrong with the keys of a login service.
#[derive(Clone, Debug)]
pub(crate) struct KeyTrouble {
    pub(crate) issuer: String,
    /// Whether there is no key, so that no token is accepted.
    pub(crate) is_missing: bool,
    /// What is wrong, as a sentence.
    pub(crate) what: String,
}

impl FetchedKeys {
    pub(super) fn new(issuer: &str, jwks_url: Option<&Url>) -> FetchedKeys {
        FetchedKeys {
            issuer: issuer.to_owned(),
            jwks_url: jwks_url.cloned(),
            set: ArcSwapOption::empty(),
            progress: Mutex::default(),
            lookup_requested: Notify::new(),
            ended: watch::Sender::new(()),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// Returns the keys; none if they were never fetched, or are stale for longer than `keep`.
    pub(super) fn usable(&self, now: i64, keep: Duration) -> Option<Arc<KeySet>> {
        self.set.load_full().filter(|set| !set.is_over(now, keep))
    }

    /// Returns the refusal of a token if no usable set was fetched.
    pub(super) fn unavailable(&self, now: i64) -> Refusal {
        Refusal::LoginUnavailable(lock(&self.progress).next_fetch(now))
    }

    /// Returns the refusal of a token whose key is not in the set: for good only if a fetch has
    /// just looked for it. Later it may be there: a login service that signs with a new key may
    /// publish it a little late.
    pub(super) fn unknown_key(&self, set: &KeySet, kid: Option<&str>, now: i64) -> Refusal {
        let progress = lock(&self.progress);
        // A login service that publishes no key that can be used is at fault, and not the reader.
        if set.keys.is_empty() {
            return Refusal::LoginUnavailable(progress.next_fetch(now));
        }
        let kid = kid.filter(|kid| kid.len() <= MAX_KID && !set.has(kid));
        match kid.filter(|kid| !progress.is_absent(kid, now)) {
            Some(_) => Refusal::LoginUnavailable(progress.next_fetch(now)),
            None => Refusal::Token(JwtFault::Key),
        }
    }

    /// Waits until a fetch has looked for a key, as long as that may succeed. Returns at once if
    /// the login service does not answer, or too many requests wait.
    pub(super) async fn until_looked_up(&self, kid: Option<&str>, clock: &Clock) {
        let Ok(_permit) = self.waiting.try_acquire() else { return };
        let mut ended = self.ended.subscribe();
        let looking = async {
            while self.request_lookup(kid, clock.age_millis()) && ended.changed().await.is_ok() {}
        };
        let _ = timeout(MAX_WAIT, looking).await;
    }

    /// Waits until the first fetch has ended, well or not, or would take too long.
    pub(super) async fn until_first_fetch(&self) {
        let mut ended = self.ended.subscribe();
        let ending = async { while self.was_never_fetched() && ended.changed().await.is_ok() {} };
        let _ = timeout(MAX_WAIT, ending).await;
    }

    fn was_never_fetched(&self) -> bool {
        let is_first = matches!(lock(&self.progress).last, LastFetch::None | LastFetch::Running);
        is_first && self.set.load().is_none()
    }

    /// Returns whether a fetch that will end may find the key, and makes the next one look for it.
    fn request_lookup(&self, kid: Option<&str>, now: i64) -> bool {
        let set = self.set.load();
        let mut progress = lock(&self.progress);
        let (Some(set), Some(kid)) = (&*set, kid) else {
            return set.is_none() && matches!(progress.last, LastFetch::None | LastFetch::Running);
        };
        let is_failing = matches!(progress.last, LastFetch::Failed(_)) && !progress.may_begin(now);
        if set.has(kid) || kid.len() > MAX_KID || progress.is_absent(kid, now) || is_failing {
            return false;
        }
        if contains(&progress.to_look_up, kid) || contains(&progress.looked_up, kid) {
            return true;
        }
        let has_room = progress.to_look_up.len() < MAX_LOOKUPS;
        if has_room {
            progress.to_look_up.push(kid.to_owned());
            self.lookup_requested.notify_one();
        }
        has_room
    }

    /// Begins a fetch if one is due: without keys, with stale ones, or for an unknown key.
    pub(super) fn begin(&self, now: i64) -> Option<RunningFetch<'_>> {
        let is_fresh = self.set.load().as_ref().is_some_and(|set| now < set.stale);
        let mut progress = lock(&self.progress);
        if !progress.may_begin(now) || is_fresh && progress.to_look_up.is_empty() {
            return None;
        }
        progress.begun = Some(now);
        progress.last = LastFetch::Running;
        progress.looked_up = std::mem::take(&mut progress.to_look_up);
        Some(RunningFetch { keys: self, has_ended: false })
    }

    /// Removes keys that are stale for longer than `keep`. Returns which.
    pub(super) fn expire(&self, now: i64, keep: Duration) -> Vec<KeyId> {
        match self.set.load_full() {
            Some(set) if set.is_over(now, keep) => {
                self.set.store(None);
                set.keys.iter().map(|key| key.id).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the time since keys were fetched the last time, also if they are over; none if they
    /// never were.
    pub(super) fn age(&self, now: i64) -> Option<Duration> {
        lock(&self.progress).succeeded.map(|at| millis(now.saturating_sub(at)))
    }

    /// Returns what is wrong with the keys.
    pub(super) fn trouble(&self, now: i64, keep: Duration) -> Option<KeyTrouble> {
        let set = self.usable(now, keep).filter(|set| !set.keys.is_empty());
        if set.as_ref().is_some_and(|set| now < set.stale) {
            return None;
        }
        let issuer = &self.issuer;
        let why = match &lock(&self.progress).last {
            LastFetch::Failed(why) => why.clone(),
            LastFetch::Succeeded => "it publishes none that can be used".to_owned(),
            // The first fetch, or one of stale keys that is about to begin or to end.
            LastFetch::None | LastFetch::Running if set.is_some() => return None,
            LastFetch::None | LastFetch::Running => "they are being fetched".to_owned(),
        };
        let what = match &set {
            None => format!(
                "There are no keys of the login service {issuer} ({why}): its tokens get 503."
            ),
            Some(_) => format!(
                "The keys of the login service {issuer} are old and cannot be fetched ({why})."
            ),
        };
        Some(KeyTrouble { issuer: issuer.clone(), is_missing: set.is_none(), what })
    }
}

impl KeySet {
    fn is_over(&self, now: i64, keep: Duration) -> bool {
        now >= self.stale.saturating_add(in_millis(keep))
    }

    fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }
}

impl Progress {
    /// Whether the last fetch began long enough ago. A movable clock may have been set back.
    fn may_begin(&self, now: i64) -> bool {
        self.begun.is_none_or(|begun| now < begun || now >= begun + in_millis(MIN_INTERVAL))
    }

    /// Whether a fetch has not found a key, and the next one may not begin yet.
    fn is_absent(&self, kid: &str, now: i64) -> bool {
        !self.may_begin(now) && contains(&self.absent, kid)
    }

    /// Returns the time until the next fetch may begin.
    fn next_fetch(&self, now: i64) -> Duration {
        let passed = self.begun.map_or(MIN_INTERVAL, |begun| millis(now.saturating_sub(begun)));
        MIN_INTERVAL.saturating_sub(passed)
    }
}

/// A fetch that has begun. Dropped before its end, it has failed.
pub(super) struct RunningFetch<'k> {
    keys: &'k FetchedKeys,
    has_ended: bool,
}

impl RunningFetch<'_> {
    /// Ends the fetch, and puts new keys in use. Returns the keys that were removed.
    pub(super) fn end(mut self, now: i64, fetched: Result<Fetched, FetchError>) -> Vec<KeyId> {
        self.has_ended = true;
        match fetched {
            Ok(fetched) => self.keys.replace(now, fetched),
            Err(error) => {
                self.keys.fail(error.why());
                Vec::new()
            }
        }
    }
}

impl Drop for RunningFetch<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.keys.fail("the last request was aborted");
        }
    }
}

impl FetchedKeys {
    fn replace(&self, now: i64, Fetched { keys, fresh_for }: Fetched) -> Vec<KeyId> {
        let stale = now.saturating_add(in_millis(fresh_for));
        let set = Arc::new(KeySet { keys, stale });
        let old = self.set.swap(Some(set.clone()));
        let old = old.as_ref().map_or(&[][..], |old| &old.keys);
        {
            let mut progress = lock(&self.progress);
            progress.last = LastFetch::Succeeded;
            progress.succeeded = Some(now);
            progress.absent = std::mem::take(&mut progress.looked_up);
            progress.absent.extend(old.iter().filter_map(|key| key.kid.clone()));
            progress.absent.retain(|kid| !set.has(kid));
        }
        self.ended.send_replace(());
        let is_removed = |key: &&VerifyKey| !set.keys.iter().any(|new| new.id == key.id);
        old.iter().filter(is_removed).map(|key| key.id).collect()
    }

    fn fail(&self, why: &str) {
        {
            let mut progress = lock(&self.progress);
            progress.last = LastFetch::Failed(why.to_owned());
            progress.looked_up.clear();
        }
        self.ended.send_replace(());
    }
}

fn contains(kids: &[String], kid: &str) -> bool {
    kids.iter().any(|other| other == kid)
}

fn in_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a number of milliseconds, or zero if it is negative.
fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
