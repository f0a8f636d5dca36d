//! Sign-ins that wait for the provider to send the browser back.
//!
//! Each belongs to a random cookie of one browser, which may have several in its tabs, and ends
//! with its first use. Their number is bounded: a further one replaces the oldest one of its
//! browser or of the address that has the most. Addresses are unknown behind a proxy that ends
//! TLS. A flood through the proxy then replaces the oldest ones of all browsers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::time::Instant;

use super::super::session::{Hash, Secret};
use crate::lock::lock;

/// How long a person may take at the provider.
pub(in crate::console) const LIFETIME: Duration = Duration::from_secs(600);
/// The most sign-ins that wait, in all and for one browser. Behind a proxy, a flood must replace
/// all of them while a person signs in at the provider.
const MAX_PENDING: usize = 2000;
const MAX_PENDING_OF_BROWSER: usize = 5;

/// What the browser sends to the provider, and what the provider must send back.
pub(super) struct PendingSignIn {
    pub(super) state: Secret,
    pub(super) nonce: Secret,
    /// The verifier of PKCE (RFC 7636), of 43 characters.
    pub(super) verifier: Secret,
    /// Where to go on to.
    pub(super) next: String,
    /// The hash of the secret of the browser's session, which this sign-in replaces.
    pub(super) session: Option<Hash>,
}

struct Waiting {
    sign_in: PendingSignIn,
    /// The hash of the browser's cookie.
    browser: Hash,
    address: Option<IpAddr>,
    begun: Instant,
}

/// All sign-ins that wait, by the hashes of their states.
#[derive(Default)]
pub(super) struct PendingSignIns(Mutex<HashMap<Hash, Waiting>>);

impl PendingSignIn {
    /// Makes the random values of a sign-in; none if the system has no randomness.
    pub(super) fn new(next: &str, session: Option<Hash>) -> Option<PendingSignIn> {
        let (state, nonce, verifier) =
            (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        Some(PendingSignIn { state, nonce, verifier, next: next.to_owned(), session })
    }
}

impl Waiting {
    fn is_of(&self, browser: &Hash) -> bool {
        verify_slices_are_equal(&self.browser, browser).is_ok()
    }
}

impl PendingSignIns {
    /// Stores a sign-in, and returns the secret for the browser's cookie; none without randomness.
    /// It is the secret that the browser has, if one of its sign-ins waits.
    pub(super) fn add(
        &self,
        sign_in: PendingSignIn,
        browser: Option<Secret>,
        address: Option<IpAddr>,
    ) -> Option<Secret> {
        let mut waiting = lock(&self.0);
        waiting.retain(|_, one| one.begun.elapsed() < LIFETIME);
        let known = browser.filter(|secret| count_of(&waiting, &secret.hash()) > 0);
        let secret = match known {
            Some(secret) => secret,
            None => Secret::generate()?,
        };
        let browser = secret.hash();
        if count_of(&waiting, &browser) >= MAX_PENDING_OF_BROWSER {
            remove_oldest(&mut waiting, |one| one.is_of(&browser));
        } else if waiting.len() >= MAX_PENDING {
            let address = most_frequent_address(&waiting);
            remove_oldest(&mut waiting, |one| one.address == address);
        }
        let state = sign_in.state.hash();
        waiting.insert(state, Waiting { sign_in, browser, address, begun: Instant::now() });
        Some(secret)
    }

    /// Returns whether a sign-in of this browser with this state waits.
    pub(super) fn has(&self, browser: &Secret, state: &str) -> bool {
        let (browser, state) = (browser.hash(), Secret::of_cookie(state));
        let waiting = lock(&self.0);
        let found = state.and_then(|state| waiting.get(&state.hash()));
        found.is_some_and(|one| one.is_of(&browser) && one.begun.elapsed() < LIFETIME)
    }

    /// Returns whether any sign-in of this browser waits.
    pub(super) fn has_any(&self, browser: &Secret) -> bool {
        count_of(&lock(&self.0), &browser.hash()) > 0
    }

    /// Removes and returns the sign-in of this browser with this state. Those of other browsers
    /// stay: a link of another site must not end one.
    pub(super) fn take(&self, browser: &Secret, state: &str) -> Option<PendingSignIn> {
        let (browser, state) = (browser.hash(), Secret::of_cookie(state)?.hash());
        let mut waiting = lock(&self.0);
        waiting.get(&state).filter(|one| one.is_of(&browser))?;
        let found = waiting.remove(&state)?;
        (found.begun.elapsed() < LIFETIME).then_some(found.sign_in)
    }
}

fn count_of(waiting: &HashMap<Hash, Waiting>, browser: &Hash) -> usize {
    waiting.values().filter(|one| one.is_of(browser)).count()
}

/// Returns the address with the most sign-ins.
fn most_frequent_address(waiting: &HashMap<Hash, Waiting>) -> Option<IpAddr> {
    let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
    for one in waiting.values() {
        *counts.entry(one.address).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).and_then(|(address, _)| address)
}

/// Removes the oldest one of those that fit.
fn remove_oldest(waiting: &mut HashMap<Hash, Waiting>, fits: impl Fn(&Waiting) -> bool) {
    let found = waiting.iter().filter(|(_, one)| fits(one));
    let oldest = found.min_by_key(|(_, one)| one.begun).map(|(state, _)| *state);
    if let Some(oldest) = oldest {
        waiting.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin_as(
        pending: &PendingSignIns,
        browser: Option<Secret>,
        address: u8,
    ) -> (Secret, String) {
        let sign_in = PendingSignIn::new("/", None).unwrap();
        let state = sign_in.state.cookie_value().to_owned();
        (pending.add(sign_in, browser, Some([10, 0, 0, address].into())).unwrap(), state)
    }

    fn begin(pending: &PendingSignIns, address: u8) -> (Secret, String) {
        begin_as(pending, None, address)
    }

    #[tokio::test(start_paused = true)]
    async fn sign_in_is_for_one_browser_and_one_use() {
        let pending = PendingSignIns::default();
        let ((one, state), (other, _)) = (begin(&pending, 1), begin(&pending, 1));
        assert!(pending.take(&other, &state).is_none(), "of another browser");
        assert!(!pending.has(&other, &state) && pending.has(&one, &state));
        assert!(pending.take(&one, "x").is_none(), "another state");
        assert!(pending.take(&one, &state).is_some(), "wrong states have not ended it");
        assert!(pending.take(&one, &state).is_none(), "replayed");
        assert!(!pending.has(&one, &state) && !pending.has_any(&one));
        let (late, state) = begin(&pending, 1);
        tokio::time::advance(LIFETIME).await;
        assert!(!pending.has(&late, &state));
        assert!(pending.take(&late, &state).is_none(), "too late");
    }

    #[tokio::test(start_paused = true)]
    async fn browser_has_a_sign_in_for_each_of_its_tabs() {
        let pending = PendingSignIns::default();
        let (browser, first) = begin(&pending, 1);
        let cookie = || Secret::of_cookie(browser.cookie_value());
        let (same, second) = begin_as(&pending, cookie(), 1);
        assert_eq!(same.cookie_value(), browser.cookie_value());
        assert!(pending.take(&browser, &second).is_some());
        assert!(pending.has_any(&browser) && pending.take(&browser, &first).is_some());
        let (new, _) = begin_as(&pending, cookie(), 1);
        assert_ne!(new.cookie_value(), browser.cookie_value(), "no sign-in of it waits");

        let (other, state) = begin(&pending, 1);
        for _ in 0..3 * MAX_PENDING_OF_BROWSER {
            tokio::time::advance(Duration::from_millis(1)).await;
            begin_as(&pending, Secret::of_cookie(new.cookie_value()), 1);
        }
        assert_eq!(lock(&pending.0).len(), MAX_PENDING_OF_BROWSER + 1);
        assert!(pending.take(&other, &state).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_one_address_ends_its_own_sign_ins_only() {
        let pending = PendingSignIns::default();
        let (person, state) = begin(&pending, 1);
        for _ in 0..MAX_PENDING + 100 {
            begin(&pending, 2);
        }
        assert_eq!(lock(&pending.0).len(), MAX_PENDING);
        assert!(pending.take(&person, &state).is_some());
    }
}
