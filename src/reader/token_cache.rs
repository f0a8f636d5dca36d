//! Cache of verified tokens and links, keyed by the hash of their text.
//!
//! `reader/mod.rs` queries it before it verifies a signature, and stores each verified credential.
//! Rejected credentials are not cached: there is no limit to their number. Each hit compares the
//! credential's expiry with the current time. The number of entries is bounded. An expired entry is
//! removed when it is queried, or evicted for others.

use std::sync::Arc;

use aws_lc_rs::rand;
use jiff::Timestamp;
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;
use siphasher::sip128::SipHasher24;

use super::{Reader, ReadersError};

/// The most cached credentials: about 20 MB, and more than the concurrent readers of a gate.
const MAX_ENTRIES: u64 = 50_000;
/// The initial capacity, in entries; the cache grows on demand.
const INITIAL_CAPACITY: usize = 1000;

/// The keyed hash of a credential's text.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct TokenHash(u128);

/// A verified reader, and the times until which the credential is accepted.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) reader: Arc<Reader>,
    /// The expiry, plus the leeway of a token.
    pub(super) until: Timestamp,
    /// The end of a link's grace period; for a token, the same as `until`.
    pub(super) grace_until: Timestamp,
}

/// The cache. Each reload of the keys creates a new cache, so that nothing verified with the old
/// keys survives, even if it was verified during the reload.
pub(super) struct VerifiedTokens {
    cache: Cache<TokenHash, Verified>,
    /// SipHash-2-4 with 128 bits and a secret random key. An attacker without the key would have to
    /// send about 2^128 / [`MAX_ENTRIES`] texts to find one that collides with an entry. SHA-256
    /// needs no key, but costs five times as much on processors without instructions for it.
    hasher: SipHasher24,
}

impl VerifiedTokens {
    pub(super) fn new() -> Result<VerifiedTokens, ReadersError> {
        let mut key = [0; 16];
        rand::fill(&mut key)
            .map_err(|_| ReadersError("This machine provides no random numbers.".to_owned()))?;
        let cache = Cache::with_weighter(INITIAL_CAPACITY, MAX_ENTRIES, UnitWeighter);
        Ok(VerifiedTokens { cache, hasher: SipHasher24::new_with_key(&key) })
    }

    pub(super) fn hash(&self, token: &str) -> TokenHash {
        TokenHash(self.hasher.hash(token.as_bytes()).as_u128())
    }

    /// Returns the entry of a credential that is valid at `now` or within its grace period.
    pub(super) fn get(&self, hash: &TokenHash, now: Timestamp) -> Option<Verified> {
        let verified = self.cache.get(hash)?;
        if now < verified.grace_until {
            return Some(verified);
        }
        self.cache.remove(hash);
        None
    }

    pub(super) fn insert(&self, hash: TokenHash, verified: Verified) {
        self.cache.insert(hash, verified);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }
}
