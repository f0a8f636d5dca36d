//! Sign-ins that wait for the provider to send the browser back.
//!
//! Each belongs to a random cookie of one browser, and ends with its first use. Their number is
//! bounded: a further one replaces the oldest one of the address that has the most.

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
/// The most sign-ins that wait.
const MAX_PENDING: usize = 500;

/// What the browser sends to the provider, and what the provider must send back.
#[derive(Clone)]
pub(super) struct PendingSignIn {
    pub(super) state: Secret,
    pub(super) nonce: Secret,
    /// The verifier of PKCE (RFC 7636), of 43 characters.
    pub(super) verifier: Secret,
    /// Where to go on to.
    pub(super) next: String,
}

struct Waiting {
    attempt: PendingSignIn,
    address: Option<IpAddr>,
    begun: Instant,
}

/// All sign-ins that wait.
#[derive(Default)]
pub(super) struct PendingSignIns(Mutex<HashMap<Hash, Waiting>>);

impl PendingSignIn {
    /// Makes the random values of a sign-in; none if the system has no randomness.
    pub(super) fn new(next: &str) -> Option<PendingSignIn> {
        let (state, nonce, verifier) =
            (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        Some(PendingSignIn { state, nonce, verifier, next: next.to_owned() })
    }
}

impl PendingSignIns {
    /// Stores a sign-in, and returns the secret for the browser's cookie; none without randomness.
    pub(super) fn add(&self, attempt: PendingSignIn, address: Option<IpAddr>) -> Option<Secret> {
        let (secret, begun) = (Secret::generate()?, Instant::now());
        let mut waiting = lock(&self.0);
        waiting.retain(|_, one| one.begun.elapsed() < LIFETIME);
        if waiting.len() >= MAX_PENDING {
            remove_one(&mut waiting);
        }
        waiting.insert(secret.hash(), Waiting { attempt, address, begun });
        Some(secret)
    }

    /// Removes and returns the sign-in of this cookie. One with another state stays: a link of
    /// another site must not end it.
    pub(super) fn take(&self, secret: &Secret, state: &str) -> Option<PendingSignIn> {
        let (hash, mut waiting) = (secret.hash(), lock(&self.0));
        let expected = waiting.get(&hash)?.attempt.state.cookie_value();
        verify_slices_are_equal(expected.as_bytes(), state.as_bytes()).ok()?;
        let found = waiting.remove(&hash)?;
        (found.begun.elapsed() < LIFETIME).then_some(found.attempt)
    }
}

/// Removes the oldest sign-in of the address that has the most.
fn remove_one(waiting: &mut HashMap<Hash, Waiting>) {
    let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
    for one in waiting.values() {
        *counts.entry(one.address).or_default() += 1;
    }
    let Some((most, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return };
    let of_most = waiting.iter().filter(|(_, one)| one.address == most);
    let oldest = of_most.min_by_key(|(_, one)| one.begun).map(|(hash, _)| *hash);
    if let Some(oldest) = oldest {
        waiting.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(pending: &PendingSignIns, address: u8) -> (Secret, String) {
        let attempt = PendingSignIn::new("/").unwrap();
        let state = attempt.state.cookie_value().to_owned();
        (pending.add(attempt, Some([10, 0, 0, address].into())).unwrap(), state)
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_is_for_one_browser_and_one_use() {
        let pending = PendingSignIns::default();
        let ((one, state), (other, _)) = (begin(&pending, 1), begin(&pending, 1));
        assert!(pending.take(&other, &state).is_none(), "of another browser");
        assert!(pending.take(&one, "x").is_none(), "another state");
        assert!(pending.take(&one, &state).is_some(), "wrong states have not ended it");
        assert!(pending.take(&one, &state).is_none(), "replayed");
        let (late, state) = begin(&pending, 1);
        tokio::time::advance(LIFETIME).await;
        assert!(pending.take(&late, &state).is_none(), "too late");
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_one_address_ends_its_own_attempts_only() {
        let pending = PendingSignIns::default();
        let (person, state) = begin(&pending, 1);
        for _ in 0..3 * MAX_PENDING {
            begin(&pending, 2);
        }
        assert_eq!(lock(&pending.0).len(), MAX_PENDING);
        assert!(pending.take(&person, &state).is_some());
    }
}
