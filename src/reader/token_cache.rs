//! Cache of verified tokens and links, keyed by the hash of their text.
//!
//! `reader/mod.rs` queries it before it verifies a signature, and stores each verified credential.
//! Rejected credentials are not cached: there is no limit to their number. moka is the cache of
//! record, with a near cache of each worker thread in front. Each hit compares the credential's
//! expiry with the current time. The number of entries is bounded. An expired entry is removed from
//! the record when it is queried there, or evicted for others. The record sees only what misses the
//! near caches. So it may evict a credential that one worker uses all day; another worker then
//! verifies the signature again.

use std::sync::Arc;

use aws_lc_rs::rand;
use jiff::Timestamp;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use siphasher::sip128::SipHasher24;

use super::jwks::KeyId;
use super::{Reader, ReadersError};
use crate::near_cache::NearCache;

/// The most cached credentials: about 30 MB, and more than the concurrent readers of a gate.
const MAX_ENTRIES: u64 = 50_000;
/// The number of entries in the near caches of all workers together. Their tables take 2 MiB. Their
/// entries keep evicted and expired credentials until their places are needed: about 25 MB at most.
const NEAR_ENTRIES: usize = 1 << 17;

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

/// A verified credential with its hash, which the near cache compares.
struct Entry {
    hash: TokenHash,
    verified: Verified,
    /// The key that has signed a token; none for a link.
    key: Option<KeyId>,
}

/// The cache. Each change of the keys creates a new cache, so that nothing verified with the old
/// keys survives, even if it was verified during the change.
pub(super) struct VerifiedTokens {
    record: Cache<TokenHash, Arc<Entry>>,
    near: NearCache<Entry>,
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
        Ok(VerifiedTokens::empty(SipHasher24::new_with_key(&key)))
    }

    fn empty(hasher: SipHasher24) -> VerifiedTokens {
        let record = Cache::builder()
            .max_capacity(MAX_ENTRIES)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        VerifiedTokens { record, near: NearCache::for_workers(NEAR_ENTRIES), hasher }
    }

    /// Returns a new cache with the entries of this one, except those of removed keys.
    pub(super) fn without(&self, is_removed: impl Fn(KeyId) -> bool) -> VerifiedTokens {
        let kept = VerifiedTokens::empty(self.hasher);
        for (hash, entry) in &self.record {
            if !entry.key.is_some_and(&is_removed) {
                kept.record.insert(*hash, entry);
            }
        }
        kept
    }

    pub(super) fn hash(&self, token: &str) -> TokenHash {
        TokenHash(self.hasher.hash(token.as_bytes()).as_u128())
    }

    /// Returns the entry of a credential that is valid at `now` or within its grace period.
    pub(super) fn get(&self, hash: &TokenHash, now: Timestamp) -> Option<Verified> {
        let holds = |entry: &Entry| entry.hash == *hash && now < entry.verified.grace_until;
        let verified = |entry: &Arc<Entry>| holds(entry).then(|| entry.verified.clone());
        let miss = match self.near.find(hash.bits(), verified) {
            Ok(verified) => return Some(verified),
            Err(miss) => miss,
        };
        let entry = self.record.get(hash)?;
        if !holds(&entry) {
            self.record.invalidate(hash);
            return None;
        }
        self.near.insert(miss, entry.clone());
        Some(entry.verified.clone())
    }

    /// Stores a verified credential. The near caches need no invalidation: an entry never changes.
    pub(super) fn insert(&self, hash: TokenHash, verified: Verified, key: Option<KeyId>) {
        self.record.insert(hash, Arc::new(Entry { hash, verified, key }));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.record.run_pending_tasks();
        self.record.entry_count()
    }
}

impl TokenHash {
    /// Returns the lower half, for the near cache.
    fn bits(self) -> u64 {
        self.0 as u64
    }
}
